import { asError, Problem } from "../infra/errors.js";
import { isRefusal, isTimeout, type Client, type Database } from "../infra/postgres/database.js";
import { epoch as toEpoch, position as toPosition, type Epoch, type Position, type ShardId } from "../shards/ids.js";
import type { ClusterRow, JobRow, KeyRow, TaskRow, WorkerRow } from "./entities.js";
import {
  deltaOf,
  fromColumns,
  rowsParameter,
  shapes,
  supersedeStatement,
  writeParts,
  type TableShape,
} from "./rows.js";

export interface LockedHead {
  readonly owner: string | null;
  readonly epoch: Epoch;
  readonly state: string;
  readonly position: Position;
  readonly tenure: Epoch;
}

export interface NewRecord {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly record: Uint8Array;
}

/** The COMMIT got no answer: what was written may be there or not. */
export class CommitUnknown extends Error {
  constructor(cause: Error) {
    super("the database did not answer the commit", { cause });
    this.name = "CommitUnknown";
  }
}

/** All that an owner's transaction writes. */
export interface OwnerChanges {
  /** Heads that move on by `count` records. */
  readonly moved: readonly {
    readonly shard: ShardId;
    readonly epoch: Epoch;
    readonly since: Position;
    readonly count: number;
  }[];
  readonly records: readonly NewRecord[];
  /** Wall clock of the owner. */
  readonly now: number;
  /** Letter of the statement's part, table, rows. */
  readonly tables: readonly (readonly [string, TableShape, readonly object[]])[];
  /** Jobs whose tasks are removed first. */
  readonly dropped: readonly string[];
  /** Stages of jobs of which nothing else changes. */
  readonly stages: readonly (readonly [jobId: string, stage: string | null])[];
}

type Named = { readonly tenant: string; readonly id: string };

/** One owner's transaction. Reads may be asked for before `lock` has answered, and are carried out behind it. */
export interface OwnerTransaction {
  /** Locks heads, which serialises the writes of a shard over all nodes of the datacenter. */
  lock(shards: readonly ShardId[]): Promise<Map<ShardId, LockedHead>>;
  clusters(wanted: readonly Named[]): Promise<readonly ClusterRow[]>;
  jobs(ids: readonly string[]): Promise<readonly JobRow[]>;
  /** The unfinished jobs of these clusters. */
  activeJobs(clusters: readonly Named[]): Promise<readonly JobRow[]>;
  /** Without what tasks that are ok have printed, but for the jobs in `printed`: it may be much, and each write of a job loads its tasks. */
  tasks(jobIds: readonly string[], printed: readonly string[]): Promise<readonly TaskRow[]>;
  workers(wanted: readonly Named[]): Promise<readonly WorkerRow[]>;
  /** What the keys were used for, in every shard. */
  keys(wanted: readonly { readonly tenant: string; readonly key: string }[]): Promise<readonly KeyRow[]>;
  /**
   * Writes and commits; the statement that numbers the records checks epoch, state and position of their shards.
   * @throws Problem not_owner, or the database's error, with nothing committed; CommitUnknown
   */
  commit(changes: OwnerChanges): Promise<void>;
  /** Ends it in any case; `failure` is what it failed with. */
  end(failure?: Error): Promise<void>;
}

/** The owner's side of a datacenter's database. */
export interface OwnerStore {
  begin(): Promise<OwnerTransaction>;
}

/** A head is not as it was locked: nothing was written. */
const mismatch = "22012"; // division_by_zero, raised on purpose

const output = (column: string): string =>
  `CASE WHEN status <> 'ok' OR job_id = ANY($2::text[]) THEN ${column} END AS ${column}`;
const loadTasks = `SELECT ${shapes.tasks.columns
  .map((column) => (column === "stdout" || column === "stderr" ? output(column) : column))
  .join(", ")} FROM tasks WHERE job_id = ANY($1::text[]) ORDER BY stage_index, id`;

interface Statement {
  readonly name: string;
  readonly text: string;
  readonly values: unknown[];
}

interface HeadRow {
  readonly shard: number;
  readonly owner: string | null;
  readonly epoch: number;
  readonly state: string;
  readonly position: number;
  readonly tenure: number;
}

