import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Progress } from "../../replication/progress.js";
import { epoch, position, shardId } from "../../shards/ids.js";
import { Peers, type NodeReport } from "../../shards/peers.js";
import { ManualTime } from "../harness/manual-time.js";

const shard = shardId(3);

/** A replica's view of an owner `east`; its heartbeats come when `hear` is called. */
function replica() {
  const time = new ManualTime();
  const peers = new Peers(time, 200, 1500);
  const progress = new Progress(time, peers);
  const hear = (at: number, of = 1): void => {
    const report: NodeReport = {
      dc: "east",
      node: "n1",
      url: "",
      state: "serving",
      leaseMsLeft: 1400,
      hears: [],
      blocked: [],
      heads: [shard, of, at],
      lagPositions: 0,
      lagMs: 0,
    };
    peers.heard(report);
    progress.sample([shard]);
  };
  const reached = (at: number, of = 1): void => progress.reached(shard, epoch(of), position(at));
  return { time, progress, hear, reached, lag: () => progress.lag(shard) };
}

describe("how far a copy is behind", () => {
  it("is nothing when nothing is missing, and stays so while the owner is idle", async () => {
    const { time, hear, reached, lag } = replica();
    hear(10);
    reached(10);
    for (let second = 0; second < 600; second += 60) {
      await time.advance(60_000);
      hear(10);
      assert.deepEqual(lag(), { positions: 0, ms: 0 });
    }
  });

  it("is what is missing, since when it is known to be there", async () => {
    const { time, hear, reached, lag } = replica();
    reached(10);
    hear(15);
    await time.advance(400);
    hear(40);
    await time.advance(100);
    assert.deepEqual(lag(), { positions: 30, ms: 500 });
    // What came first is here: the rest is younger.
    reached(20);
    assert.deepEqual(lag(), { positions: 20, ms: 100 });
    reached(40);
    assert.deepEqual(lag(), { positions: 0, ms: 0 });
  });

  it("is nothing of an owner that died when all had arrived, and grows when something had not", async () => {
    const whole = replica();
    whole.hear(10);
    whole.reached(10);
    await whole.time.advance(60_000);
    assert.deepEqual(whole.lag(), { positions: 0, ms: 0 });
    const torn = replica();
    torn.hear(12);
    torn.reached(10);
    await torn.time.advance(60_000);
    assert.deepEqual(torn.lag(), { positions: 2, ms: 60_000 });
    // What the dead owner had never published does not count in the next epoch.
    torn.reached(10, 2);
    assert.deepEqual(torn.lag(), { positions: 0, ms: 0 });
  });

  it("knows nothing of wall clocks: one that is 5 s off, or jumps, changes nothing", async () => {
    for (const skew of [-5_000, 0, 5_000]) {
      const monotonic = new ManualTime();
      const time = Object.assign(Object.create(monotonic) as ManualTime, {
        monotonic: () => monotonic.monotonic(),
        wall: () => monotonic.wall() + skew * (1 + (monotonic.monotonic() % 3)),
      });
      const peers = new Peers(time, 200, 1500);
      const progress = new Progress(time, peers);
      progress.reached(shard, epoch(1), position(10));
      peers.learnHead(shard, epoch(1), position(13));
      progress.sample([shard]);
      await monotonic.advance(250);
      assert.deepEqual(progress.lag(shard), { positions: 3, ms: 250 });
      progress.reached(shard, epoch(1), position(13));
      assert.deepEqual(progress.lag(shard), { positions: 0, ms: 0 });
    }
  });

  it("is bounded in memory however long the owner runs ahead, and keeps its oldest", async () => {
    const { time, hear, reached, lag } = replica();
    reached(1);
    for (let n = 2; n < 2_000; n++) {
      hear(n);
      await time.advance(1);
    }
    assert.deepEqual(lag(), { positions: 1998, ms: 1998 });
  });
});
