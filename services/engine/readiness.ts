import type { Applier } from "../../replication/applier.js";
import type { Progress } from "../../replication/progress.js";
import type { Restorer } from "../../replication/restore.js";
import type { Partition, SiteName } from "../../shards/ids.js";
import type { LeaseKeeper } from "../../shards/lease-keeper.js";
import type { ShardMap } from "../../shards/map.js";

/** Lag in positions beyond which a shard can't be opened here. */
const openableLag = 50_000;

/** How far this process and its datacenter's copy are: what heartbeats, status and takeovers are told. */
export class Readiness {
  constructor(
    private readonly o: {
      readonly site: SiteName;
      readonly map: ShardMap;
      readonly progress: Progress;
      readonly applier: Pick<Applier, "active" | "caughtUp">;
      readonly restorer: Pick<Restorer, "shardWaits" | "count">;
      readonly leases: Pick<LeaseKeeper, "valid">;
    },
  ) {}

  state(): "serving" | "fenced" | "catching_up" {
    const { leases, map, site } = this.o;
    if (!leases.valid) return "fenced";
    return this.caughtUp() &&
      map.ownedBy(site).every((head) => (head.state === "owned" && head.confirmed) || head.state === "moving")
      ? "serving"
      : "catching_up";
  }

  caughtUp(): boolean {
    const { applier, restorer } = this.o;
    if (applier.active && !applier.caughtUp) return false;
    const lag = this.worstLag();
    return restorer.count === 0 && (lag.ms < 2_000 || lag.positions < 100);
  }

  /** Over the shards that this datacenter does not own. */
  worstLag(): { readonly positions: number; readonly ms: number } {
    const { map, site, progress } = this.o;
    let positions = 0;
    let ms = 0;
    for (const head of map.all()) {
      if (head.owner === site) continue;
      const lag = progress.lag(head.shard);
      positions = Math.max(positions, lag.positions);
      ms = Math.max(ms, lag.ms);
    }
    return { positions, ms };
  }

  /** The worst shard of each other owner, milliseconds: 0 when nothing is missing, also when the owner is idle or dead. */
  lagByOwner(): Map<SiteName, number> {
    const { map, site, progress } = this.o;
    const out = new Map<SiteName, number>();
    for (const head of map.all())
      if (head.owner !== null && head.owner !== site)
        out.set(head.owner, Math.max(out.get(head.owner) ?? 0, progress.lag(head.shard).ms));
    return out;
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
