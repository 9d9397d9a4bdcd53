import type { Client } from "../infra/postgres/database.js";
import { comparePlaces, type Epoch, type Position } from "../shards/ids.js";
import type { ClusterRow, DocumentRow, JobRow, KeyRow, Placed, TaskRow, WorkerRow } from "./entities.js";
import type { LogRecord } from "./record.js";

export interface TableShape {
  readonly table: string;
  readonly key: readonly string[];
  readonly columns: readonly string[];
  /** Columns that an upsert leaves as they are. */
  readonly local?: readonly string[];
}

const placed = ["changed_epoch", "changed_position"];

export const shapes = {
  clusters: {
    table: "clusters",
    key: ["tenant", "id"],
    columns: [
      "tenant",
      "id",
      "shard",
      "status",
      "name",
      "spec",
      "state",
      "labels",
      "expires_at",
      "version",
      "created_at",
      "updated_at",
      "deleted",
      ...placed,
    ],
  },
  jobs: {
    table: "jobs",
    key: ["id"],
    columns: [
      "id",
      "shard",
      "tenant",
      "cluster_id",
      "type",
      "input",
      "status",
      "attempt",
      "epoch",
      "stage",
      "stages",
      "checkpoint",
      "started_in",
      "runs_in",
      "not_before",
      "created_at",
      "finished_at",
      "error",
      ...placed,
    ],
  },
  workers: {
    table: "workers",
    key: ["tenant", "id"],
    columns: ["tenant", "id", "shard", "capacity", "labels", "registered_at", "deleted", ...placed],
  },
  documents: {
    table: "documents",
    key: ["kind", "id"],
    columns: ["kind", "id", "shard", "body", "updated_at", "deleted", ...placed],
  },
  keys: {
    table: "idempotency_keys",
    key: ["tenant", "key", "shard"],
    columns: ["tenant", "key", "shard", "fingerprint", "status", "body", "version", "created_at", ...placed],
  },
  tasks: {
    table: "tasks",
    key: ["id"],
    columns: [
      "id",
      "job_id",
      "shard",
      "tenant",
      "cluster_id",
      "name",
      "node",
      "service",
      "stage",
      "stage_index",
      "attempt",
      "status",
      "tries",
      "worker_id",
      "lease_until",
      "deadline",
      "not_before",
      "result",
      "stdout",
      "stderr",
      "finished_at",
    ],
  },
} as const satisfies Record<string, TableShape>;

const camel = (name: string): string => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
const camelOf = new Map<string, string>();
for (const shape of Object.values(shapes)) for (const column of shape.columns) camelOf.set(column, camel(column));

const statements = new Map<TableShape, string>();

/** One statement for any number of rows. A replicated row gives way only to a larger (epoch, position), epoch first. */
export function upsertStatement(shape: TableShape, parameter = "$1"): string {
  let sql = statements.get(shape);
  if (sql !== undefined) return sql.replace("$1", parameter);
  const columns = shape.columns.join(", ");
  const update = shape.columns
    .filter((column) => !shape.key.includes(column))
    .map((column) => `${column} = excluded.${column}`);
  const guard = shape.columns.includes("changed_epoch")
    ? ` WHERE (${shape.table}.changed_epoch, ${shape.table}.changed_position) < (excluded.changed_epoch, excluded.changed_position)`
    : "";
  sql = `INSERT INTO ${shape.table} (${columns}) SELECT ${columns} FROM json_populate_recordset(null::${shape.table}, $1::json) ON CONFLICT (${shape.key.join(", ")}) DO UPDATE SET ${update.join(", ")}${guard}`;
  statements.set(shape, sql);
  return sql.replace("$1", parameter);
}

/** Rows as the parameter of `upsertStatement`. */
export const rowsParameter = (shape: TableShape, rows: readonly object[]): string =>
  JSON.stringify(rows.map((row) => toColumns(shape, row)));

function toColumns(shape: TableShape, row: object): Record<string, unknown> {
  const source = row as Record<string, unknown>;
  const out: Record<string, unknown> = {};
  for (const column of shape.columns) out[column] = source[camelOf.get(column) ?? column];
  return out;
}

/** Writes rows, of which no two may have the same key. */
export async function upsert(client: Client, shape: TableShape, rows: readonly object[]): Promise<void> {
  if (rows.length === 0) return;
  await client.query({
    name: `upsert_${shape.table}`,
    text: upsertStatement(shape),
    values: [rowsParameter(shape, rows)],
  });
}

/** snake_case columns to the entity's names. */
export function fromColumns<T>(row: Record<string, unknown>): T {
  const out: Record<string, unknown> = {};
  for (const [column, value] of Object.entries(row)) out[camelOf.get(column) ?? camel(column)] = value;
  return out as T;
}

/** The newest version of each replicated row, gathered from many records. */
export class RowSet {
  readonly clusters = new Map<string, ClusterRow>();
  readonly jobs = new Map<string, JobRow>();
  readonly workers = new Map<string, WorkerRow>();
  readonly documents = new Map<string, DocumentRow>();
  readonly keys = new Map<string, KeyRow>();

  add(record: LogRecord, epoch: Epoch, position: Position): void {
    const place: Placed = { changedEpoch: epoch, changedPosition: position };
    if (record.cluster !== undefined)
      put(this.clusters, `${record.cluster.tenant}/${record.cluster.id}`, { ...record.cluster, ...place });
    if (record.job !== undefined) put(this.jobs, record.job.id, { ...record.job, ...place });
    if (record.worker !== undefined)
      put(this.workers, `${record.worker.tenant}/${record.worker.id}`, { ...record.worker, ...place });
    if (record.document !== undefined)
      put(this.documents, `${record.document.kind}/${record.document.id}`, { ...record.document, ...place });
    if (record.key !== undefined)
      put(this.keys, `${record.key.tenant}/${record.key.shard}/${record.key.key}`, { ...record.key, ...place });
  }

  async write(client: Client): Promise<void> {
    await upsert(client, shapes.clusters, [...this.clusters.values()]);
    await upsert(client, shapes.jobs, [...this.jobs.values()]);
    await upsert(client, shapes.workers, [...this.workers.values()]);
    await upsert(client, shapes.documents, [...this.documents.values()]);
    const keys = [...this.keys.values()];
    await upsert(client, shapes.keys, keys);
    if (keys.length > 0) await supersede(client, keys);
  }
}

/** A divergent operation whose key has meanwhile taken effect at the new owner must not be applied twice (section 6). */
export const supersedeStatement = (first: number): string =>
  `UPDATE divergent_operations d SET status = 'superseded' FROM unnest($${first}::text[], $${first + 1}::text[], $${first + 2}::int[]) AS k(tenant, key, shard)
    WHERE d.status = 'open' AND d.idempotency_key = k.key AND d.tenant = k.tenant AND d.shard = k.shard`;

async function supersede(client: Client, keys: readonly KeyRow[]): Promise<void> {
  await client.query({
    name: "supersede",
    text: supersedeStatement(1),
    values: [keys.map((row) => row.tenant), keys.map((row) => row.key), keys.map((row) => row.shard)],
  });
}

function put<T extends Placed>(rows: Map<string, T>, key: string, row: T): void {
  const before = rows.get(key);
  const older =
    before !== undefined &&
    comparePlaces(
      { epoch: before.changedEpoch, position: before.changedPosition },
      { epoch: row.changedEpoch, position: row.changedPosition },
    ) > 0;
  if (!older) rows.set(key, row);
}

export type { TaskRow };
