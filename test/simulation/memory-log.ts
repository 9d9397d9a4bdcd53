import type { LogTransport, StoredMessage, TransportAnswer } from "../../replication/shard-log.js";
import type { Network } from "./network.js";
import type { Process, Scheduler } from "./scheduler.js";

interface Proposal {
  readonly shard: number;
  readonly data: Uint8Array;
  readonly answer: (answer: TransportAnswer) => void;
  readonly term: number;
}

interface Stream {
  readonly messages: (StoredMessage & { readonly at: number })[];
  readonly last: Map<number, number>;
  readonly inFlight: Map<number, Proposal>;
  /** Messages that each site's replica holds. */
  readonly seen: Map<string, number>;
  leader: string | null;
  term: number;
  /** A former leader that does not know it yet. */
  deposed: { readonly site: string; readonly last: Map<number, number>; readonly until: number } | null;
}

export interface LogEvents {
  /** Before a message is stored; throws when it must not be. */
  committing(partition: number, shard: number, sequence: number, data: Uint8Array, by: string): void;
  /** After each change of something that a crash could follow. */
  effect(process: Process, what: string): void;
  say(who: string, text: string): void;
}

/** The log's streams on all sites: late appends, lost answers, elections that swallow or keep what is in flight, stale replicas. */
export class MemoryLog {
  readonly streams: Stream[];
  compareAndSet = true;
  /** How long an election takes, virtual milliseconds. */
  electionMs: readonly [number, number] = [300, 2_500];
  calm = false;
  slowAppends = 0.02;
  readonly #s: Scheduler;
  readonly #network: Network;
  readonly #sites: readonly string[];
  readonly #events: LogEvents;

  constructor(s: Scheduler, network: Network, sites: readonly string[], partitions: number, events: LogEvents) {
    this.#s = s;
    this.#network = network;
    this.#sites = sites;
    this.#events = events;
    this.streams = Array.from({ length: partitions }, () => ({
      messages: [],
      last: new Map<number, number>(),
      inFlight: new Map<number, Proposal>(),
      seen: new Map(sites.map((site) => [site, 0])),
      leader: s.pick(sites),
      term: 1,
      deposed: null,
    }));
  }

  /** Without any checks: for the group's first records. */
  seed(partition: number, shard: number, data: Uint8Array): void {
    const stream = this.#stream(partition);
    this.#store(partition, stream, shard, data, "init");
  }

