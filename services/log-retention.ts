import type { Time } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import type { Logger } from "../infra/logger.js";
import type { Metrics } from "../infra/metrics/index.js";
import type { LogStreams } from "../infra/nats/log-streams.js";
import type { Database } from "../infra/postgres/database.js";
import { OutboxTrim } from "../replication/outbox-trim.js";
import { PayloadSweep } from "../replication/payload-sweep.js";
import { Retention } from "../replication/retention.js";
import type { Peers } from "../shards/peers.js";
import { datacentersOf, type SiteSet } from "../shards/site-set.js";
import type { Engine } from "./engine/engine.js";

/** The log's retention and the outbox's behind it, on the parts of a process. */
export function createRetention(o: {
  readonly config: Config;
  readonly partitions: number;
  readonly streams: LogStreams;
  readonly data: Database;
  readonly peers: Peers;
  readonly engine: Engine;
  readonly metrics: Metrics;
  readonly siteSet: () => SiteSet;
  readonly time: Time;
  readonly log: Logger;
}): { readonly retention: Retention; readonly outboxTrim: OutboxTrim; readonly payloadSweep: PayloadSweep } {
  const { config, partitions, streams, peers, engine, metrics, time, log } = o;
  const { site } = config;
  const { applier, replicator, leases, resume, map } = engine;
  const retention = new Retention({
    site,
    partitions,
    streams,
    map,
    time,
    log,
    retentionMs: config.logRetentionMs,
    maxBytes: config.logMaxBytes,
    members: (partition) =>
      datacentersOf(o.siteSet()).map((dc) =>
        dc === site
          ? { dc, live: true, applied: applier.applied[partition] }
          : { dc, live: peers.state(dc) !== "dead", applied: peers.applied(dc, partition) },
      ),
    restate: (list) => resume.restate(list),
    active: () => replicator.holding && leases.valid,
    onEndangered: (dcs) => {
      for (const dc of datacentersOf(o.siteSet())) metrics.endangeredReplicas.set({ dc }, dcs.has(dc) ? 1 : 0);
    },
    onLeftBehind: (dc) => metrics.replicasLeftBehind.inc({ dc }),
  });
  const outboxTrim = new OutboxTrim({
    database: o.data,
    partitions,
    first: (partition, shard) => streams.readFirst(partition, shard, 3_000),
    time,
    log,
    everyMs: Math.min(60_000, Math.max(1_000, config.logRetentionMs / 10)),
    active: () => replicator.holding,
  });
  const payloadSweep = new PayloadSweep({
    partitions,
    objects: streams.objects,
    first: (partition, shard) => streams.readFirst(partition, shard, 3_000),
    owns: (shard) => map.get(shard)?.owner === site,
    time,
    log,
    everyMs: Math.min(60_000, Math.max(1_000, config.logRetentionMs / 10)),
    active: () => replicator.holding && leases.valid,
  });
  return { retention, outboxTrim, payloadSweep };
}
