import assert from "node:assert/strict";
import { test } from "node:test";
import type { ShardDigest } from "../../replication/digest.js";
import { judgeBy, judgeCopies, wholeCopies } from "../../services/sound-copy.js";

/** A sound copy at place 7 whose sum is `expected`, changed as said. */
const copy = (expected: number, other: Partial<ShardDigest> = {}): ShardDigest => ({
  ...{ shard: 0, epoch: 1, position: 7, clusters: 1, expected, digest: expected, restoring: 0 },
  ...{ comparedEpoch: 1, comparedPosition: 5, comparedEqual: true },
  ...other,
});
const judged = (owner: string | null, copies: Readonly<Record<string, ShardDigest>>): unknown =>
  judgeCopies(owner, new Map(Object.entries(copies)));
const disagree = { refused: "they disagree" };

test("copies that agree are right; of them the owner's is the source, unless it is damaged itself", () => {
  assert.deepEqual(judged("east", { west: copy(1), east: copy(1) }), { source: "east", damaged: [] });
  const damaged = copy(1, { digest: 9 });
  assert.deepEqual(judged("east", { west: damaged, east: copy(1) }), { source: "east", damaged: ["west"] });
  assert.deepEqual(judged("east", { east: damaged, west: copy(1), central: copy(1) }), {
    source: "west",
    damaged: ["east"],
  });
  assert.deepEqual(judged("east", { east: damaged, west: damaged }), { refused: "none is sound" });
  assert.deepEqual(judged("east", {}), { refused: "none is sound" });
});

test("an owner is believed against one other copy, never against two that agree", () => {
  assert.deepEqual(judged("east", { east: copy(1), west: copy(2) }), { source: "east", damaged: ["west"] });
  assert.deepEqual(judged("east", { east: copy(1), west: copy(1), central: copy(2) }), {
    source: "east",
    damaged: ["central"],
  });
  assert.deepEqual(judged("east", { east: copy(1), west: copy(2), central: copy(2) }), disagree);
  assert.deepEqual(judged("east", { east: copy(1), west: copy(2), central: copy(2, { digest: 9 }) }), disagree);
  assert.deepEqual(judged("east", { east: copy(1, { digest: 9 }), west: copy(2), central: copy(2) }), {
    source: "west",
    damaged: ["east"],
  });
  assert.deepEqual(judged("east", { east: copy(1, { digest: 9 }), west: copy(2) }), disagree);
});

test("without an owner that answers most copies decide", () => {
  for (const owner of [null, "east"]) {
    assert.deepEqual(judged(owner, { west: copy(1), central: copy(2), north: copy(2) }), {
      source: "central",
      damaged: ["west"],
    });
    assert.deepEqual(judged(owner, { west: copy(1), central: copy(2) }), disagree);
  }
});

test("copies at different places are compared by what the log has said of them", () => {
  const behind = { position: 6 };
  const contradicted = { ...behind, comparedEqual: false };
  assert.deepEqual(judged("east", { east: copy(1), west: copy(2, behind) }), { source: "east", damaged: [] });
  assert.deepEqual(judged("east", { east: copy(1), west: copy(2, contradicted), central: copy(3, behind) }), {
    source: "east",
    damaged: ["west"],
  });
  assert.deepEqual(
    judged("east", { east: copy(1), west: copy(2, contradicted), central: copy(3, contradicted) }),
    disagree,
  );
  assert.deepEqual(judged("east", { east: copy(1, { digest: 9 }), west: copy(2, contradicted) }), disagree);
  // The owner's own comparison is an old one.
  assert.deepEqual(judged("east", { east: copy(1, { comparedEqual: false }), west: copy(2, behind) }), {
    source: "east",
    damaged: [],
  });
});

test("an operator's choice stands if that copy is sound", () => {
  const copies = new Map([
    ["east", copy(1)],
    ["west", copy(2)],
    ["central", copy(2, { digest: 9 })],
    ["north", copy(2)],
  ]);
  assert.deepEqual(judgeBy("west", copies), { source: "west", damaged: ["east", "central"] });
  assert.deepEqual(judgeBy("central", copies), { refused: "none is sound" });
  assert.deepEqual(judgeBy("south", copies), { refused: "none is sound" });
  copies.set("north", copy(2, { position: 8 }));
  assert.deepEqual(judgeBy("west", copies), { source: "west", damaged: ["east", "central", "north"] });
});

test("what loads or has stopped is not judged", () => {
  const copies = new Map([
    ["east", copy(1)],
    ["west", copy(2, { restoring: 1 })],
    ["central", copy(2, { stopped: "a gap" })],
  ]);
  assert.deepEqual([...wholeCopies(copies).keys()], ["east"]);
});
