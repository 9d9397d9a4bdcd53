import { isRefusal, isTimeout, type Client, type Database } from "../infra/postgres/database.js";
import { jobsOf } from "./copy-tables.js";
import { shapes, type TableShape } from "./rows.js";

/**
 * Digests. Every replicated row keeps the digest of itself as it was written (`rows.ts`), every shard the exclusive-or of its rows' digests,
 * changed in the transaction that changes rows. So a shard's digest tells what should be in it, whoever has damaged rows since:
 * a row that does not equal its own digest was damaged at rest, and a sum that does not equal the shard's lacks rows or has too many.
 */
export interface ShardDigest {
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
  /** Clusters that are not deleted. */
  readonly clusters: number;
  /** What should be here, by the changes that were made. */
  readonly expected: number;
  /** What is here, recomputed from the rows. */
  readonly digest: number;
  readonly restoring: number;
  /** Why the log is not applied to this copy any more. */
  readonly stopped?: string | null;
  /** Where a digest of the log was last compared with this copy's. */
  readonly comparedEpoch: number;
  readonly comparedPosition: number;
  readonly comparedEqual: boolean;
}

const tables: readonly TableShape[] = [shapes.clusters, shapes.jobs, shapes.workers, shapes.documents];
const digestOfRow = (shape: TableShape, v: string): string => shape.digest?.(v) ?? "0";

/** Bound of a statement over all rows of a shard, milliseconds: such a one takes as long as the shard is large. */
export const digestMs = 60_000;
/** Of one over several shards, before each is digested by itself. */
const togetherMs = 5_000;
/** Where several took longer, the next is digested by itself. */
const slowMs = 500;

type Read = <R extends object>(sql: string, values: readonly unknown[]) => Promise<R[]>;

/** Statements in one snapshot of the database, each of which may take `ms`. */
function readLong<T>(database: Database, work: (read: Read) => Promise<T>, ms = digestMs): Promise<T> {
  return database.transaction(async (client) => {
    await client.query(
      `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = ${ms}`,
    );
    return work(async <R extends object>(text: string, values: readonly unknown[]) => {
      const statement = { text, values: [...values], query_timeout: ms + 500 };
      return (await client.query<R>(statement)).rows;
    });
  });
}

/** Digests of some shards' copies (all: null), each at the position that it has in one snapshot of the database. */
export async function digestShards(
  database: Database,
  shards: readonly number[] | null,
  ms = digestMs,
): Promise<ShardDigest[]> {
  const sums = tables.map((shape) => `LEFT JOIN (${sumsOf(shape, shards !== null)}) ${shape.table}_sum USING (shard)`);
  return readLong(
    database,
    (read) =>
      read<ShardDigest>(
        `SELECT h.shard, h.epoch, h.position, coalesce(clusters_sum.n, 0)::int AS clusters, coalesce(r.n, 0)::int AS restoring, h.digest AS expected, h.stopped,
         h.compared_epoch AS "comparedEpoch", h.compared_position AS "comparedPosition", h.compared_equal AS "comparedEqual",
         ${tables.map((shape) => `coalesce(${shape.table}_sum.d, 0)`).join(" # ")} AS digest
       FROM shard_head h ${sums.join(" ")}
       LEFT JOIN (SELECT shard, count(*) AS n FROM restores GROUP BY shard) r USING (shard)
       WHERE $1::int[] IS NULL OR h.shard = ANY($1::int[]) ORDER BY h.shard`,
        [shards],
      ),
    ms,
  );
}

/** What became of some shards of `digestEach`. */
export interface Digested {
  readonly found: readonly ShardDigest[];
  /** Its rows can't be read, or not in time. */
  readonly failed: { readonly shard: number; readonly error: Error } | null;
}

/** Digests shards in turn, up to `atOnce` in one statement while that is quick; one that can't be digested holds up no other. */
export async function* digestEach(
  database: Database,
  shards: readonly number[],
  atOnce: number,
  monotonic: () => number,
): AsyncGenerator<Digested> {
  let size = atOnce;
  for (let left = shards; left.length > 0;) {
    const some = left.slice(0, size);
    const began = monotonic();
    let digested: Digested;
    try {
      const ms = some.length > 1 ? togetherMs : digestMs;
      digested = { found: await digestShards(database, some, ms), failed: null };
    } catch (error) {
      if (!isRefusal(error) && !isTimeout(error)) throw error;
      size = 1;
      if (some.length > 1) continue;
      digested = { found: [], failed: { shard: some[0] ?? 0, error: error as Error } };
    }
    left = left.slice(some.length);
    size = monotonic() - began > slowMs ? 1 : Math.min(atOnce, 2 * size);
    yield digested;
  }
}

/** What a copy's rows should add up to, at the place where it stands: read without a look at the rows. */
export interface Sum {
  readonly epoch: number;
  readonly position: number;
  readonly expected: number;
}

