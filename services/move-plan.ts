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

/**
 * Shards spread evenly over the datacenters by moving as few partitions as possible. A partition of several owners goes as one to
 * who ends up with it, as a rule who has most of it; one that also a datacenter owns that can't give its part away stays.
 */
export function planRebalance(heads: readonly Head[], datacenters: readonly SiteName[]): PlannedMove[] {
  const groups = [...byPartition(heads).values()]
    .filter((group) => group.every((head) => head.owner !== null && datacenters.includes(head.owner)))
    .map((group) => ({ owner: mostOf(group, datacenters), heads: group }))
    .sort((a, b) => a.heads.length - b.heads.length);
  const placed = new Map(groups.flatMap((group) => group.heads.map((head) => [head.shard, group.owner] as const)));
  const owned = counts(
    heads.map((head) => ({ ...head, owner: placed.get(head.shard) ?? head.owner })),
    datacenters,
  );
  for (;;) {
    const order = [...owned].sort((a, b) => a[1] - b[1] || (a[0] < b[0] ? -1 : 1));
    const least = order[0];
    const most = order.at(-1);
    if (least === undefined || most === undefined) break;
    // A move helps when it makes the larger one of the two smaller.
    const index = groups.findIndex((group) => group.owner === most[0] && least[1] + group.heads.length < most[1]);
    const group = groups[index];
    if (group === undefined) break;
    owned.set(most[0], most[1] - group.heads.length);
    owned.set(least[0], least[1] + group.heads.length);
    group.owner = least[0];
  }
  return groups.flatMap(({ owner: to, heads: group }) =>
    group.filter((head) => head.owner !== to).map((head) => ({ shard: head.shard, from: head.owner, to })),
  );
}

/** Who owns most of the shards; of equals the first by name. */
function mostOf(heads: readonly Head[], among: readonly SiteName[]): SiteName {
  const [most] = [...counts(heads, among)].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return most?.[0] ?? "";
}

/** What a takeover moved away from a datacenter goes home, partition by partition. `homes`: the last owner that was planned, by shard. */
export function planFailback(
  heads: readonly Head[],
  dc: SiteName,
  homes: ReadonlyMap<number, SiteName>,
): PlannedMove[] {
  return heads
    .filter((head) => head.owner !== null && head.owner !== dc && homes.get(head.shard) === dc)
    .sort((a, b) => a.partition - b.partition || a.shard - b.shard)
    .map((head) => ({ shard: head.shard, from: head.owner, to: dc }));
}
