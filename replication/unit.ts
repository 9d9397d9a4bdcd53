import { Problem } from "../infra/errors.js";
import type { Random } from "../infra/random.js";
import { position as toPosition, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import type { KeyRow, Placed } from "./entities.js";
import { clusterKey, Draft, Layer } from "./draft.js";
import { encodeRecord, type LogRecord } from "./record.js";
import type { LockedHead, NewRecord, OwnerTransaction } from "./owner-store.js";
import type { Operation, Outcome, Written } from "./work.js";

/** A record must fit one log message with room for its header (NATS takes 1 MB). */
const maxRecordBytes = 900_000;

/** Rows of one owner's transaction: loaded together, decided one after the other, written together. */
export class Unit {
  readonly #transaction: OwnerTransaction;
  readonly #site: SiteName;
  readonly #now: number;
  readonly #random: Random;
  readonly #rows = new Layer();
  readonly #heads = new Map<ShardId, LockedHead & { next: Position }>();
  readonly #records: NewRecord[] = [];
  readonly #after: (() => void)[] = [];

  constructor(options: { transaction: OwnerTransaction; site: SiteName; now: number; random: Random }) {
    this.#transaction = options.transaction;
    this.#site = options.site;
    this.#now = options.now;
    this.#random = options.random;
  }

  /** The heads that this transaction has locked. */
  hold(heads: ReadonlyMap<ShardId, LockedHead>): void {
    for (const [shard, head] of heads) this.#heads.set(shard, { ...head, next: head.position });
  }

  /** Loads what the operations need, each table at once; what depends on no other before the first of them is answered. */
  async load(operations: readonly Operation[]): Promise<void> {
    const transaction = this.#transaction;
    const jobs = operations.flatMap((o) => o.needs.jobs ?? []);
    const loadClusters = async (wanted: readonly { readonly tenant: string; readonly id: string }[]): Promise<void> => {
      if (wanted.length === 0) return;
      for (const row of await transaction.clusters(wanted))
        this.#rows.clusters.set(clusterKey(row.tenant, row.id), row);
    };
    const loadJobs = async (): Promise<void> => {
      if (jobs.length === 0) return;
      for (const row of await transaction.jobs(jobs)) this.#rows.jobs.set(row.id, row);
    };
    const loadWorkers = async (): Promise<void> => {
      const workers = operations.flatMap((o) => o.needs.workers ?? []);
      if (workers.length === 0) return;
      for (const row of await transaction.workers(workers)) this.#rows.workers.set(clusterKey(row.tenant, row.id), row);
    };
    const loadKeys = async (): Promise<void> => {
      const keys = operations.flatMap((o) => o.key ?? []);
      if (keys.length === 0) return;
      for (const row of await transaction.keys(keys)) this.#rows.addKey(row);
    };
    await Promise.all([
      loadClusters(operations.flatMap((o) => o.needs.clusters ?? [])),
      loadJobs(),
      loadWorkers(),
      loadKeys(),
    ]);
    await loadClusters(
      [...this.#rows.jobs.values()]
        .filter((job) => !this.#rows.clusters.has(clusterKey(job.tenant, job.clusterId)))
        .map((job) => ({ tenant: job.tenant, id: job.clusterId })),
    );
    const wantsActive = operations.filter((o) => o.needs.activeJobs === true);
    if (wantsActive.length > 0) {
      const named = wantsActive.flatMap((o) => [
        ...(o.needs.clusters ?? []),
        ...(o.needs.jobs ?? []).flatMap((id) => {
          const job = this.#rows.jobs.get(id);
          return job === undefined ? [] : [{ tenant: job.tenant, id: job.clusterId }];
        }),
      ]);
      for (const row of await transaction.activeJobs(named)) this.#rows.jobs.set(row.id, row);
    }
    if (operations.some((o) => o.needs.tasks !== undefined && o.needs.tasks !== false)) {
      const wanted = [...new Set([...jobs, ...this.#rows.jobs.keys()])];
      const printed = operations.flatMap((o) => (o.needs.tasks === "printed" ? (o.needs.jobs ?? []) : []));
      for (const row of await transaction.tasks(wanted, printed)) this.#rows.tasks.put(row);
    }
  }

  /** Decides one operation on top of those before it; what it changed is dropped when it refuses. */
  decide(operation: Operation): { written?: Written; error?: unknown } {
    const head = this.#heads.get(operation.shard);
    if (head === undefined) return { error: new Problem("not_owner") };
    const key = operation.key;
    if (key !== undefined) {
      const used = this.#rows
        .keysOf(key.tenant, key.key)
        .filter((row) => Date.parse(row.createdAt) + key.retentionMs > this.#now);
      // In another shard only another request can have used it: a request's shard follows from what it asks.
      if (used.some((row) => row.fingerprint !== key.fingerprint))
        return { error: new Problem("idempotency_key_reused") };
      const found = used.find((row) => row.shard === operation.shard);
      if (found !== undefined) {
        const outcome: Outcome = {
          status: found.status,
          body: found.body,
          ...(found.version === null ? {} : { version: found.version }),
        };
        return {
          written: {
            outcome,
            epoch: found.changedEpoch,
            position: found.changedPosition,
            replayed: true,
            openEpoch: head.epoch,
          },
        };
      }
    }
    const draft = new Draft(operation.shard, head, this.#rows, {
      site: this.#site,
      now: this.#now,
      random: this.#random,
    });
    try {
      const outcome = operation.decide(draft);
      if (key !== undefined && key.local !== true && draft.changes.length === 0) draft.changes.push({ type: "key" });
      const records = draft.changes.map((change, index): LogRecord => ({
        ...change,
        at: this.#now,
        ...(operation.trace === undefined ? {} : { trace: operation.trace }),
        ...(key !== undefined && index === draft.changes.length - 1
          ? { key: keyRow(operation, outcome, this.#now) }
          : {}),
      }));
      const encoded = records.map((record) => encodeRecord(record));
      if (encoded.some((bytes) => bytes.length > maxRecordBytes))
        throw new Problem("payload_too_large", `a record may have at most ${maxRecordBytes} bytes`);
      encoded.forEach((bytes, index) => {
        const record = records[index];
        if (record === undefined) return;
        const at = toPosition(head.next + 1 + index);
        this.#records.push({ shard: operation.shard, epoch: head.epoch, position: at, record: bytes });
        if (record.key !== undefined)
          this.#rows.putKey({ ...record.key, changedEpoch: head.epoch, changedPosition: at });
      });
      head.next = toPosition(head.next + encoded.length);
      if (key !== undefined && records.length === 0)
        this.#rows.putKey({
          ...keyRow(operation, outcome, this.#now),
          changedEpoch: head.epoch,
          changedPosition: head.next,
        });
      this.#rows.take(draft.rows);
      this.#after.push(...draft.after);
      return { written: { outcome, epoch: head.epoch, position: head.next, replayed: false, openEpoch: head.epoch } };
    } catch (error) {
      return { error };
    }
  }

  /** Writes everything and commits. @throws as OwnerTransaction.commit */
  async commit(): Promise<readonly NewRecord[]> {
    await this.#transaction.commit({
      moved: [...this.#heads].flatMap(([shard, head]) =>
        head.next > head.position
          ? [{ shard, epoch: head.epoch, since: head.position, count: head.next - head.position }]
          : [],
      ),
      records: this.#records,
      now: this.#now,
      tables: this.#rows.changedRows(),
      dropped: [...this.#rows.dropped],
      stages: this.#rows.stagesAlone(),
    });
    return this.#records;
  }

  runAfterCommit(onError: (error: unknown) => void): void {
    for (const action of this.#after) {
      try {
        action();
      } catch (error) {
        onError(error);
      }
    }
  }
}

function keyRow(operation: Operation, outcome: Outcome, now: number): Omit<KeyRow, keyof Placed> {
  return {
    tenant: operation.key?.tenant ?? "",
    key: operation.key?.key ?? "",
    shard: operation.shard,
    fingerprint: operation.key?.fingerprint ?? "",
    status: outcome.status,
    body: outcome.body ?? null,
    version: outcome.version ?? null,
    createdAt: new Date(now).toISOString(),
  };
}
