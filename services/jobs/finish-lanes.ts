import type { SiteName } from "../../shards/ids.js";

/** What is under way for one shard, and whether its owner has answered lately. */
interface Lane {
  readonly busy: number;
  /** How often in a row nobody has answered. */
  readonly silent: number;
  /** Nobody has answered: asked again at this time (monotonic), with one finish. */
  readonly again: number;
}

export const mostOfAll = 64;
export const mostOfOwner = 48;
export const mostOfShard = 16;
const idle: Lane = { busy: 0, silent: 0, again: 0 };

/** Pure. How many more finishes of a shard may be on their way. */
export function roomOf(lane: Lane, ownerBusy: number, allBusy: number, now: number): number {
  const ofShard = lane.silent === 0 ? mostOfShard : now < lane.again ? 0 : 1;
  return Math.max(0, Math.min(ofShard - lane.busy, mostOfOwner - ownerBusy, mostOfAll - allBusy));
}

/** Milliseconds before one that was tried so often in vain is tried again. */
export const backOff = (tries: number): number => Math.min(5_000, 250 * 2 ** Math.min(tries, 6));

/** Which shards' finishes may be sent now: a shard, or an owner, from which no answer comes leaves room for the others. */
export class FinishLanes {
  readonly #lanes = new Map<number, Lane>();
  readonly #owners = new Map<SiteName, number>();
  #busy = 0;

  room(shard: number, owner: SiteName | null, now: number): number {
    if (owner === null) return 0;
    return roomOf(this.#lanes.get(shard) ?? idle, this.#owners.get(owner) ?? 0, this.#busy, now);
  }

  begin(shard: number, owner: SiteName): void {
    this.#add(shard, owner, 1);
  }

  end(shard: number, owner: SiteName, answered: boolean, now: number): void {
    const lane = this.#add(shard, owner, -1);
    const silent = answered ? 0 : lane.silent + 1;
    if (lane.busy === 0 && silent === 0) this.#lanes.delete(shard);
    else this.#lanes.set(shard, { busy: lane.busy, silent, again: now + backOff(silent) });
  }

  #add(shard: number, owner: SiteName, by: number): Lane {
    const before = this.#lanes.get(shard) ?? idle;
    const lane = { ...before, busy: before.busy + by };
    this.#lanes.set(shard, lane);
    this.#owners.set(owner, (this.#owners.get(owner) ?? 0) + by);
    this.#busy += by;
    return lane;
  }
}
