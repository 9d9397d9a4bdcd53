import assert from "node:assert/strict";
import { test } from "node:test";
import { fold, type FoldHead } from "../../replication/fold.js";
import type { BatchHeader, OpenBody } from "../../replication/record.js";
import { epoch, position, shardId } from "../../shards/ids.js";

const head = (over: Partial<FoldHead> = {}): FoldHead => ({
  owner: "east",
  epoch: epoch(3),
  state: "replica",
  position: position(10),
  published: position(10),
  tenure: epoch(0),
  fencedThrough: epoch(0),
  closing: 0,
  epochEnds: [],
  ...over,
});
const header = (over: Partial<BatchHeader> = {}): BatchHeader => ({
  kind: "records",
  generation: 1,
  shard: shardId(7),
  epoch: epoch(3),
  owner: "east",
  batchId: "0011223344556677",
  first: position(11),
  count: 2,
  committedAt: 1_000,
  ...over,
});
const open: OpenBody = {
  from: "east",
  kind: "takeover",
  reason: "",
  by: "west",
  sameTenure: false,
  closing: 0,
  phasesMs: {},
  drained: 0,
  epochEnds: [],
};
const opening = (last: number, over: Partial<BatchHeader> = {}): BatchHeader =>
  header({ kind: "open", epoch: epoch(4), owner: "west", first: position(last + 1), count: 0, ...over });

test("records that follow are applied and move position and mark", () => {
  const step = fold("west", head(), header(), null);
  assert.equal(step.kind, "apply");
  assert.ok(step.kind === "apply");
  assert.deepEqual([step.skip, step.head.position, step.head.published], [0, 12, 12]);
});

test("records that overlap what is here are applied from the first new one on", () => {
  const step = fold("west", head(), header({ first: position(9), count: 4 }), null);
  assert.ok(step.kind === "apply");
  assert.equal(step.skip, 2);
  assert.equal(step.head.position, 12);
});

test("records that are here already change nothing at a replica", () => {
  assert.equal(fold("west", head(), header({ first: position(9), count: 2 }), null).kind, "none");
});

test("own records in the log move the mark only", () => {
  const step = fold("east", head({ state: "owned", position: position(20) }), header(), null);
  assert.ok(step.kind === "mark");
  assert.deepEqual([step.head.position, step.head.published], [20, 12]);
});

test("own records above the own head are applied: the database went back in time", () => {
  const step = fold(
    "east",
    head({ state: "suspended", position: position(11), published: position(10) }),
    header(),
    null,
  );
  assert.ok(step.kind === "apply");
  assert.deepEqual([step.skip, step.head.position], [1, 12]);
});

test("a gap, an older epoch, an epoch that was not opened, and another owner stop the shard", () => {
  for (const bad of [
    header({ first: position(12) }),
    header({ epoch: epoch(2) }),
    header({ epoch: epoch(4) }),
    header({ owner: "west" }),
  ])
    assert.equal(fold("central", head(), bad, null).kind, "stop");
});

test("an open of another datacenter makes a replica, and remembers where the epoch ended", () => {
  const step = fold("central", head(), opening(10), open);
  assert.ok(step.kind === "adopt");
  assert.equal(step.head.state, "replica");
  assert.equal(step.head.owner, "west");
  assert.equal(step.divergentAbove, null);
  assert.deepEqual(step.head.epochEnds, [{ epoch: 3, owner: "east", last: 10 }]);
});

test("a former owner learns which of its operations are divergent", () => {
  const step = fold("east", head({ state: "suspended", position: position(15) }), opening(10), open);
  assert.ok(step.kind === "adopt");
  assert.equal(step.divergentAbove, 10);
  assert.deepEqual([step.head.position, step.head.published, step.head.state], [10, 10, "replica"]);
});

test("a replica above the stated position stops, as does one below it", () => {
  assert.equal(fold("central", head(), opening(9), open).kind, "stop");
  assert.equal(fold("central", head(), opening(11), open).kind, "stop");
  assert.equal(fold("east", head({ state: "owned", position: position(10) }), opening(11), open).kind, "stop");
});

test("an own open owns the shard, with a new tenure", () => {
  const step = fold("west", head(), opening(10), open);
  assert.ok(step.kind === "adopt");
  assert.deepEqual([step.head.state, step.head.tenure, step.head.epoch], ["owned", 4, 4]);
});

test("an own open at or below a fence is suspended (rule d)", () => {
  const step = fold("west", head({ fencedThrough: epoch(4) }), opening(10), open);
  assert.ok(step.kind === "adopt");
  assert.equal(step.head.state, "suspended");
});

test("a closing lets no own open through but one that knew it (rule i)", () => {
  const closed = head({ owner: "west", state: "suspended", tenure: epoch(2), closing: 77, fencedThrough: epoch(3) });
  const late = fold("west", closed, opening(10), { ...open, closing: 0 });
  assert.ok(late.kind === "adopt");
  assert.deepEqual([late.head.state, late.head.closing], ["suspended", 77]);
  const older = fold("west", closed, opening(10), { ...open, closing: 76 });
  assert.ok(older.kind === "adopt");
  assert.equal(older.head.state, "suspended");
  const own = fold("west", closed, opening(10), { ...open, closing: 77 });
  assert.ok(own.kind === "adopt");
  assert.deepEqual([own.head.state, own.head.closing], ["owned", 0]);
});

test("the tenure goes on only when owner and memory stayed the same", () => {
  const mine = head({ owner: "west", state: "suspended", tenure: epoch(2), fencedThrough: epoch(3) });
  const same = fold("west", mine, opening(10), { ...open, sameTenure: true });
  assert.ok(same.kind === "adopt");
  assert.equal(same.head.tenure, 2);
  const forgot = fold("west", mine, opening(10), { ...open, sameTenure: false });
  assert.ok(forgot.kind === "adopt");
  assert.equal(forgot.head.tenure, 4);
});

test("an open that is folded twice changes nothing the second time, another of that epoch stops", () => {
  const mine = head({ owner: "west", epoch: epoch(4), state: "owned" });
  assert.equal(fold("west", mine, opening(10), open).kind, "none");
  assert.equal(fold("west", mine, opening(10, { owner: "central" }), open).kind, "stop");
});

test("a statement is checked against the position", () => {
  const statement = header({ kind: "statement", first: position(11), count: 0 });
  assert.equal(fold("west", head(), statement, open).kind, "none");
  assert.equal(fold("west", head(), { ...statement, first: position(12) }, open).kind, "stop");
});
