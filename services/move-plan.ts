import type { Partition, ShardId, SiteName } from "../shards/ids.js";
import type { Head } from "../shards/map.js";

/** One shard's way. */
export interface PlannedMove {
  readonly shard: ShardId;
  readonly from: SiteName | null;
  readonly to: SiteName;
}

/**
 * Shards that go step by step together, and so share statements and messages; the next ones begin when these have ended: more at
 * once would hold each shard for longer.
 */
const atOnce = 8;

/** Carries out the moves, some at a time, and `after` behind each time. */
export async function inStep<T>(
  moves: readonly T[],
  move: (one: T) => Promise<void>,
  after?: () => Promise<void>,
): Promise<void> {
  for (let at = 0; at < moves.length; at += atOnce) {
    await Promise.all(moves.slice(at, at + atOnce).map(move));
    await after?.();
  }
}

const byPartition = (heads: readonly Head[]): Map<Partition, Head[]> => {
  const out = new Map<Partition, Head[]>();
  for (const head of heads) out.set(head.partition, [...(out.get(head.partition) ?? []), head]);
  return out;
};

const counts = (heads: readonly Head[], among: readonly SiteName[]): Map<SiteName, number> => {
  const out = new Map(among.map((dc) => [dc, 0]));
  for (const head of heads)
    if (head.owner !== null && out.has(head.owner)) out.set(head.owner, (out.get(head.owner) ?? 0) + 1);
  return out;
};

/** All shards of a datacenter go elsewhere, whole partitions, each to who then owns least. */
export function planDrain(heads: readonly Head[], dc: SiteName, targets: readonly SiteName[]): PlannedMove[] {
  const owned = counts(heads, targets);
  const moves: PlannedMove[] = [];
  const mine = [...byPartition(heads.filter((head) => head.owner === dc)).values()].sort((a, b) => b.length - a.length);
  for (const group of mine) {
    const to = [...owned].sort((a, b) => a[1] - b[1] || (a[0] < b[0] ? -1 : 1))[0]?.[0];
    if (to === undefined) break;
    owned.set(to, (owned.get(to) ?? 0) + group.length);
    for (const head of group) moves.push({ shard: head.shard, from: dc, to });
  }
  return moves;
}

/** Shards spread evenly over the datacenters by moving as few partitions as possible. */
export function planRebalance(heads: readonly Head[], datacenters: readonly SiteName[]): PlannedMove[] {
  const owned = counts(heads, datacenters);
  const groups = [...byPartition(heads).values()]
    .map((group) => ({ owner: group[0]?.owner ?? null, heads: group }))
    .filter((group) => group.heads.every((head) => head.owner === group.owner))
    .sort((a, b) => a.heads.length - b.heads.length);
  const moves: PlannedMove[] = [];
  for (;;) {
    const order = [...owned].sort((a, b) => a[1] - b[1] || (a[0] < b[0] ? -1 : 1));
    const least = order[0];
    const most = order.at(-1);
    if (least === undefined || most === undefined) return moves;
    // A move helps when it makes the larger one of the two smaller.
    const index = groups.findIndex((group) => group.owner === most[0] && least[1] + group.heads.length < most[1]);
    const [group] = index < 0 ? [] : groups.splice(index, 1);
    if (group === undefined) return moves;
    owned.set(most[0], most[1] - group.heads.length);
    owned.set(least[0], least[1] + group.heads.length);
    for (const head of group.heads) moves.push({ shard: head.shard, from: most[0], to: least[0] });
  }
}

/** What a takeover moved away from a datacenter goes home. `homes`: the last owner that was planned, by shard. */
export function planFailback(
  heads: readonly Head[],
  dc: SiteName,
  homes: ReadonlyMap<number, SiteName>,
): PlannedMove[] {
  return heads
    .filter((head) => head.owner !== null && head.owner !== dc && homes.get(head.shard) === dc)
    .map((head) => ({ shard: head.shard, from: head.owner, to: dc }));
}
