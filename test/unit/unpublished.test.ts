import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteBudget } from "../../replication/byte-budget.js";
import { Unpublished } from "../../replication/unpublished.js";
import type { Committed } from "../../replication/writer.js";
import { epoch, position, shardId } from "../../shards/ids.js";
import { ManualTime } from "../harness/manual-time.js";

const committed = (at: number, bytes: number): Committed => ({
  shard: shardId(0),
  epoch: epoch(1),
  position: position(at),
  record: Buffer.alloc(bytes),
  at: 0,
});
const time = new ManualTime();
const positionsOf = (of: Unpublished, mark: number): number[] =>
  of.next(position(mark), time).map((row) => Number(row.position));

test("one message takes no more than 1,000 records or 400 kB, and what follows without a gap", () => {
  const many = new Unpublished(new ByteBudget(100_000_000));
  for (let at = 1; at <= 2_500; at++) many.add(committed(at, 100));
  assert.equal(positionsOf(many, 0).length, 1_000);
  assert.deepEqual([positionsOf(many, 1_000).at(0), positionsOf(many, 2_000).at(-1)], [1_001, 2_500]);
  const large = new Unpublished(new ByteBudget(100_000_000));
  for (let at = 1; at <= 20; at++) large.add(committed(at, 30_000));
  assert.equal(positionsOf(large, 0).length, 13);
  const torn = new Unpublished(new ByteBudget(100_000_000));
  for (const at of [1, 2, 4]) torn.add(committed(at, 10));
  assert.deepEqual(positionsOf(torn, 0), [1, 2]);
  assert.deepEqual(positionsOf(torn, 2), [], "the outbox has the third");
  assert.deepEqual(positionsOf(torn, 3), [4]);
});

test("the memory of a backlog is bounded, in one shard and in all together; what did not fit is the outbox's", () => {
  const budget = new ByteBudget(6_000_000);
  const [one, two] = [new Unpublished(budget), new Unpublished(budget)];
  const kept = (of: Unpublished): number => {
    let mark = 0;
    for (let batch = positionsOf(of, mark); batch.length > 0; batch = positionsOf(of, mark))
      mark = batch.at(-1) ?? mark;
    return mark;
  };
  for (let at = 1; at <= 1_000; at++) for (const each of [one, two]) each.add(committed(at, 10_000));
  for (let at = 1_001; at <= 2_000; at++) one.add(committed(at, 10_000));
  assert.equal(kept(one), 300);
  assert.equal(kept(two), 300);
  // All of it is given back: by what the log has, and when an epoch ends.
  assert.equal(budget.take(6_000_000), true);
  budget.give(6_000_000);
  one.add(committed(1, 1_000));
  one.clear();
  assert.equal(budget.take(6_000_000), true);
});

test("one shard alone takes 4 MB of it", () => {
  const budget = new ByteBudget(6_000_000);
  const one = new Unpublished(budget);
  for (let at = 1; at <= 1_000; at++) one.add(committed(at, 10_000));
  assert.equal(budget.take(2_000_000), true);
  assert.equal(budget.take(1), false);
});
