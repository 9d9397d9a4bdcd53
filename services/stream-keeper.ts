import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { GroupStream, LogStreams } from "../infra/nats/log-streams.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import { replicasDue, votersOf, type SiteSet } from "../shards/site-set.js";

export interface StreamKeeperOptions {
  readonly site: SiteName;
  readonly partitions: number;
  readonly streams: LogStreams;
  readonly map: ShardMap;
  readonly siteSet: () => SiteSet;
  readonly time: Time;
  readonly log: Logger;
  /** This process has a lease and is its datacenter's replicator. */
  readonly active: () => boolean;
}

const tickMs = 2_000;
const requestMs = 5_000;

/**
 * Keeps as many replicas of each stream as the number of sites asks for, and none at a site that has left. A partition is looked
 * after by the owner of its first shard, the control stream by that of the first partition; one step at a time.
 */
export class StreamKeeper implements Service {
  readonly name = "stream-keeper";
  readonly #o: StreamKeeperOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  /** Site sets under which all was found in order, by stream. */
  readonly #settled = new Map<GroupStream, number>();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: StreamKeeperOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "stream-keeper" });
  }

  async start(): Promise<void> {
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#o.time.sleep(tickMs, this.#stop.signal);
        if (!this.#stop.signal.aborted && this.#o.active()) await this.#round();
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #round(): Promise<void> {
    for (const partition of [null, "objects" as const, ...Array.from({ length: this.#o.partitions }, (_, p) => p)]) {
      if (this.#stop.signal.aborted || !this.#mine(typeof partition === "number" ? partition : 0)) continue;
      const { number } = this.#o.siteSet();
      if (this.#settled.get(partition) === number) continue;
      try {
        if (await this.#look(partition)) this.#settled.set(partition, number);
      } catch (error) {
        this.#log.info("a stream's replicas can't be changed yet", { partition, error: asError(error) });
      }
    }
  }

  #mine(partition: number): boolean {
    return this.#o.map.all().find((head) => head.partition === (partition as never))?.owner === this.#o.site;
  }

  /** @returns whether all is in order */
  async #look(partition: GroupStream): Promise<boolean> {
    const { streams } = this.#o;
    const set = this.#o.siteSet();
    const state = await streams.stateOf(partition, requestMs);
    if (state?.leader === undefined) return false;
    const { leader } = state;
    const due = replicasDue(set.sites.length);
    if (state.wanted !== due) {
      this.#log.info("changes the number of a stream's replicas", { partition, from: state.wanted, to: due });
      await streams.scale(partition, due, requestMs);
      return false;
    }
    const there = [leader, ...state.replicas.map((each) => each.name)];
    const stray = there.find((name) => !set.sites.some((site) => site.name === name));
    if (stray === undefined) return there.length >= due;
    // Nobody is taken away before its successors have all: a majority must stay whole.
    if (state.replicas.some((each) => each.name !== stray && !each.current)) return false;
    // During the change a site that leaves still counts; its replica goes when it does not.
    if (votersOf(set).includes(stray) && set.changing !== undefined) return false;
    this.#log.info("takes a stream away from a site that has left", { partition, site: stray });
    await streams.removePeer(partition, stray, requestMs);
    return false;
  }
}
