import type { SiteName } from "../shards/ids.js";

/** A datacenter that reads the partition. */
export interface PurgeMember {
  readonly dc: SiteName;
  /** It is heard. One that is dead keeps the log only as long as the retention says. */
  readonly live: boolean;
  /** Every message up to this one is folded in there; undefined: not known. */
  readonly applied: number | undefined;
}

export interface PurgeFacts {
  readonly firstSequence: number;
  readonly lastSequence: number;
  readonly bytes: number;
  readonly messages: number;
  /** The newest open or statement of each shard of the partition, as far as seen; undefined: of some none was seen yet. */
  readonly oldestStatement: number | undefined;
  /** Everything below is older than the retention. */
  readonly expired: number;
  /** Everything below is older than nine tenths of it. */
  readonly expiring: number;
  readonly maxBytes: number;
  readonly members: readonly PurgeMember[];
}

export interface PurgePlan {
  /** Messages below this sequence may go. */
  readonly below: number;
  /** Datacenters that this purge leaves behind: they need a snapshot. */
  readonly left: readonly SiteName[];
  /** Datacenters that the log is soon to be purged past. */
  readonly endangered: readonly SiteName[];
  /** Only old statements keep the partition above its size: its shards have to be stated anew. */
  readonly restate: boolean;
  /** So near its bound that only ownership changes may be appended. */
  readonly full: boolean;
}

/** Of the size bound: a purge begins above `purgeAt`, down to `purgeTo`; from `fullAt` on no records are appended (section 2). */
const purgeAt = 0.75;
const purgeTo = 0.6;
const warnAt = 0.6;
const fullAt = 0.9;

/**
 * Below which sequence a partition may be purged: never the newest statement of any of its shards, since a subject without
 * messages takes an append with expected 0 from anybody; by age only what every live datacenter has applied; by size what it takes.
 */
export function planPurge(facts: PurgeFacts): PurgePlan {
  const { firstSequence, lastSequence, bytes, messages, maxBytes, members } = facts;
  const floor = Math.min(facts.oldestStatement ?? firstSequence, lastSequence + 1);
  const needs = (member: PurgeMember): number => (member.applied === undefined ? firstSequence : member.applied + 1);
  const needed = Math.min(lastSequence + 1, ...members.filter((m) => m.live).map(needs));
  const byAge = Math.min(facts.expired, needed);
  const mean = messages === 0 ? 0 : bytes / messages;
  const toRemove = bytes > maxBytes * purgeAt && mean > 0 ? Math.ceil((bytes - maxBytes * purgeTo) / mean) : 0;
  const bySize = toRemove > 0 ? firstSequence + toRemove : firstSequence;
  const below = Math.max(firstSequence, Math.min(floor, Math.max(byAge, bySize)));
  const known = members.filter((member) => member.applied !== undefined);
  const left = known.filter((member) => needs(member) < below && needs(member) >= firstSequence).map((m) => m.dc);
  // What the purge after this one takes at the most: the partition may be nearly full by then.
  const nextStep = mean > 0 ? (maxBytes * (fullAt - purgeTo)) / mean : 0;
  const soonBySize = bytes > maxBytes * warnAt ? below + nextStep : 0;
  const endangered = known
    .filter((member) => !left.includes(member.dc) && needs(member) >= firstSequence)
    .filter((member) => needs(member) < Math.max(member.live ? 0 : facts.expiring, soonBySize))
    .map((member) => member.dc);
  return {
    below,
    left,
    endangered,
    restate: bySize > floor,
    full: bytes >= maxBytes * fullAt,
  };
}
