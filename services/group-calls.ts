import type { Time } from "../infra/clock.js";
import type { Database } from "../infra/postgres/database.js";
import type { Metrics } from "../infra/metrics/index.js";
import { storeProgress } from "../replication/carried.js";
import type { ShardId } from "../shards/ids.js";
import type { Calls } from "./calls.js";
import type { Engine } from "./engine/engine.js";

/** What this datacenter answers when another one calls. */
export function callsOf(o: {
  readonly engine: Engine;
  readonly data: Database;
  readonly metrics: Metrics;
  readonly time: Time;
  readonly operation: Calls["operation"];
}): Calls {
  const { engine, time } = o;
  const { map, progress, changes } = engine;
  return {
    move: async (request) => {
      const result = await engine.switchover.move(request);
      if (result.kind === "moved") o.metrics.switchoverHoldSeconds.observe(result.heldMs / 1000);
      return result;
    },
    carry: async (part) => {
      await storeProgress(o.data, part);
      return null;
    },
    opened: async ({ shard, epoch: at, timeoutMs }) => {
      const deadline = time.monotonic() + timeoutMs;
      const serves = (): boolean => {
        const head = map.get(shard as ShardId);
        return head !== undefined && head.epoch >= at;
      };
      while (!serves() && time.monotonic() < deadline)
        await changes.next(shard as ShardId, Math.min(100, deadline - time.monotonic()));
      return serves();
    },
    positions: async () =>
      map
        .all()
        .map((head) => [head.shard, progress.place(head.shard).epoch, progress.place(head.shard).position] as const),
    takeover: async ({ target, shards: wanted, by, forced }) => {
      const heads = wanted.flatMap((shard) => map.get(shard as ShardId) ?? []).filter((head) => head.owner === target);
      return [
        ...(await engine.takeovers.takeOver(target, heads, {
          by,
          reason: forced ? "forced by an operator" : "asked for by an operator",
          forced,
        })),
      ];
    },
    operation: o.operation,
  };
}
