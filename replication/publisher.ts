import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Random } from "../infra/random.js";
import PQueue from "p-queue";
import {
  position as toPosition,
  type Epoch,
  type Partition,
  type Position,
  type ShardId,
  type SiteName,
} from "../shards/ids.js";
import type { Head, ShardMap } from "../shards/map.js";
import { batchId } from "./ownership.js";
import { encodeBatch, lastOf, type BatchHeader } from "./record.js";
import type { ShardLog } from "./shard-log.js";
import { ByteBudget } from "./byte-budget.js";
import { fitting, outboxRows, Unpublished, unpublishedBytes } from "./unpublished.js";
import type { Committed } from "./writer.js";
import type { Outbox, OutboxRow } from "./outbox.js";

/** What a publisher asks before it appends records. */
export interface PublisherLimits {
  /** The partition has room for records (ownership changes always have). */
  mayAppend(partition: Partition): boolean;
  /** Milliseconds to wait before these bytes of a backlog go; what was just committed does not ask. */
  backlogWaitMs(bytes: number): number;
}

export interface PublisherEvents {
  /** The log holds these bytes of ours at this sequence of the shard's partition: peers are told, and the own applier need not read it. */
  stored(shard: ShardId, sequence: number, header: BatchHeader, bytes: Uint8Array): void;
}

type Outgoing = (shard: ShardId, epoch: Epoch, rows: readonly OutboxRow[]) => Promise<readonly OutboxRow[]>;

interface Waiter {
  readonly epoch: Epoch;
  readonly position: Position;
  readonly resolve: () => void;
  readonly reject: (error: Problem) => void;
  readonly cancel: () => void;
}

/** Where an epoch ended, as the fold saw it. */
interface End {
  readonly epoch: Epoch;
  readonly last: Position;
}

interface ShardState {
  epoch: Epoch;
  end: End | null;
  /** Last position in the log, derived from the log; null: not known yet. */
  mark: Position | null;
  readonly unpublished: Unpublished;
  /** How often a tail below the mark was read in a row. */
  lower: number;
  running: boolean;
  again: boolean;
  /** The outbox may hold what this process did not commit itself. */
  look: boolean;
  /** The oldest commit known that is not published, and when it was (monotonic). */
  oldest: { readonly position: Position; readonly at: number } | null;
  /** The last commit known, and when it was. */
  newest: { readonly position: Position; readonly at: number } | null;
  readonly waiters: Set<Waiter>;
}

/** A tail below the mark is believed after so many looks, this far apart. */
const lowerTries = 40;
const lowerPauseMs = 50;
/** A full partition is looked at again so often. */
const fullPauseMs = 500;
/** What was committed so long ago is a backlog. */
const backlogAgeMs = 2_000;

/**
 * Outbox -> log (section 3, step 4): one append in flight per shard, batches grow while it waits. Wake-up by the
 * committing writer. A record of epoch e goes only behind a tail of epoch e (rule e).
 */
export class Publisher {
  readonly #log: ShardLog;
  readonly #outbox: Outbox;
  readonly #map: ShardMap;
  readonly #site: SiteName;
  readonly #generation: number;
  readonly #time: Time;
  readonly #random: Random;
  readonly #logger: Logger;
  readonly #events: PublisherEvents;
  readonly #limits: PublisherLimits | undefined;
  readonly #outgoing: Outgoing;
  readonly #shards = new Map<ShardId, ShardState>();
  readonly #unpublishedBudget = new ByteBudget(unpublishedBytes);
  readonly #queue: PQueue;
  readonly #stop = new AbortController();
  #active = false;

