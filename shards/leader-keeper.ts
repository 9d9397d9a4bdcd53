import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Service } from "../infra/service.js";
import type { Partition, SiteName } from "./ids.js";
import type { ShardMap } from "./map.js";
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

const tickMs = 500;
/** Not before the last ownership change is this old: a step-down swallows appends in flight. */
const settleMs = 2_000;
const betweenMovesMs = 150;

/**
 * Keeps the leaders of log partitions away from the owner (section 4), so that the owner's death interrupts neither the
 * log nor the takeover. Each owner looks after its own partitions, one move at a time.
 */
export class LeaderKeeper implements Service {
  readonly name = "leader-keeper";
  readonly #o: LeaderKeeperOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #changedAt: number;
  #unsubscribe: (() => void) | undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: LeaderKeeperOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "leader-keeper" });
    this.#changedAt = -Infinity;
  }

  async start(): Promise<void> {
    this.#unsubscribe = this.#o.map.onChange((head, before) => {
      if (before !== undefined && (head.epoch !== before.epoch || head.state === "moving"))
        this.#changedAt = this.#o.time.monotonic();
    });
    this.#loop = this.#keep();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    await this.#loop;
  }

  async #keep(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        if (this.#calm()) await this.#round();
      } catch (error) {
        this.#log.debug("looking after log leaders failed", { error: asError(error) });
      }
      await this.#o.time.sleep(tickMs, this.#stop.signal);
    }
  }

  /** Nothing opens or moves, and no site is suspect. */
  #calm(): boolean {
    if (!this.#o.active() || this.#o.time.monotonic() - this.#changedAt < settleMs) return false;
    return this.#o.map.all().every((head) => head.state !== "moving" && head.state !== "suspended");
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

  async #round(): Promise<void> {
    const set = this.#o.siteSet();
    const owned = new Map<SiteName, number>();
    const mine = new Set<Partition>();
    for (const head of this.#o.map.all()) {
      if (head.owner !== null) owned.set(head.owner, (owned.get(head.owner) ?? 0) + 1);
      if (head.owner === this.#o.site) mine.add(head.partition);
    }
    const leads = new Map<SiteName, number>();
    for (const partition of mine) {
      if (this.#stop.signal.aborted || !this.#calm()) return;
      const state = await this.#o.leaders.leader(partition);
      if (state?.leader === undefined) continue;
      // Soon it is heard again or dead: a step-down meanwhile might lose the appends in flight for nothing.
      if (state.replicas.some((site) => this.#o.peers.inDoubt(site))) continue;
      const candidates = state.replicas
        .filter((site) => set.sites.some((s) => s.name === site) && this.#reached(set, site))
        .map((site) => ({
          site,
          witness: set.sites.some((s) => s.name === site && s.witness),
          owned: owned.get(site) ?? 0,
          leads: leads.get(site) ?? 0,
        }));
      const wanted = preferredLeader({ owner: this.#o.site, leader: state.leader, candidates });
      if (wanted === undefined || wanted === state.leader) {
        leads.set(state.leader, (leads.get(state.leader) ?? 0) + 1);
        continue;
      }
      leads.set(wanted, (leads.get(wanted) ?? 0) + 1);
      this.#log.info("moves a log partition's leader", { partition, from: state.leader, to: wanted });
      await this.#o.leaders.handOver(partition, wanted);
      await this.#o.time.sleep(betweenMovesMs, this.#stop.signal);
    }
  }
}