/** OwnerStore on the datacenter's Postgres: statements that depend on no other are sent before the first is answered. */
export class PostgresOwnerStore implements OwnerStore {
  constructor(private readonly database: Database) {}

  async begin(): Promise<OwnerTransaction> {
    return new PostgresOwnerTransaction(await this.database.connect());
  }
}

class PostgresOwnerTransaction implements OwnerTransaction {
  constructor(private readonly client: Client) {}

  async lock(shards: readonly ShardId[]): Promise<Map<ShardId, LockedHead>> {
    const [, heads] = await Promise.all([this.client.query("BEGIN"), lockOwned(this.client, shards)]);
    return heads;
  }

  clusters(wanted: readonly Named[]): Promise<readonly ClusterRow[]> {
    return this.#load(
      "load_clusters",
      "SELECT c.* FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN clusters c ON c.tenant = k.tenant AND c.id = k.id",
      [wanted.map((c) => c.tenant), wanted.map((c) => c.id)],
    );
  }

  jobs(ids: readonly string[]): Promise<readonly JobRow[]> {
    return this.#load("load_jobs", "SELECT * FROM jobs WHERE id = ANY($1::text[])", [ids]);
  }

  activeJobs(clusters: readonly Named[]): Promise<readonly JobRow[]> {
    return this.#load(
      "load_active_jobs",
      "SELECT j.* FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN jobs j ON j.tenant = k.tenant AND j.cluster_id = k.id WHERE j.status IN ('queued', 'running', 'paused')",
      [clusters.map((c) => c.tenant), clusters.map((c) => c.id)],
    );
  }

  tasks(jobIds: readonly string[], printed: readonly string[]): Promise<readonly TaskRow[]> {
    return this.#load("load_tasks", loadTasks, [jobIds, printed]);
  }

  workers(wanted: readonly Named[]): Promise<readonly WorkerRow[]> {
    return this.#load(
      "load_workers",
      "SELECT w.* FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN workers w ON w.tenant = k.tenant AND w.id = k.id",
      [wanted.map((w) => w.tenant), wanted.map((w) => w.id)],
    );
  }

  keys(wanted: readonly { readonly tenant: string; readonly key: string }[]): Promise<readonly KeyRow[]> {
    return this.#load(
      "load_keys",
      "SELECT i.* FROM unnest($1::text[], $2::text[]) AS k(tenant, key) JOIN idempotency_keys i ON i.tenant = k.tenant AND i.key = k.key",
      [wanted.map((k) => k.tenant), wanted.map((k) => k.key)],
    );
  }

  /** What fits one statement, the usual case, is sent with the COMMIT right behind it: when that fails, nothing is written. */
  async commit(changes: OwnerChanges): Promise<void> {
    const { client } = this;
    const { dropped, stages } = changes;
    const alone = dropped.length === 0 && stages.length === 0;
    const statement = statementOf(changes);
    if (dropped.length > 0) await client.query("DELETE FROM tasks WHERE job_id = ANY($1::text[])", [dropped]);
    const flushed = statement === undefined ? Promise.resolve() : this.#flush(statement);
    if (!alone) {
      await flushed;
      if (stages.length > 0)
        await client.query(
          "UPDATE jobs SET stage = v.stage FROM unnest($1::text[], $2::text[]) AS v(id, stage) WHERE jobs.id = v.id",
          [stages.map(([id]) => id), stages.map(([, stage]) => stage)],
        );
    }
    const [written, ended] = await Promise.allSettled([flushed, client.query("COMMIT")]);
    const failure = written.status === "rejected" ? asError(written.reason) : undefined;
    // Refused by the server, the statement has ended the transaction, whatever was sent behind it.
    if (failure instanceof Problem || isRefusal(failure)) throw failure;
    if (ended.status === "rejected") throw new CommitUnknown(asError(ended.reason));
    if (ended.value.command !== "COMMIT") throw failure ?? new Error("the database rolled the transaction back");
    if (failure !== undefined) throw new CommitUnknown(failure);
  }

  async end(failure?: Error): Promise<void> {
    let broken = failure instanceof CommitUnknown || isTimeout(failure) ? failure : undefined;
    if (failure !== undefined && broken === undefined)
      await this.client.query("ROLLBACK").catch((error: unknown) => {
        broken = asError(error);
      });
    this.client.release(broken);
  }

  async #flush(statement: Statement): Promise<void> {
    try {
      await this.client.query(statement);
    } catch (error) {
      if ((error as { code?: string }).code !== mismatch) throw error;
      throw new Problem("not_owner", "the shard moved during the write");
    }
  }

  async #load<T>(name: string, text: string, values: unknown[]): Promise<T[]> {
    const { rows } = await this.client.query<Record<string, unknown>>({ name, text, values });
    return rows.map((row) => fromColumns<T>(row));
  }
}

