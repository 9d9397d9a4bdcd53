import { asError, Problem } from "../infra/errors.js";
import { isRefusal, type Client } from "../infra/postgres/database.js";
import type { Random } from "../infra/random.js";
import { position as toPosition, type Epoch, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import type { ClusterRow, DocumentRow, JobRow, KeyRow, Placed, TaskRow, WorkerRow } from "./entities.js";
import { unfinished } from "./entities.js";
import { encodeRecord, type LogRecord } from "./record.js";
import { fromColumns, rowsParameter, shapes, upsertStatement, type TableShape } from "./rows.js";
import type { Change, Operation, Outcome, Work, Written } from "./work.js";

export interface LockedHead {
  readonly owner: string | null;
  readonly epoch: Epoch;
  readonly state: string;
  readonly position: Position;
  readonly tenure: Epoch;
}

/** The COMMIT got no answer: what was written may be there or not. */
export class CommitUnknown extends Error {
  constructor(cause: Error) {
    super("the database did not answer the commit", { cause });
    this.name = "CommitUnknown";
  }
}

interface Statement {
  readonly name: string;
  readonly text: string;
  readonly values: unknown[];
}

/** A head is not as it was locked: nothing was written. */
const mismatch = "22012"; // division_by_zero, raised on purpose

export interface NewRecord {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly record: Uint8Array;
}

/** A record must fit one log message with room for its header (NATS takes 1 MB). */
const maxRecordBytes = 900_000;

const clusterKey = (tenant: string, id: string): string => `${tenant}/${id}`;
const keyKey = (tenant: string, key: string): string => `${tenant}/${key}`;

/** Rows of one owner's transaction: loaded together, decided one after the other, written together. */
export class Unit {
  readonly #client: Client;
  readonly #site: SiteName;
  readonly #now: number;
  readonly #random: Random;
  readonly #rows = new Layer();
  readonly #heads = new Map<ShardId, LockedHead & { next: Position }>();
  readonly #records: {
    readonly shard: ShardId;
    readonly epoch: Epoch;
    readonly position: Position;
    readonly record: LogRecord;
    readonly bytes: Uint8Array;
  }[] = [];
  readonly #after: (() => void)[] = [];

  constructor(options: { client: Client; site: SiteName; now: number; random: Random }) {
    this.#client = options.client;
    this.#site = options.site;
    this.#now = options.now;
    this.#random = options.random;
  }

  /** The heads that this transaction has locked. */
  hold(heads: ReadonlyMap<ShardId, LockedHead>): void {
    for (const [shard, head] of heads) this.#heads.set(shard, { ...head, next: head.position });
  }

  /**
   * Loads what the operations need, each table with one statement; those that depend on no other are sent at once, before the
   * first of them is answered.
   */
  async load(operations: readonly Operation[]): Promise<void> {
    const clusters = operations.flatMap((o) => o.needs.clusters ?? []);
    const jobs = operations.flatMap((o) => o.needs.jobs ?? []);
    const workers = operations.flatMap((o) => o.needs.workers ?? []);
    const keys = operations.filter((o) => o.key !== undefined);
    const query = async <T>(name: string, text: string, values: unknown[]): Promise<T[]> => {
      const { rows } = await this.#client.query<Record<string, unknown>>({ name, text, values });
      return rows.map((row) => fromColumns<T>(row));
    };
    const loadClusters = async (wanted: readonly { readonly tenant: string; readonly id: string }[]): Promise<void> => {
      if (wanted.length === 0) return;
      for (const row of await query<ClusterRow>(
        "load_clusters",
        "SELECT c.* FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN clusters c ON c.tenant = k.tenant AND c.id = k.id",
        [wanted.map((c) => c.tenant), wanted.map((c) => c.id)],
      ))
        this.#rows.clusters.set(clusterKey(row.tenant, row.id), row);
    };
    const loadJobs = async (): Promise<void> => {
      if (jobs.length === 0) return;
      for (const row of await query<JobRow>("load_jobs", "SELECT * FROM jobs WHERE id = ANY($1::text[])", [jobs]))
        this.#rows.jobs.set(row.id, row);
    };
    const loadWorkers = async (): Promise<void> => {
      if (workers.length === 0) return;
      for (const row of await query<WorkerRow>(
        "load_workers",
        "SELECT w.* FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN workers w ON w.tenant = k.tenant AND w.id = k.id",
        [workers.map((w) => w.tenant), workers.map((w) => w.id)],
      ))
        this.#rows.workers.set(clusterKey(row.tenant, row.id), row);
    };
    const loadKeys = async (): Promise<void> => {
      if (keys.length === 0) return;
      for (const row of await query<KeyRow>(
        "load_keys",
        "SELECT i.* FROM unnest($1::text[], $2::text[]) AS k(tenant, key) JOIN idempotency_keys i ON i.tenant = k.tenant AND i.key = k.key",
        [keys.map((o) => o.key?.tenant), keys.map((o) => o.key?.key)],
      ))
        this.#rows.addKey(row);
    };
    await Promise.all([loadClusters(clusters), loadJobs(), loadWorkers(), loadKeys()]);
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
      for (const row of await query<JobRow>(
        "load_active_jobs",
        "SELECT j.* FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN jobs j ON j.tenant = k.tenant AND j.cluster_id = k.id WHERE j.status IN ('queued', 'running', 'paused')",
        [named.map((c) => c.tenant), named.map((c) => c.id)],
      ))
        this.#rows.jobs.set(row.id, row);
    }
    if (operations.some((o) => o.needs.tasks === true)) {
      const wanted = [...new Set([...jobs, ...this.#rows.jobs.keys()])];
      for (const row of await query<TaskRow>(
        "load_tasks",
        "SELECT * FROM tasks WHERE job_id = ANY($1::text[]) ORDER BY stage_index, id",
        [wanted],
      ))
        this.#rows.tasks.set(row.id, row);
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
        this.#records.push({ shard: operation.shard, epoch: head.epoch, position: at, record, bytes });
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

  /**
   * Writes everything and commits. What fits one statement, the usual case, is sent with the COMMIT right behind it: when that
   * statement fails, the transaction has written nothing.
   * @throws Problem not_owner, or the database's error, with nothing committed; CommitUnknown
   */
  async commit(): Promise<NewRecord[]> {
    const client = this.#client;
    const statement = this.#statement();
    const alone = this.#rows.alone;
    if (!alone) await this.#rows.drop(client);
    const flushed = statement === undefined ? Promise.resolve() : this.#flush(statement);
    if (!alone) {
      await flushed;
      await this.#rows.writeStages(client);
    }
    const [written, ended] = await Promise.allSettled([flushed, client.query("COMMIT")]);
    const failure = written.status === "rejected" ? asError(written.reason) : undefined;
    // Refused by the server, the statement has ended the transaction, whatever was sent behind it.
    if (failure instanceof Problem || isRefusal(failure)) throw failure;
    if (ended.status === "rejected") throw new CommitUnknown(asError(ended.reason));
    if (ended.value.command !== "COMMIT") throw failure ?? new Error("the database rolled the transaction back");
    if (failure !== undefined) throw new CommitUnknown(failure);
    return this.#records.map(({ shard, epoch, position, bytes }) => ({ shard, epoch, position, record: bytes }));
  }

  async #flush(statement: Statement): Promise<void> {
    try {
      await this.#client.query(statement);
    } catch (error) {
      if ((error as { code?: string }).code !== mismatch) throw error;
      throw new Problem("not_owner", "the shard moved during the write");
    }
  }

  /** One statement, whose first part checks epoch and state and numbers the records; it fails when a head is not as locked. */
  #statement(): Statement | undefined {
    const moved = [...this.#heads].filter(([, head]) => head.next > head.position);
    const parts: string[] = [];
    const values: unknown[] = [];
    let name = "";
    if (moved.length > 0) {
      name += "h";
      parts.push(`h AS (UPDATE shard_head s SET position = s.position + v.n
        FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::int[]) AS v(shard, epoch, since, n)
        WHERE s.shard = v.shard AND s.epoch = v.epoch AND s.position = v.since AND s.state = 'owned' RETURNING 1)`);
      values.push(
        moved.map(([shard]) => shard),
        moved.map(([, head]) => head.epoch),
        moved.map(([, head]) => head.position),
        moved.map(([, head]) => head.next - head.position),
      );
    }
    if (this.#records.length > 0) {
      name += "o";
      const at = values.length;
      parts.push(`o AS (INSERT INTO outbox (shard, epoch, position, record, committed_at)
        SELECT s, e, p, r, to_timestamp($${at + 5}::float8 / 1000) FROM unnest($${at + 1}::int[], $${at + 2}::bigint[], $${at + 3}::bigint[], $${at + 4}::bytea[]) AS v(s, e, p, r))`);
      values.push(
        this.#records.map((r) => r.shard),
        this.#records.map((r) => r.epoch),
        this.#records.map((r) => r.position),
        this.#records.map((r) => Buffer.from(r.bytes.buffer, r.bytes.byteOffset, r.bytes.byteLength)),
        this.#now,
      );
    }
    for (const [letter, shape, rows] of this.#rows.changedRows()) {
      name += letter;
      values.push(rowsParameter(shape, rows));
      parts.push(`${letter} AS (${upsertStatement(shape, `$${values.length}`)})`);
    }
    if (parts.length === 0) return undefined;
    const last =
      moved.length > 0
        ? "SELECT 1 / (CASE WHEN (SELECT count(*) FROM h) = cardinality($1) THEN 1 ELSE 0 END)"
        : "SELECT 1";
    return { name: `flush_${name}`, text: `WITH ${parts.join(", ")} ${last}`, values };
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

/** Rows by key, with a note of which were changed. */
class Layer {
  readonly clusters = new Map<string, ClusterRow>();
  readonly jobs = new Map<string, JobRow>();
  readonly tasks = new Map<string, TaskRow>();
  readonly workers = new Map<string, WorkerRow>();
  readonly documents = new Map<string, DocumentRow>();
  /** By tenant and key, then by shard. */
  readonly #keys = new Map<string, Map<number, KeyRow>>();
  readonly #changedKeys = new Map<string, KeyRow>();
  readonly dropped = new Set<string>();
  readonly stages = new Map<string, string | null>();
  readonly #changed = {
    clusters: new Set<string>(),
    jobs: new Set<string>(),
    tasks: new Set<string>(),
    workers: new Set<string>(),
    documents: new Set<string>(),
  };

  /** Takes a draft's changes over. */
  take(draft: Layer): void {
    for (const jobId of draft.dropped) {
      this.dropped.add(jobId);
      for (const [id, task] of this.tasks)
        if (task.jobId === jobId) {
          this.tasks.delete(id);
          this.#changed.tasks.delete(id);
        }
    }
    for (const table of ["clusters", "jobs", "tasks", "workers", "documents"] as const)
      for (const [key, row] of draft[table]) {
        (this[table] as Map<string, unknown>).set(key, row);
        this.#changed[table].add(key);
      }
    for (const [jobId, stage] of draft.stages) {
      this.stages.set(jobId, stage);
      const job = this.jobs.get(jobId);
      if (job !== undefined) this.jobs.set(jobId, { ...job, stage });
    }
  }

  /** Nothing but the changed rows is to be written. */
  get alone(): boolean {
    return this.dropped.size === 0 && this.#stagesAlone().length === 0;
  }

  async drop(client: Client): Promise<void> {
    if (this.dropped.size > 0)
      await client.query("DELETE FROM tasks WHERE job_id = ANY($1::text[])", [[...this.dropped]]);
  }

  /** Letter of the statement's part, table, rows; tables without a change are left out. */
  changedRows(): (readonly [string, TableShape, readonly object[]])[] {
    const changed = <T>(rows: ReadonlyMap<string, T>, keys: ReadonlySet<string>): T[] =>
      [...keys].flatMap((key) => rows.get(key) ?? []);
    const all: (readonly [string, TableShape, readonly object[]])[] = [
      ["c", shapes.clusters, changed(this.clusters, this.#changed.clusters)],
      ["j", shapes.jobs, changed(this.jobs, this.#changed.jobs)],
      ["w", shapes.workers, changed(this.workers, this.#changed.workers)],
      ["t", shapes.tasks, changed(this.tasks, this.#changed.tasks)],
      ["d", shapes.documents, changed(this.documents, this.#changed.documents)],
      ["k", shapes.keys, [...this.#changedKeys.values()]],
    ];
    return all.filter(([, , rows]) => rows.length > 0);
  }

  #stagesAlone(): (readonly [string, string | null])[] {
    return [...this.stages].filter(([jobId]) => !this.#changed.jobs.has(jobId));
  }

  async writeStages(client: Client): Promise<void> {
    const stages = this.#stagesAlone();
    if (stages.length > 0)
      await client.query(
        "UPDATE jobs SET stage = v.stage FROM unnest($1::text[], $2::text[]) AS v(id, stage) WHERE jobs.id = v.id",
        [stages.map(([id]) => id), stages.map(([, stage]) => stage)],
      );
  }

  addKey(row: KeyRow): void {
    const at = keyKey(row.tenant, row.key);
    const known = this.#keys.get(at);
    if (known === undefined) this.#keys.set(at, new Map([[row.shard, row]]));
    else known.set(row.shard, row);
  }

  putKey(row: KeyRow): void {
    this.addKey(row);
    this.#changedKeys.set(`${row.shard}/${keyKey(row.tenant, row.key)}`, row);
  }

  /** What the key was used for, at most once in each shard. */
  keysOf(tenant: string, key: string): readonly KeyRow[] {
    return [...(this.#keys.get(keyKey(tenant, key))?.values() ?? [])];
  }
}

/** One operation's view: its own changes over those of the operations before it. */
class Draft implements Work {
  readonly rows = new Layer();
  readonly changes: Change[] = [];
  readonly after: (() => void)[] = [];
  readonly epoch: Epoch;
  readonly tenure: Epoch;
  readonly datacenter: SiteName;
  readonly now: number;
  readonly #base: Layer;
  readonly #first: Position;
  readonly #random: Random;

  constructor(
    readonly shard: ShardId,
    head: { readonly epoch: Epoch; readonly tenure: Epoch; readonly next: Position },
    base: Layer,
    context: { readonly site: SiteName; readonly now: number; readonly random: Random },
  ) {
    this.epoch = head.epoch;
    this.tenure = head.tenure;
    this.datacenter = context.site;
    this.now = context.now;
    this.#base = base;
    this.#first = head.next;
    this.#random = context.random;
  }

  token(length: number): string {
    return this.#random.token(length);
  }

  cluster(tenant: string, id: string): ClusterRow | undefined {
    const key = clusterKey(tenant, id);
    return this.rows.clusters.get(key) ?? this.#base.clusters.get(key);
  }

  job(id: string): JobRow | undefined {
    return this.rows.jobs.get(id) ?? this.#base.jobs.get(id);
  }

  activeJob(tenant: string, clusterId: string): JobRow | undefined {
    const seen = new Map([...this.#base.jobs, ...this.rows.jobs]);
    return [...seen.values()].find(
      (job) => job.tenant === tenant && job.clusterId === clusterId && unfinished.includes(job.status),
    );
  }

  tasks(jobId: string): readonly TaskRow[] {
    const kept = this.rows.dropped.has(jobId) ? [] : [...this.#base.tasks];
    const seen = new Map([...kept, ...this.rows.tasks]);
    return [...seen.values()]
      .filter((task) => task.jobId === jobId)
      .sort((a, b) => a.stageIndex - b.stageIndex || a.id.localeCompare(b.id, "en", { numeric: true }));
  }

  worker(tenant: string, id: string): WorkerRow | undefined {
    const key = clusterKey(tenant, id);
    return this.rows.workers.get(key) ?? this.#base.workers.get(key);
  }

  record(change: Change): Position {
    this.changes.push(change);
    const position = toPosition(this.#first + this.changes.length);
    const place: Placed = { changedEpoch: this.epoch, changedPosition: position };
    if (change.cluster !== undefined)
      this.rows.clusters.set(clusterKey(change.cluster.tenant, change.cluster.id), { ...change.cluster, ...place });
    if (change.job !== undefined) this.rows.jobs.set(change.job.id, { ...change.job, ...place });
    if (change.worker !== undefined)
      this.rows.workers.set(clusterKey(change.worker.tenant, change.worker.id), { ...change.worker, ...place });
    if (change.document !== undefined)
      this.rows.documents.set(clusterKey(change.document.kind, change.document.id), { ...change.document, ...place });
    return position;
  }

  putTask(task: TaskRow): void {
    this.rows.tasks.set(task.id, task);
  }

  dropTasks(jobId: string): void {
    this.rows.dropped.add(jobId);
    for (const [id, task] of this.rows.tasks) if (task.jobId === jobId) this.rows.tasks.delete(id);
  }

  setStage(jobId: string, stage: string | null): void {
    const job = this.rows.jobs.get(jobId);
    if (job !== undefined) this.rows.jobs.set(jobId, { ...job, stage });
    else this.rows.stages.set(jobId, stage);
  }

  afterCommit(action: () => void): void {
    this.after.push(action);
  }
}
