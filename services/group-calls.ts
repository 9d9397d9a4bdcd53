import type { Time } from "../infra/clock.js";
import type { Database } from "../infra/postgres/database.js";
import type { Metrics } from "../infra/metrics/index.js";
import { carriedIn } from "../replication/carried.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import type { Calls } from "./calls.js";
import type { Engine } from "./engine/engine.js";
import type { HistoryFacts } from "./history-facts.js";

/** The end of a move waits no longer for this datacenter to read of it in the log. */
const heardMs = 3_000;

/** What this datacenter answers when another one calls. */
export function callsOf(o: {
  readonly site: SiteName;
  readonly engine: Engine;
  readonly data: Database;
  readonly metrics: Metrics;
  readonly time: Time;
  readonly facts: HistoryFacts;
  readonly operation: Calls["operation"];
  readonly begun: Calls["begun"];
}): Calls {
  const { engine, time } = o;
  const { map, progress, changes } = engine;
  const heardOf = async (shard: ShardId, at: number, timeoutMs: number): Promise<boolean> => {
    const deadline = time.monotonic() + timeoutMs;
    const heard = (): boolean => (map.get(shard)?.epoch ?? 0) >= at;
    while (!heard() && time.monotonic() < deadline)
      await changes.next(shard, Math.min(100, deadline - time.monotonic()));
    return heard();
  };
  const keep = carriedIn(o.data, time);
  return {
    move: async (request) => {
      const result = await engine.switchover.move(request);
      if (result.kind !== "moved") return result;
      if (result.heldMs > 0) o.metrics.switchoverHoldSeconds.observe(result.heldMs / 1000);
      // The former owner may hear of it after the new one: whoever asks it next is told of the new owner.
      await heardOf(request.shard, result.epoch, heardMs);
      return result;
    },
    carry: async (part) => {
      // Asked before it is kept: what closes the database after this is not lifted by the move.
      const closing = map.get(part.shard as ShardId)?.closing ?? 0;
      await keep(part);
      return closing;
    },
    opened: ({ shard, epoch: at, timeoutMs }) => heardOf(shard as ShardId, at, timeoutMs),
    positions: async () =>
      map.all().map((head) => {
        const { epoch, position } = progress.place(head.shard);
        const published = Math.max(engine.publisher.mark(head.shard) ?? 0, head.published);
        return [head.shard, epoch, position, head.owner === o.site ? published : position] as const;
      }),
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
    // Whoever tells does not wait until it is known here.
    historyTold: async (facts) => void o.facts.told(facts).catch(() => undefined),
    historyKnown: (changes) => o.facts.known(changes),
    operation: o.operation,
    begun: o.begun,
  };
}