export async function readSum(database: Database, shard: number): Promise<Sum | undefined> {
  const { rows } = await database.pool.query<Sum>(
    "SELECT epoch, position, digest AS expected FROM shard_head WHERE shard = $1",
    [shard],
  );
  return rows[0];
}

/**
 * Takes a difference out of what the shard's rows should add up to. What writes rows changes the sum by their difference, so one that
 * was found at an earlier place of the epoch holds still.
 * @returns false when the epoch is another one, or rows are being restored: nothing was changed
 */
export async function correctSum(
  database: Database,
  shard: number,
  epoch: number,
  wrong: number,
  right: number,
): Promise<boolean> {
  const { rowCount } = await database.pool.query(
    `UPDATE shard_head h SET digest = digest # $3::bigint # $4::bigint
     WHERE shard = $1 AND epoch = $2 AND NOT EXISTS (SELECT 1 FROM restores r WHERE r.shard = h.shard)`,
    [shard, epoch, wrong, right],
  );
  return rowCount === 1;
}

/** SQL of what is recomputed of a table, by shard: of all, or of some in `$1`. */
function sumsOf(shape: TableShape, some: boolean): string {
  const digest = `bit_xor(${digestOfRow(shape, "t")})`;
  // Shard by shard: only so does it look at no others' jobs.
  if (some && shape === shapes.jobs)
    return `SELECT s.shard, (SELECT ${digest} FROM jobs t WHERE t.shard = s.shard AND ${jobsOf("t.id", "s.shard")}) AS d
      FROM (SELECT DISTINCT unnest($1::int[]) AS shard) AS s`;
  const clusters = shape === shapes.clusters ? ", count(*) FILTER (WHERE NOT t.deleted) AS n" : "";
  return `SELECT t.shard, ${digest} AS d${clusters} FROM ${shape.table} t ${some ? "WHERE t.shard = ANY($1::int[])" : ""} GROUP BY t.shard`;
}

/** Rows `t` of the shard `$1`, without a look at those of others. */
const ofShard = (shape: TableShape): string =>
  `t.shard = $1::int${shape === shapes.jobs ? ` AND ${jobsOf("t.id", "$1::int")}` : ""}`;

/** The shard's digest is made what its rows' digests say: after rows were removed or copied. The shard's head is locked. */
export async function resetDigest(client: Client, shard: number): Promise<void> {
  const sums = tables.map(
    (shape) => `coalesce((SELECT bit_xor(t.digest) FROM ${shape.table} t WHERE ${ofShard(shape)}), 0)`,
  );
  await client.query(`UPDATE shard_head SET digest = ${sums.join(" # ")} WHERE shard = $1::int`, [shard]);
}

/** Cluster ids of a shard fall into so many buckets: what differs between copies of any size is found in two short answers. */
const buckets = 1024;

/** One number over the rows and jobs of each bucket that has some. */
export async function digestBuckets(database: Database, shard: number): Promise<Map<number, number>> {
  const rows = await readLong(database, (read) =>
    read<{ bucket: number; digest: number }>(
      `SELECT ${bucketOf("id")} AS bucket, bit_xor(d) AS digest FROM (${rowDigests}) AS rows GROUP BY 1`,
      [shard],
    ),
  );
  return new Map(rows.map((row) => [row.bucket, row.digest]));
}

/** Per cluster id one number over its row and its jobs, of one bucket: to name what differs. */
export async function digestRows(database: Database, shard: number, bucket: number): Promise<Map<string, number>> {
  const rows = await readLong(database, (read) =>
    read<{ id: string; digest: number }>(
      `SELECT id, bit_xor(d) AS digest FROM (${rowDigests}) AS rows WHERE ${bucketOf("id")} = $2 GROUP BY id`,
      [shard, bucket],
    ),
  );
  return new Map(rows.map((row) => [row.id, row.digest]));
}

const bucketOf = (id: string): string => `(hashtextextended(${id}, 0) & ${buckets - 1})::int`;
const rowDigests = `SELECT t.id, ${digestOfRow(shapes.clusters, "t")} AS d FROM clusters t WHERE ${ofShard(shapes.clusters)}
  UNION ALL SELECT t.cluster_id AS id, ${digestOfRow(shapes.jobs, "t")} AS d FROM jobs t WHERE ${ofShard(shapes.jobs)}`;

/** Clusters of a shard whose rows (or jobs' rows) are not as they were written; at most `limit`. */
export async function damagedClusters(database: Database, shard: number, limit: number): Promise<string[]> {
  const rows = await readLong(database, (read) =>
    read<{ id: string }>(
      `SELECT t.id FROM clusters t WHERE ${ofShard(shapes.clusters)} AND t.digest <> ${digestOfRow(shapes.clusters, "t")}
       UNION SELECT t.cluster_id FROM jobs t WHERE ${ofShard(shapes.jobs)} AND t.digest <> ${digestOfRow(shapes.jobs, "t")} LIMIT $2`,
      [shard, limit],
    ),
  );
  return rows.map((row) => row.id);
}
