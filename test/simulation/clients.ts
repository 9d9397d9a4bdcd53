import { shardId, type ShardId } from "../../shards/ids.js";
import type { SimNode } from "./node.js";
import type { World } from "./world.js";

const deadlineMs = 5_000;
const clustersPerShard = 4;

/** Clients of one process: owner reads, local and replicated writes, as fast as a few people would send them. */
export function runClients(world: World, node: SimNode): void {
  const { s } = world;
  const { process } = node;
  let writes = 0;
  const next = (): void => {
    s.after(s.between(10, 90), process, () => {
      if (world.healing) return;
      const shard = shardId(Math.floor(s.random.next() * world.shape.shards));
      const kind = s.random.next();
      if (kind < 0.3) void read(shard);
      else void write(shard, kind < 0.75 ? "local" : "replicated");
      next();
    });
  };

  const read = async (shard: ShardId): Promise<void> => {
    const started = s.now;
    const before = node.held(shard, false);
    if (before === undefined) return;
    try {
      await world.databases.get(process.site)?.run(process, "read", () => undefined);
    } catch {
      return;
    }
    if (node.held(shard, true) !== before) return;
    world.guard(() =>
      world.checker.answer({ dc: process.site, node: process.name, shard, epoch: before, started, kind: "read" }),
    );
  };

  const write = async (shard: ShardId, durability: "local" | "replicated"): Promise<void> => {
    const started = s.now;
    const mark = `${process.name}/${started.toFixed(1)}/${++writes}`;
    const id = `c${shard}-${Math.floor(s.random.next() * clustersPerShard)}`;
    try {
      const deadline = process.time.monotonic() + deadlineMs;
      const done = await node.writer.write({ shard, id, mark }, { durability, deadline });
      world.guard(() =>
        world.checker.answer({
          dc: process.site,
          node: process.name,
          shard,
          epoch: done.epoch,
          started,
          kind: `${durability} write`,
          written: { position: done.position, mark },
        }),
      );
    } catch {
      // Refused, or its outcome is not known: nothing was promised.
    }
  };
  next();

  const moves = (): void => {
    s.after(s.between(700, 4_000), process, () => {
      if (world.healing) return;
      const shard = shardId(Math.floor(s.random.next() * world.shape.shards));
      const to = s.pick(world.shape.datacenters);
      if (node.replicator.holding && to !== process.site)
        void node.switchover
          .move({ shard, to, kind: "switchover", reason: "asked for", by: "operator" })
          .catch(() => undefined);
      moves();
    });
  };
  moves();
}
