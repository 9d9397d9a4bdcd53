import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { awayProblem, isDataFault } from "../infra/postgres/faults.js";
import type { Random } from "../infra/random.js";
import type { Tracing } from "../infra/tracing.js";
import { type Epoch, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import { CommitUnknown, type OwnerStore, type OwnerTransaction } from "./owner-store.js";
import { Unit } from "./unit.js";
import type { Operation, Outcome, ShardWriter, Written } from "./work.js";

/** What the writer asks before a transaction and again before the acknowledgement (rule f). */
export interface WriteGate {
  /** @throws Problem that says why this node may not write the shard now. @returns the epoch that it may write in. */
  enter(shard: ShardId): Epoch;
  /** Undefined: the bound of what is not in the log yet leaves room. Else resolves once it does. @throws Problem unpublished_limit by the deadline */
  room?(shard: ShardId, durability: "local" | "replicated", deadline: number): Promise<void> | undefined;
  /** Whether what was committed in this epoch may be acknowledged. */
  mayAcknowledge(shard: ShardId, epoch: Epoch): boolean;
}

/** A committed record on its way to the log. */
export interface Committed {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly record: Uint8Array;
  /** Monotonic milliseconds. */
  readonly at: number;
}

export interface WriterEvents {
  /** After a commit, in position order per shard: the publisher's wake-up. */
  committed(records: readonly Committed[]): void;
  /** A commit got no answer: these shards may have records that nobody was told of. */
  uncertain(shards: readonly ShardId[]): void;
  /** Resolves once the log holds the position; rejects with a Problem outcome_unknown when that can't be known by the deadline. */
  published(shard: ShardId, epoch: Epoch, position: Position, deadline: number): Promise<void>;
}

interface Pending {
  readonly operation: Operation;
  readonly epoch: Epoch;
  readonly deadline: number;
  /** The append will prove ownership: no lease is needed for the answer (rule f). */
  readonly proven: boolean;
  readonly resolve: (written: Written) => void;
  readonly reject: (error: unknown) => void;
}

const maxBatch = 256;
const maxTransactions = 2;
const maxWaiting = 20_000;

/**
 * The owner's group-committed transaction (section 3, step 2): all writes that wait are taken together into few multi-row
 * statements. The statement that numbers the records checks epoch and state, so nothing is written above a fence (invariant 1).
 */
export class Writer implements ShardWriter {
  readonly #store: OwnerStore;
  readonly #gate: WriteGate;
  readonly #events: WriterEvents;
  readonly #site: SiteName;
  readonly #time: Time;
  readonly #random: Random;
  readonly #log: Logger;
  readonly #tracing: Tracing | undefined;
  readonly #waiting = new Map<ShardId, Pending[]>();
  readonly #busy = new Set<ShardId>();
  #count = 0;
  #transactions = 0;
  #scheduled = false;

  constructor(options: {
    store: OwnerStore;
    gate: WriteGate;
    events: WriterEvents;
    site: SiteName;
    time: Time;
    random: Random;
    log: Logger;
    /** Where an exporter is configured. */
    tracing?: Tracing | undefined;
  }) {
    this.#store = options.store;
    this.#gate = options.gate;
    this.#events = options.events;
    this.#site = options.site;
    this.#time = options.time;
    this.#random = options.random;
    this.#log = options.log.with({ component: "writer" });
    this.#tracing = options.tracing;
  }

  async write(
    operation: Operation,
    options: { readonly durability: "local" | "replicated"; readonly deadline: number },
  ): Promise<Written> {
    const { shard, unlogged } = operation;
    const room = unlogged === true ? undefined : this.#gate.room?.(shard, options.durability, options.deadline);
    if (room !== undefined) await room;
    const written = await this.#enqueue(operation, options.deadline, options.durability === "replicated");
    // What was written in an epoch that has ended, and is still here, is in the log.
    const settled = written.replayed && written.epoch < written.openEpoch;
    if (options.durability === "replicated" && !settled)
      await this.#events.published(operation.shard, written.epoch, written.position, options.deadline);
    return written;
  }

  /** Waits until no transaction is under way in these shards (a switchover's step). */
  get idle(): boolean {
    return this.#transactions === 0 && this.#count === 0;
  }

  isBusy(shard: ShardId): boolean {
    return this.#busy.has(shard) || this.#waiting.has(shard);
  }

  #enqueue(operation: Operation, deadline: number, proven: boolean): Promise<Written> {
    const epoch = this.#gate.enter(operation.shard);
    if (this.#count >= maxWaiting) throw new Problem("overloaded", "too many writes are waiting");
    return new Promise((resolve, reject) => {
      const pending: Pending = { operation, epoch, deadline, proven, resolve, reject };
      const queue = this.#waiting.get(operation.shard);
      if (queue === undefined) this.#waiting.set(operation.shard, [pending]);
      else queue.push(pending);
      this.#count++;
      this.#schedule();
    });
  }

  /** At the end of the event loop's turn, so that what arrived together is committed together. */
  #schedule(): void {
    if (this.#scheduled || this.#transactions >= maxTransactions) return;
    this.#scheduled = true;
    this.#time.soon(() => {
      this.#scheduled = false;
      this.#next();
    });
  }

  #next(): void {
    if (this.#transactions >= maxTransactions) return;
    const batch: Pending[] = [];
    const shards: ShardId[] = [];
    for (const [shard, queue] of this.#waiting) {
      if (this.#busy.has(shard)) continue;
      const room = maxBatch - batch.length;
      if (room <= 0) break;
      const taken = queue.splice(0, room);
      if (queue.length === 0) this.#waiting.delete(shard);
      batch.push(...taken);
      shards.push(shard);
    }
    if (batch.length === 0) return;
    for (const shard of shards) this.#busy.add(shard);
    this.#transactions++;
    void this.#run(batch).finally(() => {
      for (const shard of shards) this.#busy.delete(shard);
      this.#transactions--;
      if (this.#waiting.size > 0) this.#schedule();
    });
    if (this.#waiting.size > 0) this.#schedule();
  }

  async #run(batch: readonly Pending[]): Promise<void> {
    this.#count -= batch.length;
    await this.#transact(batch);
  }

  async #transact(batch: readonly Pending[]): Promise<void> {
    const live = batch.filter((pending) => {
      if (this.#time.monotonic() < pending.deadline) return true;
      pending.reject(new Problem("deadline_exceeded"));
      return false;
    });
    if (live.length === 0) return;
    const began = this.#time.monotonic();
    let transaction: OwnerTransaction | undefined;
    let failure: Error | undefined;
    /** Those that were not refused before the transaction decided them. */
    let allowed = live;
    let apart = false;
    try {
      transaction = await this.#store.begin();
      const unit = new Unit({ transaction, site: this.#site, now: this.#time.wall(), random: this.#random });
      // One round trip: the loads follow the locks on the same connection, each with a snapshot of its own.
      const [heads] = await Promise.all([
        transaction.lock([...new Set(live.map((p) => p.operation.shard))].sort((a, b) => a - b)),
        unit.load(live.map((p) => p.operation)),
      ]);
      unit.hold(heads);
      allowed = live.filter((pending) => {
        const head = heads.get(pending.operation.shard);
        if (head !== undefined && head.epoch === pending.epoch && head.state === "owned") return true;
        pending.reject(
          head?.state === "moving"
            ? new Problem("shard_moving")
            : new Problem("not_owner", "the shard has moved", head?.owner == null ? {} : { owner: head.owner }),
        );
        return false;
      });
      const outcomes = allowed.map((pending) => ({ pending, result: unit.decide(pending.operation) }));
      this.#committed(unit, await unit.commit(), outcomes);
    } catch (error) {
      failure = asError(error);
      const committing = failure instanceof CommitUnknown;
      apart = isDataFault(failure) && allowed.length > 1;
      if (!apart) this.#failed(live, failure, committing);
      // It may be committed: whoever publishes looks into the outbox.
      if (committing) this.#events.uncertain([...new Set(live.map((pending) => pending.operation.shard))]);
    } finally {
      await transaction?.end(failure);
      if (this.#tracing !== undefined) this.#trace(this.#tracing, live, began, failure);
    }
    if (!apart) return;
    // Nothing took effect. Apart, in their order, only the one with the value that was refused fails.
    const half = Math.ceil(allowed.length / 2);
    await this.#transact(allowed.slice(0, half));
    await this.#transact(allowed.slice(half));
  }

  #trace(tracing: Tracing, live: readonly Pending[], began: number, failure: Error | undefined): void {
    const ms = this.#time.monotonic() - began;
    const fault = failure === undefined ? undefined : failure instanceof Problem ? failure.code : "transaction_failed";
    for (const { operation, epoch } of live)
      tracing.record(
        "owner transaction",
        "internal",
        operation.trace?.traceparent,
        ms,
        { "hothot.shard": operation.shard, "hothot.epoch": epoch, "hothot.writes": live.length },
        fault,
      );
  }

  #committed(
    unit: Unit,
    records: readonly Omit<Committed, "at">[],
    outcomes: readonly { pending: Pending; result: { written?: Written; error?: unknown } }[],
  ): void {
    const at = this.#time.monotonic();
    if (records.length > 0) this.#events.committed(records.map((record) => ({ ...record, at })));
    for (const { pending, result } of outcomes) {
      if (result.written === undefined) pending.reject(result.error);
      else if (!pending.proven && !this.#gate.mayAcknowledge(pending.operation.shard, pending.epoch))
        pending.reject(new Problem("outcome_unknown", "the lease ran out while the write was under way"));
      else pending.resolve(result.written);
    }
    unit.runAfterCommit((error) => this.#log.error("an action after a commit failed", { error: asError(error) }));
  }

  #failed(batch: readonly Pending[], error: Error, committing: boolean): void {
    if (isDataFault(error))
      this.#log.error("the database refuses a write's values", { error, shard: batch[0]?.operation.shard });
    else this.#log.warn("a transaction failed", { error, committing, writes: batch.length });
    for (const pending of batch) pending.reject(failureOf(error, committing));
  }
}

/** What the callers of a transaction that failed are told. */
export function failureOf(error: Error, committing: boolean): Problem {
  if (error instanceof Problem) return error;
  if (committing) return new Problem("outcome_unknown", "the database did not answer the commit", { cause: error });
  return isDataFault(error) ? new Problem("internal", undefined, { cause: error }) : awayProblem(error);
}

export type { Outcome };
