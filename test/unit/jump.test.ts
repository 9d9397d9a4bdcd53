import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { endOfCut, planJump, SourceBehind } from "../../replication/jump.js";
import type { FoldedShard } from "../../replication/copy-source.js";
import type { FullHead } from "../../replication/heads.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";

const head = (over: Partial<FullHead> = {}): FullHead => ({
  shard: shardId(7),
  partition: partition(1),
  owner: "east",
  epoch: epoch(3),
  state: "replica",
  position: position(100),
  published: position(100),
  tenure: epoch(0),
  fencedThrough: epoch(0),
  closing: 0,
  confirmed: false,
  since: "2026-01-01T00:00:00.000Z",
  kind: "initial",
  reason: "",
  epochEnds: [],
  stopped: null,
  revision: 4,
  ...over,
});
const there = (over: Partial<FoldedShard> = {}): FoldedShard => ({
  shard: 7,
  owner: "east",
  epoch: 3,
  position: 140,
  since: "2026-01-02T00:00:00.000Z",
  kind: "takeover",
  reason: "r",
  epochEnds: [],
  ...over,
});
const ended = (last: number) => [{ epoch: epoch(3), owner: "east", last: position(last) }];

describe("a jump over a part of the log that is gone", () => {
  it("loads what changed since, in the same epoch, and nothing of a shard that was idle", () => {
    const busy = planJump("west", head(), there());
    assert.deepEqual([busy.loads, busy.since, busy.head.position], [true, { epoch: 3, position: 100 }, 140]);
    const idle = planJump("west", head(), there({ position: 100 }));
    assert.deepEqual([idle.loads, idle.head.position, idle.divergentAbove], [false, 100, null]);
  });

  it("keeps an owner's rows, also those that the log does not hold yet", () => {
    const mine = head({ owner: "west", state: "owned", published: position(60) });
    const plan = planJump("west", mine, there({ owner: "west", position: 90 }));
    assert.deepEqual(
      [plan.loads, plan.head.position, plan.head.published, plan.head.state, plan.divergentAbove],
      [false, 100, 90, "owned", null],
    );
  });

  it("sets aside what a former owner committed above the end of its epoch", () => {
    const mine = head({ owner: "west", state: "suspended", published: position(80) });
    const known = planJump("west", mine, there({ epoch: 5, position: 95, epochEnds: ended(90) }));
    assert.deepEqual(
      [known.divergentAbove, known.ended, known.since, known.loads, known.head.state, known.head.position],
      [90, 90, { epoch: 3, position: 90 }, true, "replica", 95],
    );
    const idle = planJump("west", mine, there({ epoch: 5, position: 90, epochEnds: ended(90) }));
    assert.deepEqual([idle.divergentAbove, idle.loads], [90, false]);
    const forgotten = planJump("west", mine, there({ epoch: 5, position: 95 }));
    assert.deepEqual([forgotten.divergentAbove, forgotten.since], [80, { epoch: 3, position: 80 }]);
    const whole = planJump("west", mine, there({ epoch: 5, position: 120, epochEnds: ended(110) }));
    assert.deepEqual([whole.divergentAbove, whole.since], [null, { epoch: 3, position: 100 }]);
  });

  it("loads all of a new copy, of a stopped one, and of one that has what its epoch never held", () => {
    for (const [mine, other] of [
      [head({ owner: null, epoch: epoch(0), position: position(0), published: position(0) }), there()],
      [head({ stopped: "a gap" }), there()],
      [head({ stopped: "a gap" }), there({ epoch: 4, epochEnds: ended(100) })],
      [head(), there({ epoch: 4, epochEnds: ended(99) })],
    ] as const) {
      const plan = planJump("west", mine, other);
      assert.deepEqual([plan.loads, plan.since, plan.head.stopped], [true, null, null]);
    }
  });

  it("suspends a shard that the log gave to this datacenter unseen: an append settles it", () => {
    const plan = planJump("west", head(), there({ owner: "west", epoch: 4, epochEnds: ended(100), position: 100 }));
    assert.deepEqual([plan.head.state, plan.head.confirmed, plan.head.tenure], ["suspended", false, 4]);
  });

  it("knows of each epoch that it passes where it ended; of one that is forgotten no copy is trusted", () => {
    const ends = [4, 5].map((each) => ({ epoch: epoch(each), owner: "central", last: position(100 + each) }));
    const far = there({ epoch: 7, position: 120, epochEnds: [...ended(90), ...ends] });
    const plan = planJump("west", head(), far);
    assert.deepEqual(
      [3, 4, 5, 6].map((cut) => endOfCut(cut, head(), plan, far)),
      [90, 104, 105, 0],
    );
  });

  it("never goes back", () => {
    assert.throws(() => planJump("west", head(), there({ epoch: 2 })), SourceBehind);
    assert.equal(planJump("west", head(), there({ position: 70 })).head.position, 100);
  });
});
