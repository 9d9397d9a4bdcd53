import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Readiness } from "../../services/engine/readiness.js";
import { Progress } from "../../replication/progress.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";
import { ShardMap } from "../../shards/map.js";
import { Peers } from "../../shards/peers.js";
import { ManualTime } from "../harness/manual-time.js";

const west = "west";
const east = "east";

/** `west`, with copies of two shards of `east`, whose heads it hears of. */
function replica(stopped: string | null = null) {
  const time = new ManualTime();
  const peers = new Peers(time, 200, 1500);
  const progress = new Progress(time, peers);
  const map = new ShardMap(2);
  const leases = { valid: true };
  for (const shard of [shardId(0), shardId(1)]) {
    map.adopt({
      shard,
      partition: partition(shard),
      owner: east,
      epoch: epoch(1),
      state: "replica",
      position: position(10),
      published: position(10),
      tenure: epoch(1),
      closing: 0,
      confirmed: false,
      since: "",
      kind: "initial",
      reason: "",
      stopped: shard === 1 ? stopped : null,
      revision: 1,
    });
    progress.reached(shard, epoch(1), position(10));
  }
  const hear = (...heads: number[]): void => {
    const report = {
      dc: east,
      node: "n1",
      url: "",
      state: "serving" as const,
      leaseMsLeft: 1400,
      hears: [],
      blocked: [],
    };
    peers.heard({ ...report, heads, lagPositions: 0, lagMs: 0 });
    progress.sample([shardId(0), shardId(1)]);
  };
  const readiness = new Readiness({
    site: west,
    map,
    progress,
    peers,
    applier: { active: true, caughtUp: true },
    restorer: { shardWaits: () => false, count: 0 },
    leases,
    clock: time,
  });
  return { time, readiness, leases, hear };
}

describe("how far a datacenter is", () => {
  it("has no lag while its owners are idle, and with no lease as much as they are silent", async () => {
    const { time, readiness, leases, hear } = replica();
    hear(0, 1, 10, 1, 1, 10);
    await time.advance(5_000);
    assert.deepEqual(readiness.worstLag(), { positions: 0, ms: 0 });
    leases.valid = false;
    assert.deepEqual(readiness.worstLag(), { positions: 0, ms: 5_000 });
    assert.deepEqual([...readiness.lagByOwner()], [[east, 5_000]]);
    hear(0, 1, 10, 1, 1, 10);
    leases.valid = true;
    assert.deepEqual(readiness.worstLag(), { positions: 0, ms: 0 });
  });

  it("has with no lease and nobody ever heard the lag of its own life", async () => {
    const { time, readiness, leases } = replica();
    leases.valid = false;
    await time.advance(700);
    assert.deepEqual(readiness.lag(shardId(0)), { positions: 0, ms: 700 });
  });

  it("is not out of service for a shard that stopped, and is for one that is far behind", async () => {
    const one = replica("unreadable");
    one.hear(1, 1, 500);
    await one.time.advance(3_000);
    assert.deepEqual(one.readiness.worstLag(), { positions: 490, ms: 3_000 });
    assert.equal(one.readiness.state(), "serving");
    one.hear(0, 1, 500);
    await one.time.advance(3_000);
    assert.equal(one.readiness.state(), "catching_up");
  });
});
