import type { Client } from "../infra/postgres/database.js";

export interface TableShape {
  readonly table: string;
  readonly key: readonly string[];
  readonly columns: readonly string[];
  /** Of replicated rows: SQL of the row's digest, over the columns of `v`. Local columns are left out. */
  readonly digest?: (v: string) => string;
}

const placed = ["changed_epoch", "changed_position"];
const ms = (time: string): string => `coalesce((extract(epoch from ${time}) * 1000)::int8::text, '-')`;
/** 53 bits over the text of what is replicated; the same in every PostgreSQL from 14 on (hash partitions rely on it). */
const hash = (...parts: readonly string[]): string =>
  `(hashtextextended(concat_ws('|', ${parts.join(", ")}), 0) & 9007199254740991)`;
const ofColumns = (v: string, ...columns: readonly string[]): string[] => columns.map((column) => `${v}.${column}`);

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
    digest: (v: string) =>
      hash(
        ...ofColumns(v, "tenant", "id", "status", "name", "spec::text", "state::text", "labels::text", "version"),
        ...[`${v}.expires_at`, `${v}.created_at`, `${v}.updated_at`].map(ms),
        ...ofColumns(v, "deleted", ...placed),
      ),
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
    digest: (v: string) =>
      hash(
        ...ofColumns(v, "tenant", "id", "cluster_id", "type", "input::text", "status", "attempt", "epoch"),
        ...ofColumns(v, "stages::text", "started_in", "runs_in"),
        `coalesce(${v}.checkpoint::text, '-')`,
        `coalesce(${v}.error, '-')`,
        ...[`${v}.not_before`, `${v}.created_at`, `${v}.finished_at`].map(ms),
        ...ofColumns(v, ...placed),
      ),
  },
  workers: {
    table: "workers",
    key: ["tenant", "id"],
    columns: ["tenant", "id", "shard", "capacity", "labels", "registered_at", "deleted", ...placed],
    digest: (v: string) =>
      hash(
        ...ofColumns(v, "tenant", "id", "capacity", "labels::text", "deleted"),
        ms(`${v}.registered_at`),
        ...ofColumns(v, ...placed),
      ),
  },
  documents: {
    table: "documents",
    key: ["kind", "id"],
    columns: ["kind", "id", "shard", "body", "updated_at", "deleted", ...placed],
    digest: (v: string) =>
      hash(...ofColumns(v, "kind", "id", "body::text", "deleted"), ms(`${v}.updated_at`), ...ofColumns(v, ...placed)),
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

/**
 * Parts of a WITH statement that write any number of rows given as JSON in `parameter`. A replicated row gives way only to a larger
 * (epoch, position), epoch first; `<letter>_delta (shard, delta)` is what that changes in the shard's digest. The caller holds the
 * shard's head locked, or checks afterwards that its digest was the one known.
 */
export function writeParts(shape: TableShape, letter: string, parameter: string): string[] {
  const columns = shape.columns.join(", ");
  const source = `json_populate_recordset(null::${shape.table}, ${parameter}::json)`;
  if (shape.digest === undefined)
    return [
      `${letter} AS (INSERT INTO ${shape.table} (${columns}) SELECT ${columns} FROM ${source} ${onConflict(shape)})`,
    ];
  return [
    `${letter}_in AS MATERIALIZED (SELECT v.*, ${shape.digest("v")} AS row_digest FROM ${source} AS v)`,
    ...writeInput(shape, letter),
  ];
}

/** As `writeParts`, of rows that the part `<letter>_in` gives with their `row_digest`. */
export function writeInput(shape: TableShape, letter: string): string[] {
  const columns = shape.columns.join(", ");
  const same = shape.key.map((column) => `o.${column} = i.${column}`).join(" AND ");
  return [
    `${letter}_delta AS (SELECT i.shard, bit_xor(i.row_digest # coalesce(o.digest, 0)) AS delta FROM ${letter}_in i LEFT JOIN ${shape.table} o ON ${same}
      WHERE o.shard IS NULL OR (o.changed_epoch, o.changed_position) < (i.changed_epoch, i.changed_position) GROUP BY i.shard)`,
    `${letter} AS (INSERT INTO ${shape.table} (${columns}, digest) SELECT ${columns}, row_digest FROM ${letter}_in ${onConflict(shape)})`,
  ];
}

function onConflict(shape: TableShape): string {
  const written = shape.digest === undefined ? shape.columns : [...shape.columns, "digest"];
  const update = written
    .filter((column) => !shape.key.includes(column))
    .map((column) => `${column} = excluded.${column}`);
  const guard = shape.columns.includes("changed_epoch")
    ? ` WHERE (${shape.table}.changed_epoch, ${shape.table}.changed_position) < (excluded.changed_epoch, excluded.changed_position)`
    : "";
  return `ON CONFLICT (${shape.key.join(", ")}) DO UPDATE SET ${update.join(", ")}${guard}`;
}

/** The exclusive-or of the deltas of the parts `letters` for the shard that `of` names; 0 for none. */
export const deltaOf = (letters: readonly string[], of: string): string =>
  letters.length === 0
    ? "0::bigint"
    : `coalesce((SELECT bit_xor(delta) FROM (${letters.map((l) => `SELECT shard, delta FROM ${l}_delta`).join(" UNION ALL ")}) AS z WHERE z.shard = ${of}), 0)`;

/** Rows as the parameter of `writeParts`. */
export const rowsParameter = (shape: TableShape, rows: readonly object[]): string =>
  JSON.stringify(rows.map((row) => toColumns(shape, row)));

function toColumns(shape: TableShape, row: object): Record<string, unknown> {
  const source = row as Record<string, unknown>;
  const out: Record<string, unknown> = {};
  for (const column of shape.columns) out[column] = source[camelOf.get(column) ?? column];
  return out;
}

/** Writes rows, of which no two may have the same key, and the digests of their shards, whose heads are locked. */
export async function upsert(client: Client, shape: TableShape, rows: readonly object[]): Promise<void> {
  if (rows.length === 0) return;
  const parts = writeParts(shape, "w", "$1").join(", ");
  await client.query({
    name: `upsert_${shape.table}`,
    text:
      shape.digest === undefined
        ? `WITH ${parts} SELECT 1`
        : `WITH ${parts} UPDATE shard_head h SET digest = h.digest # d.delta FROM w_delta d WHERE h.shard = d.shard`,
    values: [rowsParameter(shape, rows)],
  });
}

/** snake_case columns to the entity's names. */
export function fromColumns<T>(row: Record<string, unknown>): T {
  const out: Record<string, unknown> = {};
  for (const [column, value] of Object.entries(row)) out[camelOf.get(column) ?? camel(column)] = value;
  return out as T;
}

/** A divergent operation whose key has meanwhile taken effect at the new owner must not be applied twice (section 6). */
export const supersedeStatement = (first: number): string =>
  `UPDATE divergent_operations d SET status = 'superseded' FROM unnest($${first}::text[], $${first + 1}::text[], $${first + 2}::int[]) AS k(tenant, key, shard)
    WHERE d.status = 'open' AND d.idempotency_key = k.key AND d.tenant = k.tenant AND d.shard = k.shard`;
