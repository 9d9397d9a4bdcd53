import type { ShardId } from "../shards/ids.js";

/**
 * Pure. Who begins now, of those that wait, where few can be under way at once: whoever began longest ago, those that never did
 * first, and of one lane never more than `most`. So what fails again and again, or stands still, holds up nobody else: it has its own
 * lane's places, and there it goes behind those that wait longer.
 */
export function nextInTurn<T extends { readonly shard: ShardId }>(
  waiting: readonly T[],
  o: {
    /** The lanes of those that are under way. */
    readonly busy: ReadonlyMap<ShardId, number>;
    readonly lane: (each: T) => number;
    readonly most: number;
    /** Grows with each beginning. */
    readonly began: ReadonlyMap<ShardId, number>;
  },
): T[] {
  const taken = new Map<number, number>();
  for (const lane of o.busy.values()) taken.set(lane, (taken.get(lane) ?? 0) + 1);
  const turn = ({ shard }: T): number => o.began.get(shard) ?? 0;
  return waiting
    .filter(({ shard }) => !o.busy.has(shard))
    .sort((a, b) => turn(a) - turn(b) || a.shard - b.shard)
    .filter((each) => {
      const lane = o.lane(each);
      const count = taken.get(lane) ?? 0;
      if (count >= o.most) return false;
      taken.set(lane, count + 1);
      return true;
    });
}
