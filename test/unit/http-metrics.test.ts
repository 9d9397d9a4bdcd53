import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createMetrics } from "../../infra/metrics/index.js";
import type { DatacenterParts } from "../../services/datacenter.js";
import { keepGauges } from "../../services/gauges.js";

const names =
  `hothot_writes_total hothot_write_seconds hothot_replication_lag_seconds hothot_unpublished_records hothot_owned_shards
  hothot_lease_seconds_left hothot_takeovers_total hothot_takeover_seconds hothot_switchover_hold_seconds hothot_divergent_operations
  hothot_digest_mismatches_total hothot_jobs_restarted_total hothot_stale_finishes_total`.split(/\s+/);

describe("Metrics", () => {
  it("has every name of the contract, in a registry of its own", async () => {
    const one = createMetrics({ labels: { dc: "east" } });
    const other = createMetrics({ process: false });
    one.writes.inc({ outcome: "ok", durability: "local", route: "local" });
    one.replicationLagSeconds.set({ shard_owner: "west" }, 0.004);
    one.beforeScrape(() => one.ownedShards.set(22));
    one.beforeScrape(() => {
      throw new Error("not now");
    });
    const { contentType, text } = await one.render();
    assert.match(contentType, /^text\/plain/);
    for (const name of names) assert.ok(text.includes(`# HELP ${name} `), name);
    assert.match(text, /hothot_writes_total\{outcome="ok",durability="local",route="local",dc="east"\} 1/);
    assert.match(text, /hothot_owned_shards\{dc="east"\} 22/);
    assert.match(text, /nodejs_eventloop_lag_seconds/);
    const empty = (await other.render()).text;
    assert.match(empty, /hothot_owned_shards 0/);
    assert.doesNotMatch(empty, /nodejs_eventloop_lag_seconds|hothot_writes_total\{/);
  });

  it("tells the lag of those that own something now, and of nobody else", async () => {
    const metrics = createMetrics({ process: false });
    let lags = new Map([
      ["west", 7_000],
      ["central", 20],
    ]);
    const parts = {
      metrics,
      map: { ownedBy: () => [], all: () => [] },
      readiness: { lagByOwner: () => lags },
      backlog: { bytes: 0 },
      leases: { msLeft: 0 },
      control: { pool: { query: async () => ({ rows: [] }) } },
    };
    keepGauges(parts as unknown as DatacenterParts, { lag: { medianMs: 0, p99Ms: 0, maxMs: 0 } });
    const told = async (): Promise<string[]> =>
      (await metrics.render()).text.match(/^hothot_replication_lag_seconds\{.*/gm) ?? [];
    assert.equal((await told()).length, 2);
    lags = new Map([["central", 30]]);
    assert.deepEqual(await told(), ['hothot_replication_lag_seconds{shard_owner="central"} 0.03']);
  });
});