/** Locks heads in order. */
export async function lockOwned(client: Client, shards: readonly ShardId[]): Promise<Map<ShardId, LockedHead>> {
  const { rows } = await client.query<HeadRow>({
    name: "lock_heads",
    text: "SELECT shard, owner, epoch, state, position, tenure FROM shard_head WHERE shard = ANY($1::int[]) ORDER BY shard FOR NO KEY UPDATE",
    values: [shards],
  });
  return new Map(
    rows.map((row) => [
      row.shard as ShardId,
      {
        owner: row.owner,
        epoch: toEpoch(row.epoch),
        state: row.state,
        position: toPosition(row.position),
        tenure: toEpoch(row.tenure),
      },
    ]),
  );
}

/** One statement, whose first part checks epoch and state and numbers the records; it fails when a head is not as locked. */
function statementOf({ moved, records, tables, now }: OwnerChanges): Statement | undefined {
  const parts: string[] = [];
  const values: unknown[] = [];
  let name = "";
  if (moved.length > 0)
    values.push(
      moved.map((head) => head.shard),
      moved.map((head) => head.epoch),
      moved.map((head) => head.since),
      moved.map((head) => head.count),
    );
  for (const [letter, shape, rows] of tables) {
    name += letter;
    values.push(rowsParameter(shape, rows));
    parts.push(...writeParts(shape, letter, `$${values.length}`));
  }
  if (moved.length > 0) {
    name += "h";
    const placed = tables.filter(([, shape]) => shape.digest !== undefined).map(([letter]) => letter);
    parts.push(`h AS (UPDATE shard_head s SET position = s.position + v.n, digest = s.digest # ${deltaOf(placed, "v.shard")}
        FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::int[]) AS v(shard, epoch, since, n)
        WHERE s.shard = v.shard AND s.epoch = v.epoch AND s.position = v.since AND s.state = 'owned' RETURNING 1)`);
  }
  if (records.length > 0) {
    name += "o";
    const at = values.length;
    parts.push(`o AS (INSERT INTO outbox (shard, epoch, position, record, committed_at)
        SELECT s, e, p, r, to_timestamp($${at + 5}::float8 / 1000) FROM unnest($${at + 1}::int[], $${at + 2}::bigint[], $${at + 3}::bigint[], $${at + 4}::bytea[]) AS v(s, e, p, r))`);
    values.push(
      records.map((r) => r.shard),
      records.map((r) => r.epoch),
      records.map((r) => r.position),
      records.map((r) => Buffer.from(r.record.buffer, r.record.byteOffset, r.record.byteLength)),
      now,
    );
  }
  const keys = tables.flatMap(([, shape, rows]) => (shape === shapes.keys ? (rows as readonly KeyRow[]) : []));
  if (keys.length > 0) {
    name += "s";
    parts.push(`s AS (${supersedeStatement(values.length + 1)})`);
    values.push(
      keys.map((row) => row.tenant),
      keys.map((row) => row.key),
      keys.map((row) => row.shard),
    );
  }
  if (parts.length === 0) return undefined;
  const last =
    moved.length > 0
      ? "SELECT 1 / (CASE WHEN (SELECT count(*) FROM h) = cardinality($1) THEN 1 ELSE 0 END)"
      : "SELECT 1";
  return { name: `flush_${name}`, text: `WITH ${parts.join(", ")} ${last}`, values };
}
