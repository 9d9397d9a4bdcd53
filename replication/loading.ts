import type { Client } from "../infra/postgres/database.js";
import { epoch as toEpoch, position as toPosition, type Epoch, type Position, type ShardId } from "../shards/ids.js";
import { copyTables } from "./copy-tables.js";
import type { Cut } from "./copy-source.js";

/** A shard that is being loaded, and how far that is. */
export interface Loading {
  readonly shard: ShardId;
  readonly since: Cut | null;
  readonly from: Cut;
  readonly table: string;
  readonly after: readonly (string | number)[] | null;
  readonly rows: number;
  readonly attempt: string;
}

/** The copy of a shard counts for nothing until what is missing was loaded. */
export async function startLoading(
  client: Client,
  load: {
    readonly shard: ShardId;
    readonly since: Cut | null;
    readonly from: Cut;
    readonly attempt: string;
    /** The table to begin with; default: the first of all. */
    readonly first?: string;
  },
): Promise<void> {
  const { shard, since, from, attempt } = load;
  await client.query(
    `INSERT INTO snapshots (shard, since_epoch, since_position, from_epoch, from_position, table_name, attempt)
     VALUES ($1, $2, $3, $4, $5, $6, $7)
     ON CONFLICT (shard) DO UPDATE SET since_epoch = excluded.since_epoch, since_position = excluded.since_position,
       from_epoch = excluded.from_epoch, from_position = excluded.from_position, table_name = excluded.table_name, after = null,
       cut_epoch = null, cut_position = null, rows = 0, attempt = excluded.attempt`,
    [
      shard,
      since?.epoch ?? null,
      since?.position ?? null,
      from.epoch,
      from.position,
      load.first ?? copyTables[0]?.name,
      attempt,
    ],
  );
  await client.query(
    `INSERT INTO restores (shard, tenant, cluster_id, kind) VALUES ($1, '', '', 'shard')
     ON CONFLICT (shard, tenant, kind, cluster_id) DO UPDATE SET cut_epoch = null, cut_position = null`,
    [shard],
  );
}

export interface LoadingRow {
  readonly shard: number;
  readonly since_epoch: number | null;
  readonly since_position: number | null;
  readonly from_epoch: number;
  readonly from_position: number;
  readonly table_name: string;
  readonly after: readonly (string | number)[] | null;
  readonly rows: number;
  readonly attempt: string;
}

export const loadingColumns =
  "shard, since_epoch, since_position, from_epoch, from_position, table_name, after, rows, attempt";

export const loadingOf = (row: LoadingRow): Loading => ({
  shard: row.shard as ShardId,
  since: row.since_epoch === null ? null : { epoch: row.since_epoch, position: row.since_position ?? 0 },
  from: { epoch: row.from_epoch, position: row.from_position },
  table: row.table_name,
  after: row.after,
  rows: row.rows,
  attempt: row.attempt,
});

/**
 * A snapshot of which some chunk was cut in an epoch that ended below that cut holds what its owner never published: it begins
 * anew. Call it in the transaction that adopts the newer epoch.
 */
export async function voidSnapshots(client: Client, shard: ShardId, ended: Epoch, last: Position): Promise<void> {
  const { rows } = await client.query<{ attempt: string | null }>(
    `SELECT s.attempt FROM restores r LEFT JOIN snapshots s ON s.shard = r.shard
     WHERE r.shard = $1 AND r.kind = 'shard' AND coalesce(s.cut_epoch, r.cut_epoch) = $2 AND coalesce(s.cut_position, r.cut_position) > $3`,
    [shard, ended, last],
  );
  if (rows.length === 0) return;
  await startLoading(client, {
    shard,
    since: null,
    from: { epoch: toEpoch(ended), position: toPosition(last) },
    attempt: `void-${ended}-${last}`,
  });
}
