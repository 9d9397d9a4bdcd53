import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Partition, ShardId } from "../shards/ids.js";
import type { ByteBudget } from "./byte-budget.js";
import { decodeBatch, type BatchHeader } from "./record.js";
import type { Incoming } from "./replica-store.js";
import type { LogTransport, StoredMessage } from "./shard-log.js";

/** How long the nearest replica may be silent or behind before another one is read (section 3, step 5). */
const patienceMs = 250;
const safetyMs = 500;
/** What one read brings at most. */
export const readLimits = { batch: 500, maxBytes: 1_000_000 };
const knownAtOnce = 1_000;
const ownKept = 50_000;
/** Messages behind the cursor that are kept for later. */
const pushedAhead = 2_000;

/**
 * What a datacenter gets of one partition, in order: own appends need no read, what publishers push none either, the rest is
 * read from the nearest replica of the log.
 */
export class PartitionFeed {
  readonly partition: Partition;
  readonly #transport: LogTransport;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #budget: ByteBudget;
  readonly #aborted: () => boolean;
  /** Own appends by sequence: their records are in the database already. */
  readonly #own = new Map<number, BatchHeader>();
  /** Messages that their publisher sent along with the word that the log holds them, by sequence. */
  readonly #pushed = new Map<number, StoredMessage>();
  /** Folded in up to here. */
  #cursor = 0;
  /** The log is said to hold this one. */
  #target = 0;
  /** The last of them that is not an own append. */
  #foreign = 0;
  /** A publisher has told of the log's end since this process began to apply. */
  #hinted = false;
  /** When it was last read (monotonic). */
  #lookedAt = -Infinity;
  /** Monotonic time since which the nearest replica has not given what the log is said to hold. */
  #behindSince: number | null = null;
  /** Nothing is read of it: what comes next is not in the log any more, or shall not be replayed (snapshot.ts). */
  held = false;
  /** The log begins behind what comes next. */
  lost = false;
  /** A read under way, and what the last one brought. */
  reading: Promise<void> | null = null;
  fetched: readonly Incoming[] = [];
  /** The end of the log was reached since this process began to apply. */
  seenEnd = false;

  constructor(options: {
    partition: Partition;
    transport: LogTransport;
    time: Time;
    log: Logger;
    budget: ByteBudget;
    aborted: () => boolean;
  }) {
    this.partition = options.partition;
    this.#transport = options.transport;
    this.#time = options.time;
    this.#log = options.log;
    this.#budget = options.budget;
    this.#aborted = options.aborted;
  }

  get cursor(): number {
    return this.#cursor;
  }

