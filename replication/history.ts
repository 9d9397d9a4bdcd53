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

/** What becomes known of a change of owner only after its record: its later phases, and what its former owner set aside. */
export interface ChangeFacts {
  readonly shard: number;
  readonly epoch: number;
  /** Milliseconds by phase. */
  readonly phasesMs: Readonly<Record<string, number>>;
  readonly divergent: number;
}

/** Whoever knows more is right: facts only become more. */
export const mergedFacts = (a: ChangeFacts, b: ChangeFacts): ChangeFacts => ({
  ...a,
  phasesMs: { ...b.phasesMs, ...a.phasesMs },
  divergent: Math.max(a.divergent, b.divergent),
});

export const factsKey = ({ shard, epoch }: Pick<ChangeFacts, "shard" | "epoch">): string => `${shard}-${epoch}`;

/** Facts of the same change as one, in the order of their first. */
export function gatheredFacts(facts: readonly ChangeFacts[]): ChangeFacts[] {
  const out = new Map<string, ChangeFacts>();
  for (const each of facts) {
    const known = out.get(factsKey(each));
    out.set(factsKey(each), known === undefined ? each : mergedFacts(known, each));
  }
  return [...out.values()];
}

/** Adds to changes that the history has. @returns facts of changes that it does not have yet */
export async function addFacts(
  database: Pick<Database, "pool">,
  facts: readonly ChangeFacts[],
): Promise<readonly ChangeFacts[]> {
  if (facts.length === 0) return [];
  const gathered = gatheredFacts(facts);
  const { rows } = await database.pool.query<{ shard: number; epoch: number }>({
    name: "add_facts",
    text: `UPDATE history h SET phases_ms = v.phases_ms || h.phases_ms, divergent = greatest(h.divergent, v.divergent)
      FROM jsonb_to_recordset($1::jsonb) AS v(shard int, epoch bigint, phases_ms jsonb, divergent bigint)
      WHERE h.shard = v.shard AND h.epoch = v.epoch RETURNING h.shard, h.epoch`,
    values: [
      JSON.stringify(
        gathered.map(({ shard, epoch, phasesMs, divergent }) => ({ shard, epoch, phases_ms: phasesMs, divergent })),
      ),
    ],
  });
  const found = new Set(rows.map(factsKey));
  return gathered.filter((each) => !found.has(factsKey(each)));
}

/** What the history here says of these changes. */
export async function factsOf(
  database: Pick<Database, "pool">,
  changes: readonly Pick<ChangeFacts, "shard" | "epoch">[],
): Promise<ChangeFacts[]> {
  const { rows } = await database.pool.query<ChangeFacts>({
    name: "facts_of",
    text: `SELECT shard, epoch, phases_ms AS "phasesMs", divergent FROM history
      JOIN unnest($1::int[], $2::bigint[]) AS v(shard, epoch) USING (shard, epoch)`,
    values: [changes.map(({ shard }) => shard), changes.map(({ epoch }) => epoch)],
  });
  return rows;
}
