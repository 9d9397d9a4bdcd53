import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { planPurge, type PurgeFacts } from "../../replication/purge-plan.js";

/** 1,000 messages of 100 bytes, sequences 101 to 1100; all members have everything; room for ten times as much. */
const facts: PurgeFacts = {
  firstSequence: 101,
  lastSequence: 1100,
  bytes: 100_000,
  messages: 1000,
  oldestStatement: 1000,
  expired: 101,
  expiring: 101,
  maxBytes: 1_000_000,
  members: [
    { dc: "east", live: true, applied: 1100 },
    { dc: "west", live: true, applied: 1100 },
  ],
};
const west = (live: boolean, applied: number | undefined): PurgeFacts["members"] => [
  { dc: "east", live: true, applied: 1100 },
  { dc: "west", live, applied },
];

describe("what may be purged", () => {
  it("is nothing while nothing is too old or too much", () => {
    assert.deepEqual(planPurge(facts), { below: 101, left: [], endangered: [], restate: false, full: false });
  });

  it("is what is too old, but never the newest statement of a shard", () => {
    assert.equal(planPurge({ ...facts, expired: 500 }).below, 500);
    assert.equal(planPurge({ ...facts, expired: 1101 }).below, 1000);
    assert.equal(planPurge({ ...facts, expired: 1101, oldestStatement: undefined }).below, 101);
    assert.equal(planPurge({ ...facts, expired: 1101, bytes: 5_000_000, oldestStatement: 300 }).below, 300);
  });

  it("is never, by age, what a live datacenter has not applied, or may not have", () => {
    assert.equal(planPurge({ ...facts, expired: 900, members: west(true, 400) }).below, 401);
    assert.equal(planPurge({ ...facts, expired: 900, members: west(true, undefined) }).below, 101);
  });

  it("leaves a dead datacenter behind, after a warning", () => {
    const soon = planPurge({ ...facts, expiring: 450, expired: 300, members: west(false, 400) });
    assert.deepEqual([soon.below, soon.endangered, soon.left], [300, ["west"], []]);
    const late = planPurge({ ...facts, expiring: 950, expired: 900, members: west(false, 400) });
    assert.deepEqual([late.below, late.endangered, late.left], [900, [], ["west"]]);
    const told = planPurge({ ...facts, firstSequence: 900, expiring: 960, expired: 950, members: west(false, 400) });
    assert.deepEqual([told.below, told.endangered, told.left], [950, [], []], "it is told once");
  });

  it("is, by size, also what a live datacenter needs, after a warning", () => {
    const near = planPurge({ ...facts, maxBytes: 150_000, members: west(true, 105) });
    assert.deepEqual([near.below, near.endangered], [101, ["west"]]);
    const over = planPurge({ ...facts, maxBytes: 125_000, members: west(true, 105) });
    // 100 kB are above three quarters: down to 60 %, 75 kB, go 250 messages.
    assert.deepEqual([over.below, over.left, over.full], [351, ["west"], false]);
  });

  it("warns, by size, at the latest with the purge before the one that leaves behind", () => {
    // The log grows from below where it warns to nearly full between any two looks.
    let first = 1;
    const warned: number[] = [];
    for (let look = 1; look < 20; look++) {
      const last = first + 899;
      const plan = planPurge({
        firstSequence: first,
        lastSequence: last,
        messages: last - first + 1,
        bytes: (last - first + 1) * 1_000,
        oldestStatement: last,
        expired: first,
        expiring: first,
        maxBytes: 1_000_000,
        members: [{ dc: "west", live: false, applied: 2_000 }],
      });
      if (plan.left.length > 0) {
        assert.deepEqual(warned.at(-1), look - 1);
        return;
      }
      if (plan.endangered.includes("west")) warned.push(look);
      first = plan.below;
    }
    assert.fail("nothing was purged past west");
  });

  it("asks for new statements where old ones keep the log too large", () => {
    const plan = planPurge({ ...facts, maxBytes: 125_000, oldestStatement: 150 });
    assert.deepEqual([plan.below, plan.restate], [150, true]);
    assert.equal(planPurge({ ...facts, maxBytes: 111_000 }).full, true);
  });
});