  transport(process: Process): LogTransport {
    const ways = [process.site, ...this.#sites.filter((site) => site !== process.site)];
    return {
      routes: ways.length,
      append: (partition, shard, data, expected, timeoutMs, route) =>
        this.#append(process, ways[route] ?? process.site, partition, shard, data, expected, timeoutMs),
      readOne: (partition, sequence, timeoutMs, route) =>
        this.#read(process, ways[route] ?? process.site, partition, timeoutMs, (stream, seen) =>
          sequence <= seen ? stream.messages[sequence - 1] : undefined,
        ),
      readLast: (partition, shard, timeoutMs, route) =>
        this.#read(process, ways[route] ?? process.site, partition, timeoutMs, (stream, seen) =>
          stream.messages.slice(0, seen).findLast((message) => message.shard === shard),
        ),
      readFrom: (partition, sequence, limits, route) =>
        this.#read(process, ways[route] ?? process.site, partition, limits.timeoutMs, (stream, seen) =>
          stream.messages.slice(sequence - 1, Math.min(seen, sequence - 1 + limits.batch)),
        ),
    };
  }

  leader(partition: number): string | null {
    return this.#stream(partition).leader;
  }

  /** A new leader: what was in flight is swallowed or kept. */
  elect(partition: number, to: string | null, kept: number): void {
    const stream = this.#stream(partition);
    if (stream.leader !== null)
      stream.deposed = {
        site: stream.leader,
        last: new Map(stream.last),
        until: this.#s.now + this.#s.between(50, 1_500),
      };
    const flying = [...stream.inFlight.values()];
    stream.inFlight.clear();
    stream.term++;
    stream.leader = null;
    const term = stream.term;
    const survive = flying.filter(() => this.#s.chance(kept));
    this.#s.count("elections of log leaders");
    for (const each of flying)
      this.#s.count(survive.includes(each) ? "appends kept by an election" : "appends swallowed by an election");
    const delay = to === null ? this.#s.between(...this.electionMs) : this.#s.between(10, 80);
    this.#s.after(delay, null, () => this.#elected(partition, stream, term, to, survive));
  }

  /** Elections where a leader is off or has no majority. */
  review(): void {
    this.streams.forEach((stream, partition) => {
      if (stream.leader !== null && !this.#hasMajority(stream.leader)) this.elect(partition, null, 0.5);
    });
  }

  #elected(partition: number, stream: Stream, term: number, to: string | null, survive: readonly Proposal[]): void {
    if (stream.term !== term) return;
    const fit = this.#sites.filter((site) => this.#hasMajority(site));
    if (fit.length === 0) {
      this.#s.after(200, null, () => this.#elected(partition, stream, term, to, survive));
      return;
    }
    stream.leader = to !== null && fit.includes(to) ? to : this.#s.pick(fit);
    this.#events.say("log", `partition ${partition} is led by ${stream.leader}`);
    for (const proposal of survive) this.#store(partition, stream, proposal.shard, proposal.data, "former leader");
  }

  #append(
    process: Process,
    via: string,
    partition: number,
    shard: number,
    data: Uint8Array,
    expected: number,
    timeoutMs: number,
  ): Promise<TransportAnswer> {
    const s = this.#s;
    const stream = this.#stream(partition);
    return new Promise((resolve) => {
      const timer = process.time.after(timeoutMs, () => {
        s.count("appends without an answer");
        resolve({ kind: "silent" });
      });
      const answer = (value: TransportAnswer): void => {
        if (!this.calm && s.chance(0.02)) return;
        s.after(s.between(0.2, 2), process, () => {
          if (!this.#network.linked(process.site, via)) return;
          timer.cancel();
          resolve(value);
        });
      };
      this.#events.effect(process, "append");
      if (!this.#network.linked(process.site, via)) {
        s.after(1, process, () => (timer.cancel(), resolve({ kind: "nowhere" })));
        return;
      }
      if (!this.calm && s.chance(0.01)) return;
      const slow = !this.calm && s.chance(this.slowAppends);
      if (slow) s.count("appends late");
      s.after(slow ? s.between(200, 4_000) : s.between(0.2, 2), null, () =>
        this.#propose(stream, partition, via, shard, data, expected, answer),
      );
    });
  }

  #propose(
    stream: Stream,
    partition: number,
    via: string,
    shard: number,
    data: Uint8Array,
    expected: number,
    answer: (answer: TransportAnswer) => void,
  ): void {
    const s = this.#s;
    const { deposed, leader } = stream;
    if (deposed !== null && s.now < deposed.until && this.#network.linked(via, deposed.site) && s.chance(0.3)) {
      const last = deposed.last.get(shard) ?? 0;
      s.count("answers of former leaders");
      if (last !== expected) answer({ kind: "refused", lastSequence: last });
      return;
    }
    if (leader === null || !this.#network.linked(via, leader)) {
      if (s.chance(0.5)) answer({ kind: "nowhere" });
      return;
    }
    if (this.compareAndSet) {
      if (stream.inFlight.has(shard)) return answer({ kind: "busy" });
      const last = stream.last.get(shard) ?? 0;
      if (last !== expected) return answer({ kind: "refused", lastSequence: last });
    }
    const proposal: Proposal = { shard, data, answer, term: stream.term };
    stream.inFlight.set(shard, proposal);
    const commit = (): void => {
      if (stream.term !== proposal.term) return;
      if (!this.#hasMajority(leader)) {
        s.after(100, null, commit);
        return;
      }
      if (stream.inFlight.get(shard) === proposal) stream.inFlight.delete(shard);
      const sequence = this.#store(partition, stream, shard, data, via);
      answer({ kind: "stored", sequence });
    };
    s.after(!this.calm && s.chance(0.02) ? s.between(50, 1_500) : s.between(0.2, 1.5), null, commit);
  }

  #store(partition: number, stream: Stream, shard: number, data: Uint8Array, by: string): number {
    const sequence = stream.messages.length + 1;
    this.#events.committing(partition, shard, sequence, data, by);
    stream.messages.push({ sequence, shard, data, at: this.#s.now });
    stream.last.set(shard, sequence);
    return sequence;
  }

  #read<T>(
    process: Process,
    via: string,
    partition: number,
    timeoutMs: number,
    find: (stream: Stream, seen: number) => T,
  ): Promise<T> {
    const s = this.#s;
    const stream = this.#stream(partition);
    return new Promise((resolve, reject) => {
      const fail = (delay: number): void =>
        void s.after(delay, process, () => reject(new Error("the replica did not answer")));
      if (!this.#network.linked(process.site, via)) return fail(1);
      if (!this.calm && s.chance(0.01)) return fail(timeoutMs);
      s.after(s.between(0.2, 2), process, () => {
        this.#catchUp(stream, via);
        resolve(find(stream, stream.seen.get(via) ?? 0));
      });
    });
  }

  /** A replica that hears its leader follows it closely, though not always at once. */
  #catchUp(stream: Stream, site: string): void {
    const { leader } = stream;
    if (leader === null || !this.#network.linked(site, leader)) return;
    if (!this.calm && site !== leader && this.#s.chance(0.08)) return this.#s.count("reads of stale replicas");
    const until = site === leader ? this.#s.now : this.#s.now - this.#s.between(0, 2);
    let seen = stream.seen.get(site) ?? 0;
    while (seen < stream.messages.length && (stream.messages[seen]?.at ?? Infinity) <= until) seen++;
    stream.seen.set(site, seen);
  }

  #hasMajority(site: string): boolean {
    const reached = this.#sites.filter((other) => this.#network.linked(site, other)).length;
    return reached * 2 > this.#sites.length;
  }

  #stream(partition: number): Stream {
    const stream = this.streams[partition];
    if (stream === undefined) throw new RangeError(`no partition ${partition}`);
    return stream;
  }
}
