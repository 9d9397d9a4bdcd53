import type { SiteName } from "./ids.js";
import { majority, promisesNeeded } from "./lease.js";

/** Who is a member and may vote: a numbered record on the log's control subject, changed by compare-and-set. */
export interface SiteSet {
  /** Grows with each change; heartbeats, promises and votes count only under the same number. */
  readonly number: number;
  readonly sites: readonly { readonly name: SiteName; readonly witness: boolean }[];
  /** Datacenters that left; one that comes back by mistake is refused. */
  readonly removed: readonly SiteName[];
  /**
   * A change of the members that not everybody may know of yet: until it has been acknowledged, leases and votes need a
   * majority of both the former sites and the present ones, and no other change may begin.
   */
  readonly changing?: { readonly before: SiteSet["sites"] };
  readonly failoverPaused: boolean;
  readonly shards: number;
  readonly partitions: number;
}

export const datacentersOf = (set: SiteSet): SiteName[] =>
  set.sites.filter((site) => !site.witness).map((site) => site.name);

/**
 * Whether a datacenter that dies can be taken over without an operator, and if not why.
 * @param heard sites that live; without it only the set is judged
 */
export function automaticTakeover(
  set: SiteSet,
  heard?: ReadonlySet<SiteName>,
): { readonly possible: boolean; readonly why: string | null } {
  if (set.failoverPaused)
    return { possible: false, why: "automatic takeovers are paused (`hothot failover resume` ends that)" };
  if (set.sites.length < 3)
    return {
      possible: false,
      why: `with ${set.sites.length} site(s) nobody can outvote a silent one: add a witness, or use \`hothot takeover --force\``,
    };
  const missing = heard === undefined ? [] : votersOf(set).filter((name) => !heard.has(name));
  const voters = new Set(votersOf(set).filter((name) => !missing.includes(name)));
  const outvoted = (dc: SiteName): boolean => votesSuffice(set, new Set([...voters].filter((name) => name !== dc)));
  if (!datacentersOf(set).every(outvoted))
    return {
      possible: false,
      why:
        missing.length === 0
          ? "the members are being changed: until all know of it, a silent one can't be outvoted"
          : `${missing.join(" and ")} ${missing.length === 1 ? "is" : "are"} not heard: should a datacenter die now, those that are left are no majority`,
    };
  return { possible: true, why: null };
}

export const votesNeeded = (set: SiteSet): number => majority(set.sites.length);

const holdsMajority = (sites: SiteSet["sites"], names: ReadonlySet<SiteName>): boolean =>
  sites.filter((site) => names.has(site.name)).length >= majority(sites.length);

const joint = (set: SiteSet, names: ReadonlySet<SiteName>): boolean =>
  set.changing === undefined || (holdsMajority(set.sites, names) && holdsMajority(set.changing.before, names));

/** Whether promises of these sites make a lease. */
export const promisesSuffice = (set: SiteSet, names: ReadonlySet<SiteName>): boolean =>
  names.size >= promisesNeeded(set.sites.length) && joint(set, names);

/** Whether votes of these sites allow a takeover. */
export const votesSuffice = (set: SiteSet, names: ReadonlySet<SiteName>): boolean =>
  names.size >= votesNeeded(set) && joint(set, names);

/** Everybody whose word counts: during a change of the members also those who leave. */
export const votersOf = (set: SiteSet): SiteName[] => [
  ...new Set([...set.sites, ...(set.changing?.before ?? [])].map((site) => site.name)),
];

/** Replicas of the log's streams in a group of so many sites (section 2). */
export const replicasDue = (sites: number): number => (sites >= 5 ? 5 : Math.min(3, sites));

/** The set with one more datacenter. */
export const withDatacenter = (set: SiteSet, name: SiteName): SiteSet => ({
  ...set,
  sites: [...set.sites, { name, witness: false }],
  changing: { before: set.sites },
});

/** The set without a site; it can't come back under this name. */
export const withoutSite = (set: SiteSet, name: SiteName): SiteSet => ({
  ...set,
  sites: set.sites.filter((site) => site.name !== name),
  removed: [...set.removed, name],
  changing: { before: set.sites },
});

/** The change is acknowledged: the present sites alone count from now on. */
export function settledSet(set: SiteSet): SiteSet {
  const { changing: _, ...rest } = set;
  return rest;
}

/**
 * When a change counts as known to all who matter: two leases after a majority of both sets was heard under its number.
 * @param heardSince monotonic milliseconds, by site
 * @returns undefined while no majority was heard
 */
export function settledAt(
  set: SiteSet,
  heardSince: ReadonlyMap<SiteName, number>,
  leaseMs: number,
): number | undefined {
  const majorityAt = (sites: SiteSet["sites"]): number | undefined =>
    sites
      .flatMap((site) => heardSince.get(site.name) ?? [])
      .sort((a, b) => a - b)
      .at(majority(sites.length) - 1);
  const times = [set.sites, set.changing?.before ?? set.sites].map(majorityAt);
  const [now, before] = times;
  return now === undefined || before === undefined ? undefined : Math.max(now, before) + 2 * leaseMs;
}

/** @throws TypeError when the record is not one. */
export function decodeSiteSet(bytes: Uint8Array): SiteSet {
  const value = JSON.parse(Buffer.from(bytes).toString("utf8")) as SiteSet;
  if (!Number.isSafeInteger(value.number) || !Array.isArray(value.sites) || !Number.isSafeInteger(value.shards))
    throw new TypeError("not a site set");
  return value;
}

export const encodeSiteSet = (set: SiteSet): Uint8Array => Buffer.from(JSON.stringify(set), "utf8");
