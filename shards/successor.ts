import { hashText, type Partition, type SiteName } from "./ids.js";

/**
 * Survivors in the order in which they open a partition of a dead datacenter: the preference list first, then
 * rendezvous hash. Every survivor that sees the same survivors computes the same order.
 */
export function successionOrder(
  partition: Partition,
  survivors: readonly SiteName[],
  preferences: readonly SiteName[] = [],
): SiteName[] {
  const rank = (site: SiteName): number => {
    const at = preferences.indexOf(site);
    return at < 0 ? preferences.length : at;
  };
  const weight = (site: SiteName): number => hashText(`${site}/${partition}`);
  return [...survivors].sort((a, b) => rank(a) - rank(b) || weight(b) - weight(a) || (a < b ? -1 : 1));
}

/** Partitions spread evenly over datacenters, for a new group. */
export function firstOwner(partition: Partition, datacenters: readonly SiteName[]): SiteName {
  const owner = datacenters[partition % datacenters.length];
  if (owner === undefined) throw new RangeError("a group needs at least one datacenter");
  return owner;
}

/**
 * Where a partition's log should be led (section 4): away from its owners, a witness first, else the datacenter that
 * owns least. The present leader stays where it is good enough, so that nothing moves without need.
 */
export function preferredLeader(facts: {
  /** Who owns shards of the partition, most first; usually one. Where nobody else is left, the first one alone counts. */
  readonly owners: readonly SiteName[];
  readonly leader: SiteName | undefined;
  /** Sites that hold a replica, are alive, and are reached by every live site. */
  readonly candidates: readonly {
    readonly site: SiteName;
    readonly witness: boolean;
    readonly owned: number;
    readonly leads: number;
  }[];
}): SiteName | undefined {
  const { owners, leader, candidates } = facts;
  const away = candidates.filter((candidate) => !owners.includes(candidate.site));
  const eligible = away.length > 0 ? away : candidates.filter((candidate) => candidate.site !== owners[0]);
  const hasWitness = eligible.some((candidate) => candidate.witness);
  const fine = eligible.filter((candidate) => candidate.witness || !hasWitness);
  if (fine.some((candidate) => candidate.site === leader)) return leader;
  const [best] = [...fine].sort((a, b) => a.owned + a.leads - (b.owned + b.leads) || (a.site < b.site ? -1 : 1));
  return best?.site;
}
