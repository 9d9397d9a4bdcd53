import type { Client } from "../infra/postgres/database.js";
import { epoch, partition, position, shardId, type ShardId } from "../shards/ids.js";
import type { Head } from "../shards/map.js";
import type { ShardState } from "../shards/states.js";
import type { FoldHead } from "./fold.js";
import type { EpochEnd } from "./record.js";

/** A row of `shard_head` with everything that the fold needs. */
export interface FullHead extends Head, FoldHead {
  /** Of the rows that should be here. */
  readonly digest?: number;
}

interface Row {
  readonly shard: number;
  readonly partition: number;
  readonly owner: string | null;
  readonly epoch: number;
  readonly state: ShardState;
  readonly position: number;
  readonly published: number;
  readonly tenure: number;
  readonly fenced_through: number;
  readonly closing: number;
  readonly confirmed: boolean;
  readonly since: string;
  readonly kind: string;
  readonly reason: string;
  readonly epoch_ends: EpochEnd[];
  readonly stopped: string | null;
  readonly digest: number;
  readonly revision: number;
}

const columns =
  "shard, partition, owner, epoch, state, position, published, tenure, fenced_through, closing, confirmed, since, kind, reason, epoch_ends, stopped, digest, revision";

export function headOf(row: Row): FullHead {
  return {
    shard: shardId(row.shard),
    partition: partition(row.partition),
    owner: row.owner,
    epoch: epoch(row.epoch),
    state: row.state,
    position: position(row.position),
    published: position(row.published),
    tenure: epoch(row.tenure),
    fencedThrough: epoch(row.fenced_through),
    closing: row.closing,
    confirmed: row.confirmed,
    since: row.since,
    kind: row.kind,
    reason: row.reason,
    epochEnds: row.epoch_ends,
    stopped: row.stopped,
    digest: row.digest,
    revision: row.revision,
  };
}

type Queryable = Pick<Client, "query">;

export async function readHeads(client: Queryable): Promise<FullHead[]> {
  const { rows } = await client.query<Row>(`SELECT ${columns} FROM shard_head ORDER BY shard`);
  return rows.map(headOf);
}

export async function lockHeads(client: Queryable, shards: readonly ShardId[]): Promise<Map<ShardId, FullHead>> {
  const { rows } = await client.query<Row>({
    name: "lock_full_heads",
    text: `SELECT ${columns} FROM shard_head WHERE shard = ANY($1::int[]) ORDER BY shard FOR NO KEY UPDATE`,
    values: [shards],
  });
  return new Map(rows.map((row) => [shardId(row.shard), headOf(row)]));
}

/** Stores heads that the caller holds locked; what writes rows keeps their digest. */
export async function storeHeads(client: Queryable, heads: readonly FullHead[]): Promise<void> {
  if (heads.length === 0) return;
  await client.query({
    name: "store_heads",
    text: `UPDATE shard_head h SET owner = v.owner, epoch = v.epoch, state = v.state, position = v.position, published = v.published,
        tenure = v.tenure, closing = v.closing, confirmed = v.confirmed, since = v.since, kind = v.kind, reason = v.reason,
        epoch_ends = v.epoch_ends, stopped = v.stopped, revision = v.revision
      FROM jsonb_populate_recordset(null::shard_head, $1::jsonb) AS v WHERE h.shard = v.shard`,
    values: [
      JSON.stringify(
        heads.map((head) => ({
          shard: head.shard,
          partition: head.partition,
          owner: head.owner,
          epoch: head.epoch,
          state: head.state,
          position: head.position,
          published: head.published,
          tenure: head.tenure,
          closing: head.closing,
          confirmed: head.confirmed,
          since: head.since,
          kind: head.kind,
          reason: head.reason,
          epoch_ends: head.epochEnds,
          stopped: head.stopped,
          revision: head.revision,
        })),
      ),
    ],
  });
}

/** Advances position and mark alone: the usual case, cheaper than a whole head. */
export async function storePositions(client: Queryable, heads: readonly FullHead[]): Promise<void> {
  if (heads.length === 0) return;
  await client.query({
    name: "store_positions",
    text: `UPDATE shard_head h SET position = greatest(h.position, v.position), published = greatest(h.published, v.published)
      FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[]) AS v(shard, epoch, position, published) WHERE h.shard = v.shard AND h.epoch = v.epoch`,
    values: [
      heads.map((h) => h.shard),
      heads.map((h) => h.epoch),
      heads.map((h) => h.position),
      heads.map((h) => h.published),
    ],
  });
}

/** Digests of shards as they are now. */
export async function readDigests(client: Queryable, shards: readonly ShardId[]): Promise<Map<ShardId, number>> {
  const { rows } = await client.query<{ shard: number; digest: number }>({
    name: "read_digests",
    text: "SELECT shard, digest FROM shard_head WHERE shard = ANY($1::int[])",
    values: [shards],
  });
  return new Map(rows.map((row) => [shardId(row.shard), row.digest]));
}
