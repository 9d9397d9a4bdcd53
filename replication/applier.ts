import { within, type Time, type Timer } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { partition as toPartition, type Partition, type ShardId } from "../shards/ids.js";
import { decodeBatch, type BatchHeader } from "./record.js";
import {
  NeedsRecords,
  Overtaken,
  type Applied,
  type Incoming,
  type ReplicaStore,
  type Stretch,
} from "./replica-store.js";
import type { LogTransport, StoredMessage } from "./shard-log.js";

interface PartitionState {
  readonly partition: Partition;
  /** Folded in up to here. */
  cursor: number;
  /** The log is said to hold this one. */
  target: number;
  /** The last of them that is not an own append. */
  foreign: number;
  /** When it was last read (monotonic). */
  lookedAt: number;
  /** Monotonic time since which the nearest replica has not given what the log is said to hold. */
  behindSince: number | null;
  /** Own appends by sequence: their records are in the database already. */
  readonly own: Map<number, BatchHeader>;
  /** Messages that their publisher sent along with the word that the log holds them, by sequence. */
  readonly pushed: Map<number, StoredMessage>;
  /** Nothing is read of it: what comes next is not in the log any more, or shall not be replayed (snapshot.ts). */
  held: boolean;
  /** The log begins behind what comes next. */
  lost: boolean;
  /** A read under way, and what the last one brought. */
  reading: Promise<void> | null;
  fetched: readonly Incoming[];
  /** The end of the log was reached since this process began to apply. */
  seenEnd: boolean;
}

/** How long the nearest replica may be silent or behind before another one is read (section 3, step 5). */
const patienceMs = 250;
/** How long marks of own appends may wait for other work to go along with. */
const lazyMs = 200;
const safetyMs = 500;
/** Pause after a transaction while there is more: what comes meanwhile shares the next one. */
const gatherMs = 3;
/** A round goes on without the partitions whose read takes longer. */
const slowReadMs = 20;
const limits = { batch: 500, maxBytes: 1_000_000 };
const knownAtOnce = 1_000;
/** Messages behind the cursor, and bytes of all partitions, that are kept for later. */
const pushedAhead = 2_000;
const pushedBytes = 8_000_000;
const ownKept = 50_000;

/**
 * Log -> the datacenter's tables: each partition from a replica in the own site, all partitions that have something new in
 * one transaction, each shard in order. Woken by the publishers' hints; a slow look around is the safety net.
 */
