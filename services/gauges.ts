import type { EventLoop } from "../infra/event-loop.js";
import type { DatacenterParts } from "./datacenter.js";

/** Metrics that are looked up when somebody asks for them. */
export function keepGauges(parts: DatacenterParts, loop: Pick<EventLoop, "lag">): void {
  const { metrics } = parts;
  metrics.beforeScrape(async () => {
    metrics.ownedShards.set(parts.map.ownedBy(parts.site).length);
    metrics.stoppedShards.set(parts.map.all().filter((head) => head.stopped !== null).length);
    // Without those that own nothing any more.
    metrics.replicationLagSeconds.reset();
    for (const [owner, ms] of parts.readiness.lagByOwner())
      metrics.replicationLagSeconds.set({ shard_owner: owner }, ms / 1000);
    metrics.unpublishedBytes.set(Math.round(parts.backlog.bytes));
    const { medianMs, p99Ms, maxMs } = loop.lag;
    metrics.eventLoopLag.set({ quantile: "0.5" }, medianMs / 1000);
    metrics.eventLoopLag.set({ quantile: "0.99" }, p99Ms / 1000);
    metrics.eventLoopLag.set({ quantile: "1" }, maxMs / 1000);
    metrics.leaseSecondsLeft.set(parts.leases.msLeft / 1000);
    const { rows } = await parts.control.pool.query<{ unpublished: number; divergent: number }>(
      "SELECT (SELECT coalesce(sum(position - published), 0)::int FROM shard_head WHERE owner = $1) AS unpublished, (SELECT count(*)::int FROM divergent_operations WHERE status = 'open') AS divergent",
      [parts.site],
    );
    metrics.unpublishedRecords.set(rows[0]?.unpublished ?? 0);
    metrics.divergentOperations.set(rows[0]?.divergent ?? 0);
  });
}
