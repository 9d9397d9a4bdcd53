import type { Tracing } from "../../infra/tracing.js";
import { decodeBatch, decodeRecord } from "../../replication/record.js";
import type { Applied } from "../../replication/replica-store.js";

/** A batch is in the log: each of its records was on its way there from its commit until `wall`. */
export function tracePublished(tracing: Tracing, bytes: Uint8Array, wall: number): void {
  const { header, records } = decodeBatch(bytes);
  records.forEach((record, index) => {
    const { trace, at } = decodeRecord(record);
    tracing.record("publish", "producer", trace?.traceparent, wall - at, {
      "hothot.shard": header.shard,
      "hothot.epoch": header.epoch,
      "hothot.position": header.first + index,
      "hothot.records": header.count,
    });
  });
}

/** Records are in the tables here, by a transaction that took `ms`. */
export function traceApplied(tracing: Tracing, { requests = [] }: Applied, ms: number): void {
  for (const { traceparent, shard, epoch, position } of requests)
    tracing.record("apply", "consumer", traceparent, ms, {
      "hothot.shard": shard,
      "hothot.epoch": epoch,
      "hothot.position": position,
    });
}
