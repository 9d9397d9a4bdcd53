import { shardId, type ShardId } from "../../shards/ids.js";
import type { SimNode } from "./node.js";
import { put, type Put } from "./operations.js";
import type { World } from "./world.js";

const deadlineMs = 5_000;
const clustersPerShard = 4;

/** Clients of one process: owner reads, local and replicated writes, as fast as a few people would send them. */
export function runClients(world: World, node: SimNode): void {
  const { s } = world;
  const { process } = node;
  let writes = 0;
  const idOf = (shard: ShardId): string => `c${shard}-${Math.floor(s.random.next() * clustersPerShard)}`;
  const next = (): void => {
    s.after(s.between(10, 90), process, () => {
      if (world.healing) return;
      const shard = shardId(Math.floor(s.random.next() * world.shape.shards));
      const kind = s.random.next();
      if (kind < 0.3) void read(shard);
      else write(shard, kind < 0.75 ? "local" : "replicated");
      next();
    });
  };

  const read = async (shard: ShardId): Promise<void> => {
    const started = s.now;
    const before = node.held(shard, false);
    if (before === undefined) return;
    const id = idOf(shard);
    try {
      const row = await world.databases.get(process.site)?.run(process, "read", (tables) => tables.rows.get(id));
      if (node.held(shard, true) !== before) return;
      const seen = {
        id,
        epoch: row?.changedEpoch ?? 0,
        position: row?.changedPosition ?? 0,
        name: row?.name ?? "nothing",
      };
      world.guard(() =>
        world.checker.answer({
          dc: process.site,
          node: process.name,
          shard,
          epoch: before,
          started,
          kind: "read",
          seen,
        }),
      );
    } catch {
      // Refused.
    }
  };

  const write = (shard: ShardId, durability: "local" | "replicated"): void => {
    const mark = `${process.name}/${s.now.toFixed(1)}/${++writes}`;
    const keyed = s.chance(0.4) ? { key: `key ${mark}` } : {};
    void attempt(node, { shard, id: idOf(shard), mark, ...keyed }, durability, keyed.key === undefined ? 0 : 4);
  };

  /** A client with a key goes on until it is answered, at whoever owns the shard then; sometimes it asks once more after that. */
  const attempt = async (
    at: SimNode,
    wanted: Put,
    durability: "local" | "replicated",
    retries: number,
  ): Promise<void> => {
    const started = s.now;
    const { process: its } = at;
    const again = (): void => {
      if (retries === 0 || world.healing) return;
      s.after(s.between(20, 1_500), null, () => {
        const nodes = [...world.nodes.values()].filter((each) => each.held(wanted.shard, false) !== undefined);
        if (nodes.length > 0 && !world.healing) void attempt(s.pick(nodes), wanted, durability, retries - 1);
      });
    };
    try {
      const deadline = its.time.monotonic() + deadlineMs;
      const done = await at.writer.write(put(wanted), { durability, deadline });
      world.guard(() =>
        world.checker.answer({
          dc: its.site,
          node: its.name,
          shard: wanted.shard,
          epoch: done.openEpoch,
          started,
          kind: `${durability} write`,
          written: { epoch: done.epoch, position: done.position, id: wanted.id, mark: wanted.mark },
        }),
      );
      if (s.chance(0.3)) again();
    } catch {
      // Refused, or its outcome is not known: nothing was promised.
      again();
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