  /** Messages that the log is said to hold and that are not folded in. */
  get behind(): number {
    return Math.max(0, this.#target - this.#cursor - this.#own.size);
  }

  /** This process begins to apply: what it heard before may be old. */
  begin(): void {
    this.seenEnd = false;
    this.#hinted = false;
    for (const sequence of [...this.#pushed.keys()]) this.#drop(sequence);
  }

  /** Goes on behind `cursor`, as the database says. */
  reload(cursor: number): void {
    if (cursor !== this.#cursor) this.lost = false;
    this.#cursor = cursor;
    this.#foreign = Math.max(this.#foreign, this.#target);
    this.#own.clear();
    for (const sequence of [...this.#pushed.keys()]) if (sequence <= cursor) this.#drop(sequence);
  }

  /** Reads own appends like any other: the database does not have their records. */
  forgetOwn(): void {
    this.#own.clear();
    this.#foreign = this.#target;
  }

  /** @returns whether that is news */
  hint(sequence: number): boolean {
    if (sequence <= this.#cursor || this.#own.has(sequence)) return false;
    if (sequence > this.#target) this.#target = sequence;
    if (sequence > this.#foreign) this.#foreign = sequence;
    this.#hinted = true;
    return true;
  }

  /** @returns whether that is news; the message is kept as far as there is room, else it is read. */
  push(message: StoredMessage): boolean {
    const { sequence, data } = message;
    if (!this.hint(sequence)) return false;
    if (!this.#pushed.has(sequence) && sequence <= this.#cursor + pushedAhead && this.#budget.take(data.length))
      // A copy: what came is a part of a larger buffer.
      this.#pushed.set(sequence, { ...message, data: data.slice() });
    return true;
  }

  ownAppend(sequence: number, header: BatchHeader): boolean {
    if (sequence <= this.#cursor) return false;
    if (this.#own.size < ownKept) this.#own.set(sequence, header);
    if (sequence > this.#target) this.#target = sequence;
    return true;
  }

  /** Something is to be had that does not merely wait for other work to go along with. */
  get pending(): boolean {
    return this.#readable && (this.#foreign > this.#cursor || !this.seenEnd);
  }

  /** @param ownDue marks of own appends have waited long enough */
  wants(ownDue: boolean): boolean {
    if (!this.#readable) return false;
    if (this.#own.has(this.#cursor + 1)) return ownDue || this.pending;
    return this.pending || this.#target > this.#cursor || this.#time.monotonic() - this.#lookedAt >= safetyMs;
  }

  /** These are folded in. */
  applied(messages: readonly Incoming[]): void {
    const last = messages.at(-1);
    if (last === undefined) return;
    this.#cursor = last.sequence;
    if (this.#target < this.#cursor) this.#target = this.#cursor;
    for (const { sequence } of messages) {
      this.#own.delete(sequence);
      this.#drop(sequence);
    }
    if (this.#hinted && this.#cursor >= this.#foreign) this.seenEnd = true;
  }

  /** What comes next, without a gap; empty at the log's end. */
  async next(): Promise<readonly Incoming[]> {
    const known = this.#known();
    if (known.length > 0) return known;
    const now = this.#time.monotonic();
    this.#lookedAt = now;
    const patient = this.#behindSince === null || now - this.#behindSince < patienceMs;
    const expected = this.#cursor + 1;
    const found = await this.#read(patient ? 0 : 1);
    // The progress was reloaded meanwhile (the database went back, another process applied): what came says nothing.
    if (this.#cursor + 1 !== expected) return [];
    const first = found[0];
    if (first !== undefined && first.sequence !== expected) {
      // Messages go only from the log's beginning.
      this.#log.error("the log begins behind what is applied here: a snapshot is needed", {
        partition: this.partition,
        applied: this.#cursor,
        first: first.sequence,
      });
      this.lost = true;
      this.seenEnd = false;
      return [];
    }
    if (first !== undefined) this.#behindSince = null;
    else if (this.#target > this.#cursor) this.#behindSince ??= now;
    else {
      this.seenEnd = true;
      this.#behindSince = null;
    }
    // Answers come at most once: behind one that was lost the rest is read again.
    const end = found.findIndex((message, index) => message.sequence !== expected + index);
    return (end < 0 ? found : found.slice(0, end)).map(incoming);
  }

  get #readable(): boolean {
    return !this.held && !this.lost;
  }

  /** What follows the cursor and needs no read. */
  #known(): Incoming[] {
    const known: Incoming[] = [];
    for (let sequence = this.#cursor + 1; known.length < knownAtOnce; sequence++) {
      const header = this.#own.get(sequence);
      const pushed = this.#pushed.get(sequence);
      if (header !== undefined) known.push({ sequence, shard: header.shard, header, batch: null });
      else if (pushed !== undefined) {
        const message = incoming(pushed);
        // What can't be read is judged by what the log has.
        if (message.fault !== undefined) break;
        known.push(message);
      } else break;
    }
    return known;
  }

  async #read(firstRoute: number): Promise<StoredMessage[]> {
    let failure: unknown;
    for (let n = 0; n < this.#transport.routes; n++) {
      try {
        return await this.#transport.readFrom(
          this.partition,
          this.#cursor + 1,
          { ...readLimits, timeoutMs: patienceMs },
          (firstRoute + n) % this.#transport.routes,
        );
      } catch (error) {
        failure = error;
        if (this.#aborted()) break;
      }
    }
    throw asError(failure);
  }

  #drop(sequence: number): void {
    const message = this.#pushed.get(sequence);
    if (message === undefined) return;
    this.#pushed.delete(sequence);
    this.#budget.give(message.data.length);
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
