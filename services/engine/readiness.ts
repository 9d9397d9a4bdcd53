import type { Clock } from "../../infra/clock.js";
import type { Applier } from "../../replication/applier.js";
import type { Progress } from "../../replication/progress.js";
import type { Restorer } from "../../replication/restore.js";
import type { Partition, ShardId, SiteName } from "../../shards/ids.js";
import type { LeaseKeeper } from "../../shards/lease-keeper.js";
import type { Head, ShardMap } from "../../shards/map.js";
import type { Peers } from "../../shards/peers.js";

/** Lag in positions beyond which a shard can't be opened here. */
const openableLag = 50_000;

interface Lag {
  readonly positions: number;
  readonly ms: number;
}

const worse = (a: Lag, b: Lag): Lag => ({
  positions: Math.max(a.positions, b.positions),
  ms: Math.max(a.ms, b.ms),
});
const none: Lag = { positions: 0, ms: 0 };

/** How far this process and its datacenter's copy are: what heartbeats, status and takeovers are told. */
export class Readiness {
  readonly #since: number;

  constructor(
    private readonly o: {
      readonly site: SiteName;
      readonly map: ShardMap;
      readonly progress: Progress;
      readonly peers: Pick<Peers, "silentMs">;
      readonly applier: Pick<Applier, "active" | "caughtUp">;
      readonly restorer: Pick<Restorer, "shardWaits" | "count">;
      readonly leases: Pick<LeaseKeeper, "valid">;
      readonly clock: Clock;
    },
  ) {
    this.#since = o.clock.monotonic();
  }

  state(): "serving" | "fenced" | "catching_up" {
    const { leases, map, site } = this.o;
    if (!leases.valid) return "fenced";
    return this.caughtUp() &&
      map.ownedBy(site).every((head) => (head.state === "owned" && head.confirmed) || head.state === "moving")
      ? "serving"
      : "catching_up";
  }

  /** A stopped shard is alarmed by itself; it must not take the others out of service. */
  caughtUp(): boolean {
    const { applier, restorer, progress } = this.o;
    if (applier.active && !applier.caughtUp) return false;
    const lag = this.#foreign()
      .filter((head) => head.stopped === null)
      .map((head) => progress.lag(head.shard))
      .reduce(worse, none);
    return restorer.count === 0 && (lag.ms < 2_000 || lag.positions < 100);
  }

  /**
   * Of a shard that another datacenter owns: positions, and milliseconds since the first missing one was heard of. Without a lease
   * this datacenter may be the one that is cut off: then since its owner was last heard, if that is longer.
   */
  lag(shard: ShardId): Lag {
    const { leases, map, progress } = this.o;
    const lag = progress.lag(shard);
    const owner = map.get(shard)?.owner ?? null;
    if (leases.valid || owner === null) return lag;
    return { positions: lag.positions, ms: Math.max(lag.ms, this.#silentMs(owner)) };
  }

  #silentMs(dc: SiteName): number {
    const { peers, clock } = this.o;
    return Math.round(Math.min(peers.silentMs(dc), clock.monotonic() - this.#since));
  }

  /** Over the shards that this datacenter does not own. */
  worstLag(): Lag {
    return this.#foreign()
      .map(({ shard }) => this.lag(shard))
      .reduce(worse, none);
  }

  /** The worst shard of each other owner, milliseconds: 0 when nothing is missing, also when the owner is idle or dead. */
  lagByOwner(): Map<SiteName, number> {
    const out = new Map<SiteName, number>();
    for (const { owner, shard } of this.#foreign())
      if (owner !== null) out.set(owner, Math.max(out.get(owner) ?? 0, this.lag(shard).ms));
    return out;
  }

  #foreign(): readonly Head[] {
    return this.o.map.all().filter((head) => head.owner !== this.o.site);
  }

  /** Partitions of which not every shard could be opened here now. */
  blockedPartitions(): Partition[] {
    const { map, site, applier, restorer, progress } = this.o;
    const blocked = new Set<Partition>();
    const initial = applier.active && !applier.caughtUp;
    for (const head of map.all())
      if (
        head.owner !== site &&
        (initial ||
          head.stopped !== null ||
          restorer.shardWaits(head.shard) ||
          progress.lag(head.shard).positions > openableLag)
      )
        blocked.add(head.partition);
    return [...blocked];
  }

  /** Own shards: shard, epoch, head position, flattened. */
  ownHeads(): number[] {
    const { map, site, progress } = this.o;
    return map.ownedBy(site).flatMap((head) => {
      const place = progress.place(head.shard);
      return place.epoch === head.epoch ? [head.shard, place.epoch, place.position] : [];
    });
  }
}
