import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Partition, ShardId } from "../shards/ids.js";
import { partitionOf } from "../shards/ids.js";
import { decodeHeader, encodeBatch, type Batch, type BatchHeader } from "./record.js";

/** What one try of an append brings; see infra/nats/streams.ts. */
export type TransportAnswer =
  | { readonly kind: "stored"; readonly sequence: number }
  | { readonly kind: "refused"; readonly lastSequence: number }
  | { readonly kind: "busy" | "silent" | "nowhere" };

export interface StoredMessage {
  readonly sequence: number;
  /** Which shard's, as its subject says: known even when the message can't be read. */
  readonly shard: number;
  readonly data: Uint8Array;
}

/** The streams as the log needs them: LogStreams of infra/nats, or the simulation's memory. Routes are ways to reach them, 0 the nearest. */
export interface LogTransport {
  readonly routes: number;
  append(
    partition: number,
    shard: number,
    data: Uint8Array,
    expected: number,
    timeoutMs: number,
    route: number,
  ): Promise<TransportAnswer>;
  readOne(partition: number, sequence: number, timeoutMs: number, route: number): Promise<StoredMessage | undefined>;
  readLast(partition: number, shard: number, timeoutMs: number, route: number): Promise<StoredMessage | undefined>;
  readFrom(
    partition: number,
    sequence: number,
    limits: { readonly batch: number; readonly maxBytes: number; readonly timeoutMs: number },
    route: number,
  ): Promise<StoredMessage[]>;
}

/** The last message of a shard, as far as is known. A lower bound: only an append tells whether it still is the last. */
export interface Tail {
  readonly sequence: number;
  readonly header: BatchHeader;
}

export type AppendResult =
  | { readonly kind: "stored"; readonly sequence: number }
  /** Refused: somebody else's message is the tail. */
  | { readonly kind: "refused"; readonly tail: Tail }
  /** The deadline passed: it may yet be stored. */
  | { readonly kind: "unknown" };

const firstTryMs = 250;
const longestTryMs = 1_000;
const alarmMs = 5_000;

/**
 * Typed access to the log of each shard: one append in flight per shard, whatever its kind, and an append without an
 * answer is settled by repeating the same bytes with the same expected sequence until it is stored or refused (section 2).
 */
export class ShardLog {
  readonly #transport: LogTransport;
  readonly #partitions: number;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #tails = new Map<ShardId, Tail>();
  readonly #queues = new Map<ShardId, Promise<unknown>>();
  /** How many wait for their turn, per shard. */
  readonly #waiting = new Map<ShardId, number>();
  readonly #latencies: number[] = [];
  #p99 = 0;
  #untilSort = 0;

  constructor(options: { transport: LogTransport; partitions: number; time: Time; log: Logger }) {
    this.#transport = options.transport;
    this.#partitions = options.partitions;
    this.#time = options.time;
    this.#log = options.log.with({ component: "shard-log" });
  }

  partitionOf(shard: ShardId): Partition {
    return partitionOf(shard, this.#partitions);
  }

  /** Runs `work` when no other append of the shard is under way in this process: who came first has the first turn. */
  exclusive<T>(shard: ShardId, work: () => Promise<T>): Promise<T> {
    const before = this.#queues.get(shard) ?? Promise.resolve();
    this.#waiting.set(shard, (this.#waiting.get(shard) ?? 0) + 1);
    const turn = (): Promise<T> => {
      this.#waiting.set(shard, (this.#waiting.get(shard) ?? 1) - 1);
      return work();
    };
    const mine = before.then(turn, turn);
    this.#queues.set(
      shard,
      mine.catch(() => undefined),
    );
    return mine;
  }

