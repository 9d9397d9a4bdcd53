import type { Database } from "../infra/postgres/database.js";

/** A shard's copy, recomputed from its rows. */
export interface ShardDigest {
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
  /** Clusters that are not deleted. */
  readonly clusters: number;
  /** Order-free sum over all replicated rows; equal copies give equal sums. */
  readonly digest: string;
  readonly restoring: number;
}

/** What of a row is replicated, as text; a job's stage is its owner's alone. */
const clusterText = `concat_ws('|', tenant, id, status, name, spec::text, state::text, labels::text, coalesce(extract(epoch from expires_at)::text, '-'), version, extract(epoch from created_at), extract(epoch from updated_at), deleted, changed_epoch, changed_position)`;
const jobText = `concat_ws('|', tenant, id, cluster_id, type, input::text, status, attempt, epoch, stages::text, coalesce(checkpoint::text, '-'), started_in, runs_in, coalesce(extract(epoch from finished_at)::text, '-'), coalesce(error, '-'), changed_epoch, changed_position)`;
const workerText = `concat_ws('|', tenant, id, capacity, labels::text, deleted, changed_epoch, changed_position)`;
const documentText = `concat_ws('|', kind, id, body::text, deleted, changed_epoch, changed_position)`;
const number = (text: string): string => `('x' || substr(md5(${text}), 1, 15))::bit(60)::bigint`;

/** Digests of some shards' copies (all: null), each at the position that it has in one snapshot of the database. */
export async function digestShards(database: Database, shards: readonly number[] | null): Promise<ShardDigest[]> {
  return database.transaction(async (client) => {
    await client.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    const { rows } = await client.query<ShardDigest>(
      `SELECT h.shard, h.epoch, h.position, coalesce(c.n, 0)::int AS clusters, coalesce(r.n, 0)::int AS restoring,
         (coalesce(c.d, 0) + coalesce(j.d, 0) * 3 + coalesce(w.d, 0) * 7 + coalesce(d.d, 0) * 11)::text AS digest
       FROM shard_head h
       LEFT JOIN (SELECT shard, count(*) FILTER (WHERE NOT deleted) AS n, sum(${number(clusterText)}::numeric) AS d FROM clusters GROUP BY shard) c USING (shard)
       LEFT JOIN (SELECT shard, sum(${number(jobText)}::numeric) AS d FROM jobs GROUP BY shard) j USING (shard)
       LEFT JOIN (SELECT shard, sum(${number(workerText)}::numeric) AS d FROM workers GROUP BY shard) w USING (shard)
       LEFT JOIN (SELECT shard, sum(${number(documentText)}::numeric) AS d FROM documents GROUP BY shard) d USING (shard)
       LEFT JOIN (SELECT shard, count(*) AS n FROM restores GROUP BY shard) r USING (shard)
       WHERE $1::int[] IS NULL OR h.shard = ANY($1::int[]) ORDER BY h.shard`,
      [shards],
    );
    return rows;
  });
}

/** Per cluster id one number over its row and its jobs, of one shard: to name what differs. */
export async function digestRows(database: Database, shard: number): Promise<Map<string, string>> {
  const { rows } = await database.pool.query<{ id: string; digest: string }>(
    `SELECT id, sum(d)::text AS digest FROM (
       SELECT id, ${number(clusterText)}::numeric AS d FROM clusters WHERE shard = $1
       UNION ALL SELECT cluster_id AS id, ${number(jobText)}::numeric * 3 AS d FROM jobs WHERE shard = $1
     ) AS rows GROUP BY id`,
    [shard],
  );
  return new Map(rows.map((row) => [row.id, row.digest]));
}
