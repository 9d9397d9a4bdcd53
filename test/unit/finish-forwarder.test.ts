import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import { Problem, type ProblemCode } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import type { Command, Reply, RequestContext } from "../../services/api.js";
import { FinishForwarder } from "../../services/jobs/finish-forwarder.js";
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
    sent: [] as FinishCommand[],
    answer: (_: FinishCommand): ProblemCode | undefined => undefined,
  };
  const store = {
    due: async () => [...stored.values()].filter(({ at }) => at <= time.monotonic()).map(({ finish }) => finish),
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
    send: async (_context: RequestContext, command: Command): Promise<Reply> => {
      const finish = command as FinishCommand;
      world.sent.push(finish);
      const code = world.answer(finish);
      if (code !== undefined) throw new Problem(code);
      return { status: 200 } as Reply;
    },
  });
  await forwarder.start();
  context.after(() => forwarder.stop());
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
