import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import { Problem, type ProblemCode } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import type { Command, Reply, RequestContext } from "../../services/api.js";
import { FinishForwarder } from "../../services/jobs/finish-forwarder.js";
import { mostOfAll, mostOfOwner, mostOfShard, roomOf } from "../../services/jobs/finish-lanes.js";
import type { FinishCommand, FinishStore, StoredFinish } from "../../services/jobs/finish-store.js";
import { ManualTime } from "../harness/manual-time.js";

const finishOf = (number: number, more: Partial<FinishCommand> = {}): StoredFinish => ({
  key: `k${number}`,
  caller: { tenant: "", principal: "test" },
  command: {
    type: "task.finish",
    taskId: `j1-abcdefgh.1.${number}`,
    token: "1.1.1",
    workerId: "w",
    status: "ok",
    ...more,
  },
  tries: 0,
});

async function forwarding(context: TestContext, kept: readonly StoredFinish[]) {
  const time = new ManualTime();
  const stored = new Map(kept.map((finish) => [finish.key, { finish, at: 0 }]));
  const world = {
    active: true,
    owner: (_: number): string | null => "east",
    sent: [] as FinishCommand[],
    answer: (_: FinishCommand): ProblemCode | undefined => undefined,
  };
  const due = () =>
    [...stored.values()]
      .filter(({ at }) => at <= time.monotonic())
      .sort((a, b) => a.at - b.at)
      .map(({ finish }) => ({ finish, shard: Number(/^j(\d+)-/.exec(finish.command.taskId)?.[1]) }));
  const store = {
    shards: async () => [...new Set(due().map(({ shard }) => shard))],
    due: async (limit: number, shards: readonly number[]) =>
      due()
        .filter(({ shard }) => shards.includes(shard))
        .map(({ finish }) => finish)
        .slice(0, limit),
    forget: async (key: string) => void stored.delete(key),
    later: async (key: string, waitMs: number) => {
      const found = stored.get(key);
      if (found === undefined) return;
      const finish = { ...found.finish, tries: found.finish.tries + 1 };
      stored.set(key, { finish, at: time.monotonic() + waitMs });
    },
  } as unknown as FinishStore;
  const forwarder = new FinishForwarder({
    store,
    time,
    random: seededRandom(1),
    log: silentLogger,
    active: () => world.active,
    owner: (shard) => world.owner(shard),
    send: async ({ deadline }: RequestContext, command: Command): Promise<Reply> => {
      const finish = command as FinishCommand;
      world.sent.push(finish);
      const code = world.answer(finish);
      if (code === "owner_unreachable") await time.sleep(deadline - time.monotonic());
      if (code !== undefined) throw new Problem(code);
      return { status: 200 } as Reply;
    },
  });
  await forwarder.start();
  context.after(async () => {
    const stopped = forwarder.stop();
    // What is on its way has its deadline.
    await time.advance(5_000);
    await stopped;
  });
  return { time, world, stored };
}

test("a stored finish is forwarded until an owner has answered, less and less often, and then forgotten", async (context) => {
  const { time, world, stored } = await forwarding(context, [finishOf(1), finishOf(2)]);
  world.answer = ({ taskId }) => (taskId.endsWith(".1") ? "owner_unreachable" : undefined);
  await time.advance(60_000);
  assert.deepEqual([...stored.keys()], ["k1"]);
  const tries = world.sent.filter(({ taskId }) => taskId.endsWith(".1")).length;
  assert.ok(tries > 8 && tries < 25, `${tries} tries in a minute`);
  world.answer = () => "stale_token";
  await time.advance(10_000);
  assert.equal(stored.size, 0, "a refusal is an answer");
});

test("one whose result is too large is told as a failed try; only the process that acts for its datacenter forwards", async (context) => {
  const { time, world, stored } = await forwarding(context, [finishOf(1, { result: { much: true } })]);
  world.active = false;
  await time.advance(10_000);
  assert.deepEqual(world.sent, []);
  world.active = true;
  world.answer = ({ result }) => (result === undefined ? undefined : "payload_too_large");
  await time.advance(2_000);
  assert.deepEqual(
    world.sent.map(({ status, result }) => [status, result === undefined]),
    [
      ["ok", false],
      ["failed", true],
    ],
  );
  assert.equal(stored.size, 0);
});

const many = (first: number, count: number, shards: number): StoredFinish[] =>
  Array.from({ length: count }, (_, n) =>
    finishOf(first + n, { taskId: `j${first + (n % shards)}-abcdefgh.1.${n + 1}` }),
  );

test("finishes of shards without an owner wait without being sent, and hold up no others", async (context) => {
  const { time, world, stored } = await forwarding(context, [...many(0, 5_000, 400), ...many(5_000, 10, 10)]);
  world.owner = (shard) => (shard < 400 ? null : "west");
  await time.advance(1_500);
  assert.equal(stored.size, 5_000);
  assert.equal(world.sent.length, 10);
  world.owner = () => "west";
  await time.advance(30_000);
  assert.equal(stored.size, 0, "all are sent as soon as there is one");
});

test("an owner that is thought to be there and does not answer holds up the finishes of no other", async (context) => {
  const { time, world, stored } = await forwarding(context, [...many(0, 2_000, 100), ...many(5_000, 10, 10)]);
  world.owner = (shard) => (shard < 5_000 ? "west" : "central");
  world.answer = ({ taskId }) => (Number(/^j(\d+)-/.exec(taskId)?.[1]) < 5_000 ? "owner_unreachable" : undefined);
  await time.advance(1_500);
  assert.equal(stored.size, 2_000);
  const before = world.sent.length;
  await time.advance(60_000);
  assert.ok(world.sent.length - before > 200, "yet it is asked now and then");
});

test("a shard whose finishes nobody answers gets one try at a time, and the others of its owner go on", () => {
  const lane = { busy: 0, silent: 0, again: 0 };
  assert.equal(roomOf(lane, 0, 0, 0), mostOfShard);
  assert.equal(roomOf({ ...lane, busy: 3 }, 3, 3, 0), mostOfShard - 3);
  assert.equal(roomOf(lane, mostOfOwner - 1, mostOfOwner, 0), 1);
  assert.equal(roomOf(lane, 0, mostOfAll, 0), 0);
  const silent = { busy: 0, silent: 2, again: 1_000 };
  assert.deepEqual([roomOf(silent, 0, 0, 999), roomOf(silent, 0, 0, 1_000)], [0, 1]);
  assert.equal(roomOf({ ...silent, busy: 1 }, 1, 1, 1_000), 0);
});