  constructor(options: {
    log: ShardLog;
    outbox: Outbox;
    map: ShardMap;
    site: SiteName;
    generation: number;
    time: Time;
    random: Random;
    logger: Logger;
    events: PublisherEvents;
    limits?: PublisherLimits;
    /** Makes of records what the log gets of them. */
    outgoing?: Outgoing;
  }) {
    this.#outgoing = options.outgoing ?? ((_shard, _epoch, rows) => Promise.resolve(rows));
    this.#log = options.log;
    this.#outbox = options.outbox;
    this.#map = options.map;
    this.#site = options.site;
    this.#generation = options.generation;
    this.#time = options.time;
    this.#random = options.random;
    this.#logger = options.logger.with({ component: "publisher" });
    this.#events = options.events;
    this.#limits = options.limits;
    // Every shard may wait for its append at once: those of a partition without a leader don't hold up the others.
    this.#queue = new PQueue({ concurrency: Math.max(64, options.map.shards) });
  }

  /** Only the process that holds the replicator's lock publishes; the compare-and-set would refuse a second one anyway. */
  setActive(active: boolean): void {
    this.#active = active;
    if (active) for (const head of this.#map.ownedBy(this.#site)) this.wake(head.shard);
  }

  /** From the committing writer, in position order per shard. */
  committed(records: readonly Committed[]): void {
    const touched = new Set<ShardId>();
    for (const record of records) {
      const state = this.#state(record.shard);
      // A late word of an epoch that has ended: the outbox has the record, if it is anybody's.
      if (record.epoch < state.epoch) continue;
      if (record.epoch > state.epoch) this.#enter(state, record.epoch);
      // The outbox may have given it, and the log have it, before the transaction's answer was here: it waits for nothing.
      if (state.mark !== null && record.position <= state.mark) continue;
      state.newest = { position: record.position, at: record.at };
      state.oldest ??= state.newest;
      if (this.#active) state.unpublished.add(record);
      touched.add(record.shard);
    }
    for (const shard of touched) this.#start(shard);
  }

  /** There may be something to publish that this process does not know of. */
  wake(shard: ShardId): void {
    this.#state(shard).look = true;
    this.#start(shard);
  }

  #start(shard: ShardId): void {
    const state = this.#state(shard);
    if (!this.#active || this.#stop.signal.aborted) return;
    if (state.running) {
      state.again = true;
      return;
    }
    state.running = true;
    void this.#queue.add(async () => {
      try {
        do {
          state.again = false;
          await this.#publish(shard, state);
        } while (state.again && !this.#stop.signal.aborted);
      } catch (error) {
        this.#logger.error("publishing failed", { shard, error: asError(error) });
        state.unpublished.clear();
        this.#time.after(500, () => this.wake(shard));
      } finally {
        state.running = false;
        if (state.again) this.#start(shard);
      }
    });
  }

  /** What is known of the published mark of the shard's epoch. */
  mark(shard: ShardId): Position | null {
    return this.#state(shard).mark;
  }

  /** Milliseconds since the oldest commit of the shard that is not in the log; 0 when all is. */
  unpublishedMs(shard: ShardId): number {
    const oldest = this.#shards.get(shard)?.oldest ?? null;
    return oldest === null ? 0 : Math.max(0, this.#time.monotonic() - oldest.at);
  }

  /** Resolves once the log holds the position. @throws Problem outcome_unknown */
  published(shard: ShardId, epoch: Epoch, position: Position, deadline: number): Promise<void> {
    const state = this.#state(shard);
    if (state.epoch === epoch && state.mark !== null && state.mark >= position) return Promise.resolve();
    if (epoch < state.epoch)
      return state.end?.epoch === epoch && position <= state.end.last
        ? Promise.resolve()
        : Promise.reject(new Problem("outcome_unknown", "the shard moved before the log was seen to have the write"));
    return new Promise((resolve, reject) => {
      const timer = this.#time.after(Math.max(0, deadline - this.#time.monotonic()), () =>
        waiter.reject(new Problem("outcome_unknown", "committed here, but the log did not take it in time")),
      );
      const done = (): void => {
        timer.cancel();
        state.waiters.delete(waiter);
      };
      const waiter: Waiter = {
        epoch,
        position,
        resolve: () => (done(), resolve()),
        reject: (error) => (done(), reject(error)),
        cancel: done,
      };
      state.waiters.add(waiter);
      if (state.newest === null || state.newest.position < position) this.wake(shard);
      else this.#start(shard);
    });
  }

  /** The epoch ended at `last` (an open was folded): who waits for more will not get it. */
  ended(shard: ShardId, epoch: Epoch, last: Position): void {
    const state = this.#state(shard);
    if (state.end === null || state.end.epoch < epoch) state.end = { epoch, last };
    if (state.epoch <= epoch) this.#enter(state, (epoch + 1) as Epoch);
    for (const waiter of [...state.waiters]) {
      if (waiter.epoch > epoch) continue;
      if (waiter.epoch === epoch && waiter.position <= last) waiter.resolve();
      else
        waiter.reject(
          new Problem("outcome_unknown", "the shard moved before the log had the write; see divergent operations"),
        );
    }
  }

  /** The mark as another process of the datacenter, or the fold, saw it. */
  observeMark(shard: ShardId, epoch: Epoch, mark: Position): void {
    const state = this.#state(shard);
    if (state.epoch !== epoch) {
      if (epoch < state.epoch) return;
      this.#enter(state, epoch);
    }
    if (state.mark === null || mark > state.mark) this.#advance(state, mark, shard);
  }

  /** Publishes until the log holds `position` of the epoch, or the deadline passes. @returns whether it does. */
  async flush(head: Pick<Head, "shard" | "epoch" | "position">, deadline: number): Promise<boolean> {
    const state = this.#state(head.shard);
    if (state.epoch === head.epoch && state.mark !== null && state.mark >= head.position) return true;
    try {
      await this.published(head.shard, head.epoch, head.position, deadline);
      return true;
    } catch {
      return false;
    }
  }

  stop(): Promise<void> {
    this.#stop.abort();
    for (const state of this.#shards.values())
      for (const waiter of [...state.waiters]) waiter.reject(new Problem("outcome_unknown", "this process stops"));
    return this.#queue.onIdle();
  }

  async #publish(shard: ShardId, state: ShardState): Promise<void> {
    const head = this.#map.get(shard);
    if (head === undefined || head.owner !== this.#site || head.state === "replica") return;
    if (state.epoch !== head.epoch) this.#enter(state, head.epoch);
    const { epoch } = head;
    await this.#log.exclusive(shard, async () => {
      let tail = await this.#log.tail(shard, this.#time.monotonic() + 2_000, epoch);
      if (tail === undefined) throw new Error("the log's tail can't be read");
      // A tail that an append has shown is the log's, not a replica's view of it.
      for (let settled = false; ; settled = true) {
        // Rule e: only behind a tail of this epoch and owner; else the shard has moved, and the fold says so.
        if (
          this.#stop.signal.aborted ||
          state.epoch !== epoch ||
          tail.header.epoch !== epoch ||
          tail.header.owner !== this.#site
        )
          return;
        if (state.mark !== null && lastOf(tail.header) < state.mark && !settled && state.lower++ < lowerTries) {
          // Perhaps only a replica that lags: the log decides, and that takes another look.
          this.#log.forget(shard);
          this.#time.after(lowerPauseMs, () => this.wake(shard));
          return;
        }
        state.lower = 0;
        this.#advance(state, lastOf(tail.header), shard);
        if (this.#limits?.mayAppend(head.partition) === false) {
          this.#time.after(fullPauseMs, () => this.wake(shard));
          return;
        }
        const rows = await this.#outgoing(shard, epoch, await this.#next(shard, state));
        const first = rows[0];
        if (first === undefined || state.epoch !== epoch) return;
        if (first.position !== lastOf(tail.header) + 1)
          throw new Error(`record ${first.position} does not follow the log's tail ${lastOf(tail.header)}`);
        await this.#slowDown(rows);
        if (this.#stop.signal.aborted || state.epoch !== epoch) return;
        const header: BatchHeader = {
          kind: "records",
          generation: this.#generation,
          shard,
          epoch,
          owner: this.#site,
          batchId: batchId(this.#random),
          first: first.position,
          count: rows.length,
          committedAt: first.committedAt,
        };
        const batch = { header, records: rows.map((row) => row.record), open: null };
        const bytes = encodeBatch(batch);
        const result = await this.#log.append(tail.sequence, batch, Infinity, this.#stop.signal, bytes);
        if (result.kind === "unknown") return;
        if (result.kind === "stored") {
          tail = { sequence: result.sequence, header };
          this.#events.stored(shard, result.sequence, header, bytes);
          if (this.#log.contended(shard)) {
            // A busy shard always has more: its statements, without which nothing of its partition can be purged, have their turn.
            this.#advance(state, lastOf(header), shard);
            state.again = true;
            return;
          }
        } else tail = result.tail;
      }
    });
  }

  /** A backlog drains at a limited rate, so that what is written meanwhile is not hurt by it. */
  async #slowDown(rows: readonly OutboxRow[]): Promise<void> {
    const [first] = rows;
    if (this.#limits === undefined || first === undefined || this.#time.wall() - first.committedAt < backlogAgeMs)
      return;
    const bytes = rows.reduce((sum, row) => sum + row.record.length, 0);
    const ms = this.#limits.backlogWaitMs(bytes);
    if (ms > 0) await this.#time.sleep(ms, this.#stop.signal);
  }

  async #next(shard: ShardId, state: ShardState): Promise<readonly OutboxRow[]> {
    const mark = state.mark ?? toPosition(0);
    const known = state.unpublished.next(mark, this.#time);
    if (known.length > 0) return known;
    // After the last own commit there is nothing more, unless another process has said so: no look for each batch.
    if (!state.look && (state.newest === null || state.newest.position <= mark)) return [];
    state.look = false;
    const found = await this.#outbox.read(shard, state.epoch, mark, outboxRows);
    const rows = fitting(found, (row) => row, mark);
    if (rows.length > 0) state.look = true;
    return rows;
  }

  #advance(state: ShardState, mark: Position, shard: ShardId): void {
    if (state.mark === mark) return;
    // The log decides, also when it has lost its tail: what it does not hold is appended again.
    if (state.mark !== null && mark < state.mark)
      this.#logger.warn("publishes from an earlier tail than was known", {
        shard,
        epoch: state.epoch,
        mark: state.mark,
        tail: mark,
      });
    state.mark = mark;
    if (state.oldest !== null && state.oldest.position <= mark) {
      const next = state.unpublished.after(mark);
      const newest = state.newest !== null && state.newest.position > mark ? state.newest : null;
      state.oldest = next === undefined ? newest : { position: next.position, at: next.at };
    }
    for (const waiter of [...state.waiters])
      if (waiter.epoch === state.epoch && waiter.position <= mark) waiter.resolve();
  }

  #enter(state: ShardState, epoch: Epoch): void {
    // Back to an earlier one: what was known of the later is forgotten with it.
    if (epoch < state.epoch) state.look = true;
    state.epoch = epoch;
    state.mark = null;
    state.unpublished.clear();
    state.oldest = null;
    state.newest = null;
  }

  #state(shard: ShardId): ShardState {
    let state = this.#shards.get(shard);
    if (state === undefined) {
      state = {
        epoch: (this.#map.get(shard)?.epoch ?? 0) as Epoch,
        mark: null,
        unpublished: new Unpublished(this.#unpublishedBudget),
        lower: 0,
        running: false,
        again: false,
        look: false,
        end: null,
        oldest: null,
        newest: null,
        waiters: new Set(),
      };
      this.#shards.set(shard, state);
    }
    return state;
  }
}
