import type { Client } from "../infra/postgres/database.js";
import { copyIn } from "../infra/postgres/copy.js";
import { epoch, position, shardId, type Epoch, type Position, type ShardId } from "../shards/ids.js";
import type { ClusterRow, ClusterStatus, JsonObject } from "./entities.js";
import type { Load } from "./record.js";
import { shapes, writeInput } from "./rows.js";

/** A cluster to create or replace, as it comes in bulk; the JSON is text, and stays so up to the table. */
export interface LoadRow {
  readonly id: string;
  readonly name: string;
  readonly spec: string;
  readonly state: string;
  readonly labels: string;
  readonly expiresAt: string | null;
}

/** The columns of a load's text, in this order for ever; a further one would be another record type. */
const columns = [...shapes.clusters.columns, "digest"];
const columnList = columns.join(", ");
const stage = "load_stage";

/** A row of the text, without its digest and end; PostgreSQL's COPY text format. */
export function loadLine(
  row: Omit<ClusterRow, "spec" | "state" | "labels"> & Pick<LoadRow, "spec" | "state" | "labels">,
): string {
  return [
    escape(row.tenant),
    escape(row.id),
    row.shard,
    row.status,
    escape(row.name),
    escape(row.spec),
    escape(row.state),
    escape(row.labels),
    row.expiresAt ?? "\\N",
    row.version,
    row.createdAt,
    row.updatedAt,
    row.deleted ? "t" : "f",
    row.changedEpoch,
    row.changedPosition,
  ].join("\t");
}

/** The rows of a load's text. */
export function readLoad(payload: Uint8Array): ClusterRow[] {
  const lines = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).toString("utf8").split("\n");
  return lines.slice(0, -1).map((line) => {
    const [
      tenant,
      id,
      shard,
      status,
      name,
      spec,
      state,
      labels,
      expiresAt,
      version,
      createdAt,
      updatedAt,
      deleted,
      e,
      p,
    ] = line.split("\t").map(unescape);
    const json = (text: string | null | undefined): JsonObject => JSON.parse(text ?? "{}") as JsonObject;
    return {
      tenant: tenant ?? "",
      id: id ?? "",
      shard: shardId(Number(shard)),
      status: (status ?? "active") as ClusterStatus,
      name: name ?? "",
      spec: json(spec),
      state: json(state),
      labels: json(labels) as Readonly<Record<string, string>>,
      expiresAt: expiresAt ?? null,
      version: Number(version),
      createdAt: createdAt ?? "",
      updatedAt: updatedAt ?? "",
      deleted: deleted === "t",
      changedEpoch: epoch(Number(e)),
      changedPosition: position(Number(p)),
    };
  });
}

/** A load as it is applied. */
export interface PlacedLoad {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly load: Load & { readonly payload: Uint8Array };
}

/**
 * Writes the rows of loads and the digests of their shards, whose heads are locked. Rows that were not there before go straight into
 * their table; any other are compared by (epoch, position) like every row.
 */
export async function writeLoads(client: Client, loads: readonly PlacedLoad[]): Promise<void> {
  const fresh = loads.filter(({ load }) => load.fresh);
  const others = loads.filter(({ load }) => !load.fresh);
  if (fresh.length > 0) {
    await client.query("SAVEPOINT load");
    try {
      await copyIn(
        client,
        `COPY clusters (${columnList}) FROM STDIN`,
        fresh.map(({ load }) => load.payload),
      );
      await client.query(
        `UPDATE shard_head h SET digest = h.digest # v.delta FROM (SELECT shard, bit_xor(delta) AS delta
           FROM unnest($1::int[], $2::bigint[]) AS u(shard, delta) GROUP BY shard) AS v WHERE h.shard = v.shard`,
        [fresh.map(({ shard }) => shard), fresh.map(({ load }) => load.delta)],
      );
    } catch (error) {
      if ((error as { code?: string }).code !== uniqueViolation) throw error;
      // A copy of later rows (a restore, a snapshot) was here before their records.
      await client.query("ROLLBACK TO SAVEPOINT load");
      others.push(...fresh);
    }
  }
  // One after the other: two of them may hold the same cluster.
  for (const { load } of others) {
    await prepareStage(client);
    await copyIn(client, `COPY ${stage} (${columnList}) FROM STDIN`, [load.payload]);
    await client.query(
      `WITH c_in AS MATERIALIZED (SELECT ${shapes.clusters.columns.join(", ")}, digest AS row_digest FROM ${stage}), ${writeInput(shapes.clusters, "c").join(", ")}
       UPDATE shard_head h SET digest = h.digest # d.delta FROM c_delta d WHERE h.shard = d.shard`,
    );
  }
}

/**
 * The owner's side: writes rows given as lines without their digests, in shards whose heads are locked. `fresh`: none of them is there.
 * @returns the rows' digests by tenant and id, and what they change in the digests of their shards
 */
export async function writeLines(
  client: Client,
  lines: Iterable<string>,
  fresh: boolean,
): Promise<{ readonly digests: ReadonlyMap<string, number>; readonly deltas: ReadonlyMap<number, number> }> {
  const names = shapes.clusters.columns.join(", ");
  await prepareStage(client);
  await copyIn(client, `COPY ${stage} (${names}) FROM STDIN`, lines);
  const parts = fresh
    ? [
        "c_delta AS (SELECT shard, bit_xor(row_digest) AS delta FROM c_in GROUP BY shard)",
        `c AS (INSERT INTO clusters (${columnList}) SELECT ${names}, row_digest FROM c_in)`,
      ]
    : writeInput(shapes.clusters, "c");
  const { rows } = await client.query<{ tenant: string; id: string; shard: number; digest: number; delta: number }>(
    `WITH c_in AS MATERIALIZED (SELECT ${names}, ${shapes.clusters.digest("v")} AS row_digest FROM ${stage} AS v), ${parts.join(", ")}
     SELECT i.tenant, i.id, i.shard, i.row_digest AS digest, d.delta FROM c_in i LEFT JOIN c_delta d USING (shard)`,
  );
  return {
    digests: new Map(rows.map((row) => [`${row.tenant}/${row.id}`, row.digest])),
    deltas: new Map(rows.map((row) => [row.shard, row.delta])),
  };
}

const uniqueViolation = "23505";

async function prepareStage(client: Client): Promise<void> {
  await client.query(
    `CREATE TEMP TABLE IF NOT EXISTS ${stage} (LIKE clusters INCLUDING DEFAULTS) ON COMMIT DELETE ROWS; TRUNCATE ${stage}`,
  );
}

const special = /[\\\t\n\r]/;
const codes: Readonly<Record<string, string>> = { "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r" };
const escape = (text: string): string =>
  special.test(text) ? text.replace(/[\\\t\n\r]/g, (c) => codes[c] ?? c) : text;
const plain: Readonly<Record<string, string>> = { "\\": "\\", t: "\t", n: "\n", r: "\r" };
const unescape = (text: string): string | null =>
  text === "\\N" ? null : text.includes("\\") ? text.replace(/\\(.)/g, (_, c: string) => plain[c] ?? c) : text;
