import type { SiteName } from "./ids.js";
import { majority } from "./lease.js";

/** Who is a member and may vote: a numbered record on the log's control subject, changed by compare-and-set. */
export interface SiteSet {
  /** Grows with each change; heartbeats, promises and votes count only under the same number. */
  readonly number: number;
  readonly sites: readonly { readonly name: SiteName; readonly witness: boolean }[];
  /** Datacenters that left; one that comes back by mistake is refused. */
  readonly removed: readonly SiteName[];
  readonly failoverPaused: boolean;
  readonly shards: number;
  readonly partitions: number;
}

export const datacentersOf = (set: SiteSet): SiteName[] =>
  set.sites.filter((site) => !site.witness).map((site) => site.name);

/** Whether a dead datacenter can be taken over without an operator, and if not why. */
export function automaticTakeover(set: SiteSet): { readonly possible: boolean; readonly why: string | null } {
  if (set.failoverPaused)
    return { possible: false, why: "automatic takeovers are paused (`hothot failover resume` ends that)" };
  if (set.sites.length < 3)
    return {
      possible: false,
      why: `with ${set.sites.length} site(s) nobody can outvote a silent one: add a witness, or use \`hothot takeover --force\``,
    };
  return { possible: true, why: null };
}

export const votesNeeded = (set: SiteSet): number => majority(set.sites.length);

/** @throws TypeError when the record is not one. */
export function decodeSiteSet(bytes: Uint8Array): SiteSet {
  const value = JSON.parse(Buffer.from(bytes).toString("utf8")) as SiteSet;
  if (!Number.isSafeInteger(value.number) || !Array.isArray(value.sites) || !Number.isSafeInteger(value.shards))
    throw new TypeError("not a site set");
  return value;
}

export const encodeSiteSet = (set: SiteSet): Uint8Array => Buffer.from(JSON.stringify(set), "utf8");