export class Applier {
  readonly #transport: LogTransport;
  readonly #store: ReplicaStore;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #whole: (messages: readonly Incoming[]) => Promise<readonly Incoming[]>;
  readonly #onApplied: (applied: Applied, messages: readonly Incoming[]) => void;
  readonly #states: PartitionState[];
  readonly #stop = new AbortController();
  #active = false;
  #pushedBytes = 0;
  #wake: () => void = () => undefined;
  #woken = false;
  #lazy: Timer | undefined;
  #ownDue = false;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: {
    transport: LogTransport;
    store: ReplicaStore;
    partitions: number;
    time: Time;
    log: Logger;
    onApplied: (applied: Applied, messages: readonly Incoming[]) => void;
    /** Brings the payloads that messages refer to; it may give fewer messages than it was given. */
    whole?: (messages: readonly Incoming[]) => Promise<readonly Incoming[]>;
  }) {
    this.#whole = options.whole ?? ((messages) => Promise.resolve(messages));
    this.#transport = options.transport;
    this.#store = options.store;
    this.#time = options.time;
    this.#log = options.log.with({ component: "applier" });
    this.#onApplied = options.onApplied;
    this.#states = Array.from({ length: options.partitions }, (_, p) => ({
      partition: toPartition(p),
      cursor: 0,
      target: 0,
      foreign: 0,
      lookedAt: -Infinity,
      behindSince: null,
      own: new Map<number, BatchHeader>(),
      pushed: new Map<number, StoredMessage>(),
      held: false,
      lost: false,
      reading: null,
      fetched: [],
      seenEnd: false,
    }));
  }

  /** Only the process that holds the replicator's lock applies; the progress check would refuse a second one anyway. */
  async setActive(active: boolean): Promise<void> {
    if (active && !this.#active) {
      for (const state of this.#states) {
        state.seenEnd = false;
        for (const sequence of [...state.pushed.keys()]) this.#dropPushed(state, sequence);
      }
      await this.reload();
    }
    this.#active = active;
    this.#notify();
  }

  async start(): Promise<void> {
    this.#loop = this.#run();
  }

  /** Reads the progress again from the database. */
  async reload(): Promise<void> {
    const progress = await this.#store.progress();
    for (const state of this.#states) {
      const cursor = progress.get(state.partition) ?? 0;
      if (cursor !== state.cursor) state.lost = false;
      state.cursor = cursor;
      state.foreign = Math.max(state.foreign, state.target);
      state.own.clear();
      for (const sequence of [...state.pushed.keys()]) if (sequence <= state.cursor) this.#dropPushed(state, sequence);
    }
  }

  /** A publisher says that the log holds this message. */
  hint(partition: Partition, sequence: number): void {
    const state = this.#states[partition];
    if (state === undefined || sequence <= state.cursor || state.own.has(sequence)) return;
    if (sequence > state.target) state.target = sequence;
    if (sequence > state.foreign) state.foreign = sequence;
    this.#notify();
  }

  /**
   * A publisher says that the log holds this message, and what it is: what comes in order needs no read. It is the log's, as
   * its append was stored there; what was lost on the way or comes too early is read.
   */
  push(partition: Partition, message: StoredMessage): void {
    const state = this.#states[partition];
    if (state === undefined || message.sequence <= state.cursor || state.own.has(message.sequence)) return;
    if (
      this.#active &&
      !state.pushed.has(message.sequence) &&
      message.sequence <= state.cursor + pushedAhead &&
      this.#pushedBytes + message.data.length <= pushedBytes
    ) {
      // A copy: what came is a part of a larger buffer.
      state.pushed.set(message.sequence, { ...message, data: message.data.slice() });
      this.#pushedBytes += message.data.length;
    }
    this.hint(partition, message.sequence);
  }

  #dropPushed(state: PartitionState, sequence: number): void {
    const message = state.pushed.get(sequence);
    if (message === undefined) return;
    state.pushed.delete(sequence);
    this.#pushedBytes -= message.data.length;
  }

  /** An own append: nothing of it needs to be read, and its mark can wait for more of its kind. */
  ownAppend(partition: Partition, shard: ShardId, sequence: number, header: BatchHeader): void {
    const state = this.#states[partition];
    if (state === undefined || sequence <= state.cursor || !this.#active) return;
    if (state.own.size < ownKept) state.own.set(sequence, header);
    if (sequence > state.target) state.target = sequence;
    this.#lazy ??= this.#time.after(lazyMs, () => {
      this.#lazy = undefined;
      this.#ownDue = true;
      this.#notify();
    });
  }

  /** Partitions whose next message the log does not have any more. */
  get lost(): Partition[] {
    return this.#active ? this.#states.filter((state) => state.lost).map((state) => state.partition) : [];
  }

  /** Reads nothing more of the partition until `release`. */
  hold(partition: Partition): void {
    const state = this.#states[partition];
    if (state !== undefined) state.held = true;
  }

  /** Goes on from where the database says. */
  async release(partition: Partition): Promise<void> {
    const state = this.#states[partition];
    if (state === undefined) return;
    await this.reload();
    state.held = false;
    state.lost = false;
    this.#notify();
  }

  /** Every partition was seen to its end since this process began to apply. */
  get caughtUp(): boolean {
    return this.#active && this.#states.every((state) => state.seenEnd);
  }

  get active(): boolean {
    return this.#active;
  }

  /** Of each partition, from 0: the last message that is folded in; empty while another process applies. */
  get applied(): number[] {
    return this.#active ? this.#states.map((state) => state.cursor) : [];
  }

  /** Messages that the log is said to hold and that are not folded in. */
  get behind(): number {
    return this.#states.reduce((sum, state) => sum + Math.max(0, state.target - state.cursor - state.own.size), 0);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#active = false;
    this.#lazy?.cancel();
    this.#notify();
    await this.#loop;
  }

  #notify(): void {
    this.#woken = true;
    this.#wake();
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      if (!this.#woken) {
        const woken = new AbortController();
        this.#wake = () => woken.abort();
        await this.#time.sleep(safetyMs, woken.signal);
        this.#wake = () => undefined;
      }
      this.#woken = false;
      if (!this.#active) continue;
      try {
        await this.#round();
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (!(error instanceof Overtaken)) {
          this.#log.warn("applying failed", { error: asError(error) });
          await this.#time.sleep(100, this.#stop.signal);
        }
        await this.reload().catch(() => undefined);
        this.#woken = true;
      }
    }
  }

  /** Reads what is new in every partition, and applies what has come; one that can't be read holds up none of the others. */
  async #round(): Promise<void> {
    const ownDue = this.#ownDue;
    this.#ownDue = false;
    const reads = this.#states.flatMap((state) => state.reading ?? this.#startRead(state, ownDue) ?? []);
    if (reads.length > 0) await within(this.#time, slowReadMs, Promise.all(reads), undefined);
    const stretches: Stretch[] = [];
    for (const state of this.#states) {
      const messages = state.fetched;
      state.fetched = [];
      // A read that began before the progress was reloaded is of no use.
      if (messages[0]?.sequence === state.cursor + 1)
        stretches.push({ partition: state.partition, from: state.cursor, messages });
    }
    if (stretches.length > 0) await this.#apply(stretches);
    const more = stretches.some((stretch) => stretch.messages.length >= limits.batch);
    const behind = this.#states.some(
      (state) =>
        state.reading === null && !state.held && !state.lost && (state.foreign > state.cursor || !state.seenEnd),
    );
    if (behind || more) {
      this.#woken = true;
      if (!more) await this.#time.sleep(gatherMs, this.#stop.signal);
    }
  }

  #startRead(state: PartitionState, ownDue: boolean): Promise<void> | null {
    if (!this.#wants(state, ownDue)) return null;
    state.reading = this.#next(state)
      .then((messages) => {
        state.fetched = messages;
      })
      .catch(async (error: unknown) => {
        if (this.#stop.signal.aborted) return;
        this.#log.warn("a partition can't be read", { partition: state.partition, error: asError(error) });
        await this.#time.sleep(100, this.#stop.signal);
      })
      .finally(() => {
        state.reading = null;
        this.#notify();
      });
    return state.reading;
  }

  #wants(state: PartitionState, ownDue: boolean): boolean {
    if (state.held || state.lost) return false;
    const pending = state.foreign > state.cursor || !state.seenEnd;
    if (state.own.has(state.cursor + 1)) return ownDue || pending;
    return pending || state.target > state.cursor || this.#time.monotonic() - state.lookedAt >= safetyMs;
  }

  async #apply(stretches: readonly Stretch[]): Promise<void> {
    let applied: Applied;
    try {
      applied = await this.#store.apply(stretches);
    } catch (error) {
      if (!(error instanceof NeedsRecords)) throw error;
      this.#log.warn("own records are read back from the log", {
        partition: error.partition,
        sequence: error.sequence,
      });
      const partition = this.#states[error.partition];
      partition?.own.clear();
      if (partition !== undefined) partition.foreign = partition.target;
      this.#woken = true;
      return;
    }
    for (const { partition, messages } of stretches) {
      const state = this.#states[partition];
      const last = messages.at(-1);
      if (state === undefined || last === undefined) continue;
      state.cursor = last.sequence;
      if (state.target < state.cursor) state.target = state.cursor;
      for (const { sequence } of messages) {
        state.own.delete(sequence);
        this.#dropPushed(state, sequence);
      }
    }
    this.#onApplied(
      applied,
      stretches.flatMap((stretch) => stretch.messages),
    );
  }

  async #next(state: PartitionState): Promise<readonly Incoming[]> {
    const known: Incoming[] = [];
    for (let sequence = state.cursor + 1; known.length < knownAtOnce; sequence++) {
      const header = state.own.get(sequence);
      const pushed = state.pushed.get(sequence);
      if (header !== undefined) known.push({ sequence, shard: header.shard, header, batch: null });
      else if (pushed !== undefined) {
        const message = incoming(pushed);
        // What can't be read is judged by what the log has.
        if (message.fault !== undefined) break;
        known.push(message);
      } else break;
    }
    if (known.length > 0) return this.#whole(known);
    const now = this.#time.monotonic();
    state.lookedAt = now;
    const patient = state.behindSince === null || now - state.behindSince < patienceMs;
    const expected = state.cursor + 1;
    const found = await this.#read(state, patient ? 0 : 1);
    // The progress was reloaded meanwhile (the database went back, another process applied): what came says nothing.
    if (state.cursor + 1 !== expected) return [];
    const first = found[0];
    if (first !== undefined && first.sequence !== expected) {
      // Messages go only from the log's beginning.
      this.#log.error("the log begins behind what is applied here: a snapshot is needed", {
        partition: state.partition,
        applied: state.cursor,
        first: first.sequence,
      });
      state.lost = true;
      state.seenEnd = false;
      return [];
    }
    if (first !== undefined) state.behindSince = null;
    else if (state.target > state.cursor) state.behindSince ??= now;
    else {
      state.seenEnd = true;
      state.behindSince = null;
    }
    // Answers come at most once: behind one that was lost the rest is read again.
    const end = found.findIndex((message, index) => message.sequence !== expected + index);
    return this.#whole((end < 0 ? found : found.slice(0, end)).map(incoming));
  }

  async #read(state: PartitionState, firstRoute: number): Promise<StoredMessage[]> {
    let failure: unknown;
    for (let n = 0; n < this.#transport.routes; n++) {
      try {
        return await this.#transport.readFrom(
          state.partition,
          state.cursor + 1,
          { ...limits, timeoutMs: patienceMs },
          (firstRoute + n) % this.#transport.routes,
        );
      } catch (error) {
        failure = error;
        if (this.#stop.signal.aborted) break;
      }
    }
    throw asError(failure);
  }
}

function incoming(message: StoredMessage): Incoming {
  const shard = message.shard as ShardId;
  try {
    const batch = decodeBatch(message.data);
    return { sequence: message.sequence, shard, header: batch.header, batch };
  } catch (error) {
    return { sequence: message.sequence, shard, header: null, batch: null, fault: asError(error).message };
  }
}
