import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Service } from "../infra/service.js";
import type { Partition, SiteName } from "./ids.js";
import type { Head, ShardMap } from "./map.js";
import type { LogLeaders } from "./ownership-log.js";
import type { Peers } from "./peers.js";
import { datacentersOf, type SiteSet } from "./site-set.js";
import { preferredLeader } from "./successor.js";

export interface LeaderKeeperOptions {
  readonly site: SiteName;
  readonly time: Time;
  readonly log: Logger;
  readonly map: ShardMap;
  readonly peers: Peers;
  readonly siteSet: () => SiteSet;
  readonly leaders: LogLeaders;
  /** This process keeps the leaders of the partitions that its datacenter owns. */
  readonly active: () => boolean;
  /** Sites that this node hears (their answers come). */
  readonly hears: () => readonly SiteName[];
}

const tickMs = 400;
/** Not before the partition's last ownership change is this old: a step-down swallows appends in flight. */
const settleMs = 2_000;
const betweenMovesMs = 150;

/**
 * Keeps the leaders of log partitions away from the owner (section 4), so that the owner's death interrupts neither the
 * log nor the takeover. A partition is looked after by the datacenter that owns most of it, one move of it at a time.
 */
export class LeaderKeeper implements Service {
  readonly name = "leader-keeper";
  readonly #o: LeaderKeeperOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #changedAt = new Map<Partition, number>();
  readonly #looking = new Set<Partition>();
  /** Who leads, or is asked to lead, the partitions that are looked after here. */
  readonly #leads = new Map<Partition, SiteName>();
  #lastMove: Promise<void> = Promise.resolve();
  #unsubscribe: (() => void) | undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: LeaderKeeperOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "leader-keeper" });
  }

  async start(): Promise<void> {
    this.#unsubscribe = this.#o.map.onChange((head, before) => {
      if (before !== undefined && (head.epoch !== before.epoch || head.state === "moving"))
        this.#changedAt.set(head.partition, this.#o.time.monotonic());
    });
    this.#loop = this.#keep();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    await this.#loop;
  }

  async #keep(): Promise<void> {
    const looks = new Set<Promise<void>>();
    while (!this.#stop.signal.aborted) {
      if (this.#o.active())
        for (const partition of this.#mine()) {
          // One that has no leader answers late: it holds up none of the others.
          if (this.#looking.has(partition)) continue;
          this.#looking.add(partition);
          const look = this.#look(partition)
            .catch((error: unknown) =>
              this.#log.debug("looking after a log leader failed", { partition, error: asError(error) }),
            )
            .finally(() => {
              this.#looking.delete(partition);
              looks.delete(look);
            });
          looks.add(look);
        }
      await this.#o.time.sleep(tickMs, this.#stop.signal);
    }
    await Promise.all(looks);
  }

  /** Nothing of the partition opens or moves, or did so lately. */
  #calm(partition: Partition, heads: readonly Head[]): boolean {
    const changedAt = this.#changedAt.get(partition) ?? -Infinity;
    return (
      this.#o.active() &&
      this.#o.time.monotonic() - changedAt >= settleMs &&
      heads.every((head) => head.state !== "moving" && head.state !== "suspended")
    );
  }

  /** Every live datacenter reaches the site, this one too. */
  #reached(set: SiteSet, site: SiteName): boolean {
    if (!this.#o.hears().includes(site)) return false;
    return datacentersOf(set).every((dc) => {
      if (dc === this.#o.site || dc === site || this.#o.peers.state(dc) === "dead") return true;
      const reports = this.#o.peers.reports(dc);
      return reports.length === 0 || reports.some((report) => report.hears.includes(site));
    });
  }

  async #look(partition: Partition): Promise<void> {
    const state = await this.#o.leaders.leader(partition);
    if (state?.leader === undefined) return;
    const wanted = this.#wanted(partition, state.leader, state.replicas);
    this.#leads.set(partition, wanted);
    // Soon it is heard again or dead: a step-down meanwhile might lose the appends in flight for nothing.
    if (wanted === state.leader || state.replicas.some((site) => this.#o.peers.inDoubt(site))) return;
    const turn = this.#lastMove;
    this.#lastMove = turn.then(() => this.#o.time.sleep(betweenMovesMs, this.#stop.signal));
    await turn;
    if (this.#stop.signal.aborted || !this.#mine().includes(partition)) return;
    this.#log.info("moves a log partition's leader", { partition, from: state.leader, to: wanted });
    await this.#o.leaders.handOver(partition, wanted);
  }

  #wanted(partition: Partition, leader: SiteName, replicas: readonly SiteName[]): SiteName {
    const set = this.#o.siteSet();
    const count = (sites: Iterable<SiteName | null>): Map<SiteName, number> => {
      const counts = new Map<SiteName, number>();
      for (const site of sites) if (site !== null) counts.set(site, (counts.get(site) ?? 0) + 1);
      return counts;
    };
    const owned = count(this.#o.map.all().map(({ owner }) => owner));
    const leads = count([...this.#leads].flatMap(([other, site]) => (other === partition ? [] : [site])));
    const candidates = replicas
      .filter((site) => set.sites.some((s) => s.name === site) && this.#reached(set, site))
      .map((site) => ({
        site,
        witness: set.sites.some((s) => s.name === site && s.witness),
        owned: owned.get(site) ?? 0,
        leads: leads.get(site) ?? 0,
      }));
    const owners = this.#partitions().get(partition)?.owners ?? [];
    return preferredLeader({ owners, leader, candidates }) ?? leader;
  }

  /** Partitions that this datacenter looks after, and of which nothing is under way. */
  #mine(): Partition[] {
    const all = this.#partitions();
    for (const partition of [...this.#leads.keys()])
      if (all.get(partition)?.owners[0] !== this.#o.site) this.#leads.delete(partition);
    return [...all].flatMap(([partition, { owners, heads }]) =>
      owners[0] === this.#o.site && this.#calm(partition, heads) ? [partition] : [],
    );
  }

  /** The owners of each partition, who owns most of it first: everybody with this map names the same one. */
  #partitions(): ReadonlyMap<Partition, { readonly owners: readonly SiteName[]; readonly heads: readonly Head[] }> {
    const heads = new Map<Partition, Head[]>();
    for (const head of this.#o.map.all()) {
      const found = heads.get(head.partition);
      if (found === undefined) heads.set(head.partition, [head]);
      else found.push(head);
    }
    return new Map(
      [...heads].map(([partition, all]) => {
        const counts = new Map<SiteName, number>();
        for (const { owner } of all) if (owner !== null) counts.set(owner, (counts.get(owner) ?? 0) + 1);
        const owners = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).map(([site]) => site);
        return [partition, { owners, heads: all }];
      }),
    );
  }
}