  /** Somebody waits for his turn at the shard. */
  contended(shard: ShardId): boolean {
    return (this.#waiting.get(shard) ?? 0) > 0;
  }

  /** A message of the shard was seen at `sequence`: by the applier, or by an append. */
  observe(shard: ShardId, sequence: number, header: BatchHeader): void {
    const known = this.#tails.get(shard);
    if (known === undefined || sequence > known.sequence) this.#tails.set(shard, { sequence, header });
  }

  /** What was seen last may be old: the next look reads it again. */
  forget(shard: ShardId): void {
    this.#tails.delete(shard);
  }

  known(shard: ShardId): Tail | undefined {
    return this.#tails.get(shard);
  }

  /**
   * The newest message known, read from the log when none is, or when it is of an epoch before `since` (another process of the
   * datacenter may have seen newer ones). It may be stale: only an append decides. Undefined when none can be read in time.
   */
  async tail(shard: ShardId, deadline: number, since = 0): Promise<Tail | undefined> {
    for (let route = 0; this.#time.monotonic() < deadline; route++) {
      const known = this.#tails.get(shard);
      if (known !== undefined && known.header.epoch >= since) return known;
      try {
        const found = await this.#transport.readLast(
          this.partitionOf(shard),
          shard,
          this.#left(deadline, firstTryMs),
          route % this.#transport.routes,
        );
        if (found !== undefined) this.observe(shard, found.sequence, decodeHeader(found.data));
        if ((this.#tails.get(shard)?.header.epoch ?? -1) >= since) continue;
      } catch (error) {
        this.#log.debug("reading a tail failed", { shard, route, error: asError(error) });
      }
      await this.#time.sleep(20);
    }
    return undefined;
  }

  /**
   * Appends behind message `expected` and settles the outcome, at most until `deadline` (monotonic; Infinity: until it is known).
   * Call it within `exclusive`.
   */
  async append(
    expected: number,
    batch: Batch,
    deadline: number,
    signal?: AbortSignal,
    bytes = encodeBatch(batch),
  ): Promise<AppendResult> {
    const { shard } = batch.header;
    const partition = this.partitionOf(shard);
    let route = 0;
    let lower = 0;
    for (let tries = 0; ; tries++) {
      if (signal?.aborted === true || this.#time.monotonic() >= deadline) return { kind: "unknown" };
      const began = this.#time.monotonic();
      let answer: TransportAnswer;
      try {
        answer = await this.#transport.append(
          partition,
          shard,
          bytes,
          expected,
          this.#left(deadline, this.#tryMs()),
          route % this.#transport.routes,
        );
      } catch (error) {
        this.#log.error("an append was refused", { shard, epoch: batch.header.epoch, error: asError(error) });
        answer = { kind: "busy" };
        await this.#time.sleep(200, signal);
      }
      switch (answer.kind) {
        case "stored":
          this.#took(this.#time.monotonic() - began);
          this.observe(shard, answer.sequence, batch.header);
          return { kind: "stored", sequence: answer.sequence };
        case "refused": {
          if (answer.lastSequence < expected && ++lower < 10) {
            // A former leader may answer with an old tail. Only one that keeps saying so is believed.
            await this.#time.sleep(20 * lower, signal);
            break;
          }
          const tail = await this.#at(shard, answer.lastSequence, deadline, signal);
          // It may have been purged below a newer one: the next try is told of that.
          if (tail === undefined) break;
          if (answer.lastSequence < expected)
            this.#log.error("the log's tail is below what was seen in it", {
              shard,
              expected,
              found: answer.lastSequence,
            });
          if (answer.lastSequence < expected) this.#tails.delete(shard);
          this.observe(shard, tail.sequence, tail.header);
          return tail.header.batchId === batch.header.batchId
            ? { kind: "stored", sequence: tail.sequence }
            : { kind: "refused", tail };
        }
        case "busy":
          await this.#time.sleep(Math.min(50, 2 + tries * 2), signal);
          break;
        case "silent":
          route++;
          break;
        case "nowhere":
          route++;
          await this.#time.sleep(Math.min(100, 10 + tries * 5), signal);
      }
    }
  }

  /** The message that is known to be at `sequence`, from whichever replica has it; undefined when none gives it for some seconds. */
  async #at(shard: ShardId, sequence: number, deadline: number, signal?: AbortSignal): Promise<Tail | undefined> {
    const alarmAt = this.#time.monotonic() + alarmMs;
    for (let tries = 0; this.#time.monotonic() < deadline && signal?.aborted !== true; tries++) {
      try {
        const found = await this.#transport.readOne(
          this.partitionOf(shard),
          sequence,
          this.#left(deadline, firstTryMs),
          tries % this.#transport.routes,
        );
        if (found !== undefined) return { sequence: found.sequence, header: decodeHeader(found.data) };
      } catch (error) {
        this.#log.debug("reading a message failed", { shard, sequence, error: asError(error) });
      }
      if (this.#time.monotonic() >= alarmAt) {
        this.#log.error("a message that the log says it holds can't be read anywhere", { shard, sequence, tries });
        return undefined;
      }
      await this.#time.sleep(Math.min(50, 2 + tries * 2), signal);
    }
    return undefined;
  }

  /** Time-out of one try: 250 ms, or four times the recent p99 where that is more. */
  #tryMs(): number {
    return Math.min(longestTryMs, Math.max(firstTryMs, 4 * this.#p99));
  }

  /** The p99 is looked up anew now and then, and at once when it grows: this runs for each append. */
  #took(ms: number): void {
    this.#latencies.push(ms);
    if (this.#latencies.length > 100) this.#latencies.shift();
    if (ms <= this.#p99 && this.#untilSort-- > 0) return;
    this.#untilSort = 20;
    [, this.#p99 = 0] = [...this.#latencies].sort((a, b) => b - a);
  }

  #left(deadline: number, ms: number): number {
    return Math.max(1, Math.min(ms, deadline - this.#time.monotonic()));
  }
}
