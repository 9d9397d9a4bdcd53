import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";

export interface MetricsOptions {
  /** Also CPU, memory, event loop lag and garbage collection of this process, under prom-client's names. Default: true. */
  readonly process?: boolean;
  /** Labels of every sample, such as `dc` and `node`. */
  readonly labels?: Readonly<Record<string, string>>;
}

const writeBuckets = [
  0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
];
const holdBuckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const takeoverBuckets = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 30, 60];

/** Every metric of one datacenter process, in a registry of its own, so that several can live in one process of a test. */
export type Metrics = ReturnType<typeof createMetrics>;

export function createMetrics(options: MetricsOptions = {}) {
  const registry = new Registry();
  if (options.labels !== undefined) registry.setDefaultLabels(options.labels);
  if (options.process !== false) collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const collectors: (() => void | Promise<void>)[] = [];

  return {
    registry,
    writes: new Counter({
      name: "hothot_writes_total",
      help: "Writes that this datacenter's API took, by outcome (`ok` or the problem's code), durability and route (local, forwarded).",
      labelNames: ["outcome", "durability", "route"] as const,
      registers,
    }),
    writeSeconds: new Histogram({
      name: "hothot_write_seconds",
      help: "Seconds from a write's arrival to its answer, at the datacenter that took it.",
      buckets: writeBuckets,
      registers,
    }),
    replicationLagSeconds: new Gauge({
      name: "hothot_replication_lag_seconds",
      help: "Seconds that this datacenter's copies are behind, the worst shard of each owner.",
      labelNames: ["shard_owner"] as const,
      registers,
    }),
    applySeconds: new Histogram({
      name: "hothot_apply_seconds",
      help: "Seconds from a batch's first commit at its owner until it was applied here, by both sites' wall clocks.",
      labelNames: ["shard_owner"] as const,
      buckets: [0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 5],
      registers,
    }),
    unpublishedRecords: new Gauge({
      name: "hothot_unpublished_records",
      help: "Records committed here that are not in the log yet.",
      registers,
    }),
    unpublishedBytes: new Gauge({
      name: "hothot_unpublished_bytes",
      help: "Bytes of records committed here that are not in the log yet.",
      registers,
    }),
    ownedShards: new Gauge({ name: "hothot_owned_shards", help: "Shards that this datacenter owns.", registers }),
    stoppedShards: new Gauge({
      name: "hothot_stopped_shards",
      help: "Shards whose log can't be applied here any more (`/v1/shards` says why); see `hothot repair`.",
      registers,
    }),
    leaseSecondsLeft: new Gauge({
      name: "hothot_lease_seconds_left",
      help: "Seconds that this node's lease lasts without another heartbeat; 0 without a lease.",
      registers,
    }),
    takeovers: new Counter({
      name: "hothot_takeovers_total",
      help: "Shards that this datacenter has taken over.",
      registers,
    }),
    takeoverSeconds: new Histogram({
      name: "hothot_takeover_seconds",
      help: "Seconds from the first vote asked for to a shard's first possible write here.",
      buckets: takeoverBuckets,
      registers,
    }),
    switchoverHoldSeconds: new Histogram({
      name: "hothot_switchover_hold_seconds",
      help: "Seconds that writes of a shard were held by a planned move.",
      buckets: holdBuckets,
      registers,
    }),
    divergentOperations: new Gauge({
      name: "hothot_divergent_operations",
      help: "Divergent operations kept here that nobody has settled.",
      registers,
    }),
    digestMismatches: new Counter({
      name: "hothot_digest_mismatches_total",
      help: "Digests of the log that this datacenter's copy did not equal.",
      registers,
    }),
    endangeredReplicas: new Gauge({
      name: "hothot_replicas_endangered",
      help: "1: the log is soon purged past what this datacenter has applied; bring it back before that, or it loads a snapshot.",
      labelNames: ["dc"] as const,
      registers,
    }),
    replicasLeftBehind: new Counter({
      name: "hothot_replicas_left_behind_total",
      help: "Times that a partition of the log was purged past what this datacenter had applied.",
      labelNames: ["dc"] as const,
      registers,
    }),
    snapshotBytes: new Counter({
      name: "hothot_snapshot_bytes_total",
      help: "Bytes of rows that snapshots brought here.",
      registers,
    }),
    snapshotRows: new Counter({
      name: "hothot_snapshot_rows_total",
      help: "Rows that snapshots brought here.",
      registers,
    }),
    jobsRestarted: new Counter({
      name: "hothot_jobs_restarted_total",
      help: "Jobs that began another attempt here after a takeover.",
      registers,
    }),
    staleFinishes: new Counter({
      name: "hothot_stale_finishes_total",
      help: "Finishes with an outdated token, refused.",
      registers,
    }),
    catalogFaults: new Counter({
      name: "hothot_catalog_faults_total",
      help: "Changed catalog files that could not be taken into use.",
      registers,
    }),
    eventLoopLag: new Gauge({
      name: "hothot_event_loop_lag_seconds",
      help: "Seconds that this process's event loop was late in the last second: median, 99th percentile, worst.",
      labelNames: ["quantile"] as const,
      registers,
    }),
    httpRequests: new Counter({
      name: "hothot_http_requests_total",
      help: "HTTP requests answered, by method, route and status.",
      labelNames: ["method", "route", "status"] as const,
      registers,
    }),

    /** Runs before each scrape, to set gauges from what they describe. One that fails is left out of that scrape. */
    beforeScrape(collector: () => void | Promise<void>): void {
      collectors.push(collector);
    },

    /** Prometheus text, as Datacenter.metrics() gives it. */
    async render(): Promise<{ readonly contentType: string; readonly text: string }> {
      await Promise.allSettled(collectors.map(async (collector) => collector()));
      return { contentType: registry.contentType, text: await registry.metrics() };
    },
  };
}
