import assert from "node:assert/strict";
import { test } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { Restorer } from "../../replication/restore.js";
import type { RestoreStore } from "../../replication/restore-store.js";
import { shardId } from "../../shards/ids.js";
import { ShardMap, type Head } from "../../shards/map.js";

const shard = shardId(1);
const head = (epoch: number): Head =>
  ({ shard, owner: "east", epoch, revision: epoch, state: "owned" }) as unknown as Head;

/** A restorer whose questions are answered by hand. */
function setUp() {
  const map = new ShardMap(2);
  map.adopt(head(1));
  const asked: ((rows: readonly string[]) => void)[] = [];
  const cleared: number[] = [];
  const restorer = new Restorer({
    group: "g",
    site: "east",
    store: {
      waiting: () =>
        new Promise((resolve) =>
          asked.push((rows) => resolve(rows.map((id) => ({ kind: "cluster", tenant: "", id, shard })))),
        ),
    } as unknown as RestoreStore,
    messenger: { subscribe: () => () => undefined } as never,
    map,
    time: systemTime,
    log: silentLogger,
    datacenters: () => ["east"],
    cleared: (each) => cleared.push(each),
    active: () => false,
  });
  const answer = async (n: number, ...rows: string[]): Promise<void> => {
    asked[n]?.(rows);
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { map, restorer, asked, answer, cleared };
}

test("a shard waits until it is known which rows of its newest epoch do (P6)", async () => {
  const { map, restorer, asked, answer, cleared } = setUp();
  assert.equal(restorer.shardWaits(shard), true, "nothing is known yet");
  void restorer.refresh();
  await answer(0);
  assert.equal(restorer.shardWaits(shard), false);
  map.adopt({ ...head(1), revision: 2 });
  assert.equal(restorer.shardWaits(shard), false, "the same epoch");
  map.adopt({ ...head(2), revision: 3 });
  assert.equal(restorer.shardWaits(shard), true);
  assert.equal(asked.length, 2, "it asks by itself");
  await answer(1);
  assert.equal(restorer.shardWaits(shard), false);
  assert.deepEqual(cleared, [shard]);
});

test("an answer that was asked for earlier never replaces a later one", async () => {
  const { restorer, answer } = setUp();
  void restorer.refresh();
  void restorer.refresh();
  await answer(1, "a");
  assert.equal(restorer.isWaiting(shard, "", "a"), true);
  await answer(0);
  assert.equal(restorer.isWaiting(shard, "", "a"), true);
});

test("what was asked for before a newer epoch was heard of says nothing about it", async () => {
  const { map, restorer, asked, answer } = setUp();
  void restorer.refresh();
  map.adopt({ ...head(2), revision: 2 });
  await answer(0);
  assert.equal(restorer.shardWaits(shard), true);
  await answer(1, "a");
  assert.equal(asked.length, 2);
  assert.equal(restorer.shardWaits(shard), true);
  assert.equal(restorer.isWaiting(shard, "", "a"), true);
});
