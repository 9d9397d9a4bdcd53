import assert from "node:assert/strict";
import { test } from "node:test";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import { gatheredFacts } from "../../replication/history.js";
import { LogOwnership } from "../../replication/ownership.js";
import type { Batch, BatchHeader } from "../../replication/record.js";
import type { AppendResult, ShardLog, Tail } from "../../replication/shard-log.js";
import { FollowedOpens, type Followed } from "../../shards/followed-opens.js";
import { epoch, position, shardId } from "../../shards/ids.js";
import type { OpenRequest } from "../../shards/ownership-log.js";
import { ManualTime } from "../harness/manual-time.js";

const shard = shardId(3);
const request: OpenRequest = {
  shard,
  against: epoch(4),
  from: "west",
  to: "east",
  kind: "takeover",
  reason: "west was silent",
  by: "east",
  sameTenure: false,
  closing: 0,
  phasesMs: { votes: 12, wait: 0 },
  since: position(6),
};
const tailAt = (last: number, sequence: number): Tail => ({
  sequence,
  header: { kind: "records", shard, epoch: epoch(4), owner: "west", first: position(last), count: 1 } as BatchHeader,
});

test("an open says how many records were drained: from where the change began to where the epoch ends, which may still move", async () => {
  const stored: Batch[] = [];
  const tails = [tailAt(8, 20), tailAt(11, 21)];
  const log: Partial<ShardLog> = {
    exclusive: (_shard, work) => work(),
    tail: async () => tails[0],
    append: async (expected: number, batch: Batch): Promise<AppendResult> => {
      const [, newer] = tails;
      // The former owner's last append came before this one.
      if (expected === 20 && newer !== undefined) return { kind: "refused", tail: newer };
      stored.push(batch);
      return { kind: "stored", sequence: 22 };
    },
  };
  const ownership = new LogOwnership({
    log: log as ShardLog,
    generation: 1,
    time: new ManualTime(),
    random: seededRandom(1),
    logger: silentLogger,
    opened: () => undefined,
  });
  assert.deepEqual(await ownership.open(request, Infinity), { kind: "opened" });
  assert.deepEqual(await ownership.open({ ...request, since: position(12) }, Infinity), { kind: "opened" });
  assert.deepEqual(
    stored.map(({ header, open }) => [header.epoch, header.first, open?.drained, open?.phasesMs]),
    [
      [5, 12, 5, request.phasesMs],
      [5, 12, 0, request.phasesMs],
    ],
  );
});

test("what follows an open is told: the append, and how long its owner took to serve, if it did", async () => {
  for (const [result, serves, told] of [
    [{ kind: "opened" }, true, [{ open: 20, serve: 50 }]],
    [{ kind: "opened" }, false, [{ open: 20 }]],
    [{ kind: "moved", epoch: epoch(5), owner: "central" }, true, []],
    [{ kind: "unknown" }, true, []],
  ] as const) {
    const time = new ManualTime();
    const heard: unknown[] = [];
    const followed: Followed = (...[of, at, phasesMs]) => {
      assert.deepEqual([of, at], [shard, 5]);
      heard.push(phasesMs);
    };
    const opens = new FollowedOpens({
      time,
      followed,
      ownership: {
        open: async () => {
          await time.advance(20);
          return result;
        },
      },
      served: async (dc) => {
        assert.equal(dc, "east");
        await time.advance(50);
        return serves;
      },
    });
    assert.deepEqual(await opens.open(request, 0), result);
    for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(heard, told);
  }
});

test("facts of one change are one, and only become more", () => {
  const fact = { shard: 1, epoch: 2, phasesMs: {}, divergent: 0 };
  assert.deepEqual(
    gatheredFacts([
      { ...fact, phasesMs: { open: 3 } },
      { ...fact, epoch: 3, divergent: 1 },
      { ...fact, divergent: 4 },
      { ...fact, phasesMs: { serve: 5 } },
    ]),
    [
      { ...fact, phasesMs: { open: 3, serve: 5 }, divergent: 4 },
      { ...fact, epoch: 3, divergent: 1 },
    ],
  );
});
