import { Problem } from "../../infra/errors.js";
import type { Restorer } from "../../replication/restore.js";
import type { WriteGate } from "../../replication/writer.js";
import { route } from "../../routing/route.js";
import type { Epoch, ShardId, SiteName } from "../../shards/ids.js";
import type { LeaseKeeper } from "../../shards/lease-keeper.js";
import type { ShardMap } from "../../shards/map.js";

/** Whether this node may act as a shard's owner: asked before each operation and again before its answer (rule f). */
export class OwnerGate implements WriteGate {
  constructor(
    private readonly o: {
      readonly site: SiteName;
      readonly map: ShardMap;
      readonly leases: Pick<LeaseKeeper, "valid">;
      readonly restorer: Pick<Restorer, "shardWaits">;
      readonly room: NonNullable<WriteGate["room"]>;
    },
  ) {}

  enter(shard: ShardId): Epoch {
    const { site, map, leases, restorer } = this.o;
    const head = map.get(shard);
    const where = route({ self: site, head, leaseValid: leases.valid, ownerState: "dead" });
    if (where.kind === "here" && head !== undefined) {
      if (restorer.shardWaits(shard))
        throw new Problem("no_lease", "rows of the shard are being restored", { owner: site });
      return head.epoch;
    }
    if (where.kind === "wait" && where.owner === site) throw new Problem(where.code, where.why, { owner: site });
    throw new Problem("not_owner", undefined, head?.owner == null ? {} : { owner: head.owner });
  }

  room(shard: ShardId, durability: "local" | "replicated", deadline: number): Promise<void> | undefined {
    return this.o.room(shard, durability, deadline);
  }

  mayAcknowledge(shard: ShardId, at: Epoch): boolean {
    const { site, map, leases } = this.o;
    const head = map.get(shard);
    return leases.valid && head?.owner === site && head.epoch === at && head.state !== "suspended";
  }

  /** For an owner read, before and after. @throws Problem that says why not. @returns the epoch in which the shard is held */
  held(shard: ShardId): Epoch {
    const { site, map, leases, restorer } = this.o;
    const head = map.get(shard);
    if (head?.owner !== site)
      throw new Problem("not_owner", undefined, head?.owner == null ? {} : { owner: head.owner });
    if (head.state === "moving") throw new Problem("shard_moving");
    if (head.state !== "owned" || !head.confirmed || !leases.valid) throw new Problem("no_lease");
    if (restorer.shardWaits(shard)) throw new Problem("no_lease", "rows of the shard are being restored");
    return head.epoch;
  }
}
