import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { partition as toPartition, type Partition, type ShardId } from "../shards/ids.js";
import { decodeBatch, type BatchHeader } from "./record.js";
import { NeedsRecords, Overtaken, type Applied, type Incoming, type ReplicaStore } from "./replica-store.js";
import type { LogTransport, StoredMessage } from "./shard-log.js";

interface PartitionState {
  readonly partition: Partition;
  /** Folded in up to here. */
  cursor: number;
  /** The log is said to hold this one. */
  target: number;
  /** Monotonic time since which the nearest replica has not given what the log is said to hold. */
  behindSince: number | null;
  /** Own appends by sequence: their records are in the database already. */
  readonly own: Map<number, BatchHeader>;
  running: boolean;
  again: boolean;
  lazy: boolean;
  /** The end of the log was reached since this process began to apply. */
  seenEnd: boolean;
}

/** How long the nearest replica may be silent or behind before another one is read (section 3, step 5). */
const patienceMs = 250;
const lazyMs = 200;
const safetyMs = 500;
const limits = { batch: 500, maxBytes: 2_000_000 };

/**
 * Log -> the datacenter's tables: each partition from a replica in the own site, many messages per transaction, each
 * shard in order. Woken by the publishers' hints; a slow look around is the safety net.
 */
export class Applier {
  readonly #transport: LogTransport;
  readonly #store: ReplicaStore;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #onApplied: (applied: Applied, messages: readonly Incoming[]) => void;
  readonly #states: PartitionState[];
  readonly #stop = new AbortController();
  #active = false;
  #loaded = false;

  constructor(options: {
    transport: LogTransport;
    store: ReplicaStore;
    partitions: number;
    time: Time;
    log: Logger;
    onApplied: (applied: Applied, messages: readonly Incoming[]) => void;
  }) {
    this.#transport = options.transport;
    this.#store = options.store;
    this.#time = options.time;
    this.#log = options.log.with({ component: "applier" });
    this.#onApplied = options.onApplied;
    this.#states = Array.from({ length: options.partitions }, (_, p) => ({
      partition: toPartition(p),
      cursor: 0,
      target: 0,
      behindSince: null,
      own: new Map(),
      running: false,
      again: false,
      lazy: false,
      seenEnd: false,
    }));
  }

  /** Only the process that holds the replicator's lock applies; the progress check would refuse a second one anyway. */
  async setActive(active: boolean): Promise<void> {
    if (active && !this.#active) {
      await this.reload();
      this.#active = true;
      for (const state of this.#states) this.#wake(state);
    } else this.#active = active;
  }

  async start(): Promise<void> {
    void this.#safetyNet();
  }

  /** Reads the progress again from the database. */
  async reload(): Promise<void> {
    const progress = await this.#store.progress();
    for (const state of this.#states) {
      state.cursor = progress.get(state.partition) ?? 0;
      state.own.clear();
    }
    this.#loaded = true;
  }

  /** A publisher says that the log holds this message. */
  hint(partition: Partition, sequence: number): void {
    const state = this.#states[partition];
    if (state === undefined || sequence <= state.cursor) return;
    if (sequence > state.target) state.target = sequence;
    this.#wake(state);
  }

  /** An own append: nothing of it needs to be read. */
  ownAppend(partition: Partition, shard: ShardId, sequence: number, header: BatchHeader): void {
    const state = this.#states[partition];
    if (state === undefined || sequence <= state.cursor) return;
    if (state.own.size < 50_000) state.own.set(sequence, header);
    if (sequence > state.target) state.target = sequence;
    if (state.lazy || state.running) return;
    // Only the mark moves: that can wait for more of its kind.
    state.lazy = true;
    this.#time.after(lazyMs, () => {
      state.lazy = false;
      this.#wake(state);
    });
  }

  /** Every partition was seen to its end since this process began to apply. */
  get caughtUp(): boolean {
    return this.#active && this.#states.every((state) => state.seenEnd);
  }

  get active(): boolean {
    return this.#active;
  }

  /** Sequence up to which a partition is folded in, and up to which the log is known to reach. */
  progress(partition: Partition): { cursor: number; target: number } {
    const state = this.#states[partition];
    return { cursor: state?.cursor ?? 0, target: state?.target ?? 0 };
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#active = false;
    while (this.#states.some((state) => state.running)) await this.#time.sleep(5);
  }

  async #safetyNet(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      for (const state of this.#states) this.#wake(state);
      await this.#time.sleep(safetyMs, this.#stop.signal);
    }
  }

  #wake(state: PartitionState): void {
    if (!this.#active || !this.#loaded || this.#stop.signal.aborted) return;
    if (state.running) {
      state.again = true;
      return;
    }
    state.running = true;
    void this.#drain(state).finally(() => {
      state.running = false;
      if (state.again) {
        state.again = false;
        this.#wake(state);
      }
    });
  }

  async #drain(state: PartitionState): Promise<void> {
    for (let empty = 0; !this.#stop.signal.aborted && this.#active; ) {
      try {
        state.again = false;
        const messages = await this.#next(state);
        if (messages.length > 0) {
          empty = 0;
          state.behindSince = null;
          await this.#apply(state, messages);
          continue;
        }
        if (state.cursor >= state.target) {
          state.seenEnd = true;
          state.behindSince = null;
          return;
        }
        // The log holds more than the nearest replica gives: it is about to come, or the replica is stuck.
        state.behindSince ??= this.#time.monotonic();
        await this.#time.sleep(Math.min(50, 2 * ++empty), this.#stop.signal);
      } catch (error) {
        if (error instanceof Overtaken) await this.reload();
        else {
          this.#log.warn("applying failed", { partition: state.partition, error: asError(error) });
          await this.#time.sleep(100, this.#stop.signal);
          if (!(await this.reload().then(() => true, () => false))) return;
        }
      }
    }
  }

  async #apply(state: PartitionState, messages: readonly Incoming[]): Promise<void> {
    let applied: Applied;
    try {
      applied = await this.#store.apply(state.partition, state.cursor, messages);
    } catch (error) {
      if (!(error instanceof NeedsRecords)) throw error;
      this.#log.warn("own records are read back from the log", { partition: state.partition, sequence: error.sequence });
      state.own.clear();
      return;
    }
    state.cursor = applied.through;
    if (state.target < state.cursor) state.target = state.cursor;
    for (const message of messages) state.own.delete(message.sequence);
    this.#onApplied(applied, messages);
  }

  async #next(state: PartitionState): Promise<Incoming[]> {
    const own: Incoming[] = [];
    for (let sequence = state.cursor + 1; own.length < limits.batch; sequence++) {
      const header = state.own.get(sequence);
      if (header === undefined) break;
      own.push({ sequence, shard: header.shard, header, batch: null });
    }
    if (own.length > 0) return own;
    const patient = state.behindSince === null || this.#time.monotonic() - state.behindSince < patienceMs;
    const found = await this.#read(state, patient ? 0 : 1);
    const expected = state.cursor + 1;
    const first = found[0];
    if (first !== undefined && first.sequence !== expected)
      throw new Error(`the log of partition ${state.partition} starts at ${first.sequence}, behind the own mark ${state.cursor}: a snapshot is needed`);
    return found.map(incoming);
  }

  async #read(state: PartitionState, firstRoute: number): Promise<StoredMessage[]> {
    let failure: unknown;
    for (let n = 0; n < this.#transport.routes; n++) {
      try {
        return await this.#transport.readFrom(state.partition, state.cursor + 1, { ...limits, timeoutMs: patienceMs }, (firstRoute + n) % this.#transport.routes);
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
