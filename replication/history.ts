import type { Client, Database } from "../infra/postgres/database.js";
import type { Epoch, Position, ShardId, SiteName } from "../shards/ids.js";
import type { OpenBody } from "./record.js";

/** A change of owner, as the history keeps it. */
export interface HistoryRow {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  /** When it was asked of the log: owner's clock, ms since 1970. */
  readonly at: number;
  readonly from: SiteName | null;
  readonly to: SiteName;
  readonly open: OpenBody;
  readonly divergent: number;
  /** Last position of the epoch before. */
  readonly last: Position;
}

/** Who owned the shard in this epoch, as far as this datacenter knows. */
export async function ownerIn(
  database: Pick<Database, "pool">,
  shard: ShardId,
  epoch: Epoch,
): Promise<SiteName | undefined> {
  const { rows } = await database.pool.query<{ owner: SiteName }>({
    name: "owner_in",
    text: "SELECT to_dc AS owner FROM history WHERE shard = $1 AND epoch = $2",
    values: [shard, epoch],
  });
  return rows[0]?.owner;
}

/** Adds changes of owner to the history; those that it has already stay. */
export async function insertHistory(client: Client, changes: readonly HistoryRow[]): Promise<void> {
  if (changes.length === 0) return;
  await client.query({
    name: "insert_history",
    text: `INSERT INTO history (shard, epoch, at, from_dc, to_dc, kind, reason, by, phases_ms, drained, divergent, last_position)
      SELECT shard, epoch, to_timestamp(at::float8 / 1000), from_dc, to_dc, kind, reason, by, phases_ms, drained, divergent, last_position
      FROM jsonb_to_recordset($1::jsonb) AS v(shard int, epoch bigint, at float8, from_dc text, to_dc text, kind text, reason text,
        by text, phases_ms jsonb, drained bigint, divergent bigint, last_position bigint)
      ON CONFLICT (shard, epoch) DO NOTHING`,
    values: [
      JSON.stringify(
        changes.map(({ shard, epoch, at, from, to, open, divergent, last }) => ({
          shard,
          epoch,
          at,
          from_dc: from,
          to_dc: to,
          kind: open.kind,
          reason: open.reason,
          by: open.by,
          phases_ms: open.phasesMs,
          drained: open.drained,
          divergent,
          last_position: last,
        })),
      ),
    ],
  });
}
