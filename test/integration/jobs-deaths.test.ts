import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import { readLog } from "./log-reader.js";
import { allEqual, allServe, at, body, idsOf, problem, send, settleMs, shardMap, type Json } from "./support.js";

interface Task {
  readonly id: string;
  readonly jobId: string;
  readonly stage: string;
  readonly attempt: number;
  readonly token: string;
  readonly node: string;
  readonly input: Json;
}

const stages = ["CREATE", "CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"];
/** The stage that a restart begins with, by the stage that the dead attempt had reached. */
const restartsAt = (reached: number): number => (reached >= 4 ? 4 : reached >= 1 ? 1 : 0);

describe("jobs whose owner dies", { timeout: 240_000 }, () => {
  let stack: TestStack;
  before(async () => {
    stack = await startStack({
      worker: false,
      rttMs: 0,
      env: { HOTHOT_AUTOMATIC_FAILBACK: "false", HOTHOT_LEASE_MS: "3000", HOTHOT_TASK_LEASE_MS: "5000" },
    });
    for (const [dc, id] of [
      ["east", "w1"],
      ["west", "w2"],
    ] as const)
      body(
        await send(stack, dc, "PUT", `/v1/workers/${id}`, { capacity: 1000 }, { "hothot-durability": "replicated" }),
        200,
      );
  });
  afterAll(() => stack?.stop());

  const on = (dc: string, method: string, where: string, data?: unknown, headers?: Record<string, string>) =>
    send(stack, dc, method, where, data, headers);
  const start = async (dc: string, id: string, nodes: readonly string[], type = "create"): Promise<string> => {
    const replicated = { "hothot-durability": "replicated" };
    body(await on(dc, "PUT", `/v1/clusters/${id}`, { name: id, spec: { nodes } }, replicated), 201);
    return String(body(await on(dc, "POST", `/v1/clusters/${id}/operations`, { type }, replicated), 202)["id"]);
  };
  const take = async (dc: string, workerId: string, max = 100): Promise<Task[]> =>
    body<{ tasks: Task[] }>(await on(dc, "POST", "/v1/tasks/take", { workerId, max, waitMs: 500 }), 200).tasks;
  const finish = (dc: string, task: Task, workerId: string, headers?: Record<string, string>) =>
    on(
      dc,
      "POST",
      `/v1/tasks/${task.id}/finish`,
      { token: task.token, workerId, status: "ok", result: { [`by_${task.stage}`]: task.attempt } },
      headers,
    );
  /** Works all tasks of the survivors until the jobs have ended. */
  const workOff = async (dcs: readonly string[], jobs: readonly string[], seen: Task[]): Promise<void> => {
    await stack.until(
      async () => {
        for (const dc of dcs)
          for (const task of await take(dc, "w2")) {
            seen.push(task);
            body(await finish(dc, task, "w2"), 200);
          }
        const all = await Promise.all(jobs.map(async (id) => body(await on("west", "GET", `/v1/jobs/${id}`), 200)));
        return all.every((job) => job["status"] === "complete");
      },
      90_000,
      "all jobs are complete",
    );
  };

  it("restart behind their last checkpoint, wherever in a stage or at its boundary it was killed", async () => {
    // Of each stage one job at its boundary, one in its middle, and one whose finishes are under way at the kill.
    const ids = idsOf(await shardMap(stack, "east"), "east", "boundary", 3 * stages.length);
    const jobs = await Promise.all(ids.map((id) => start("east", id, ["a", "b"])));
    const placed = new Map(jobs.map((id, index) => [id, { stage: index % 7, kind: Math.floor(index / 7) }]));
    const held: Task[] = [];
    await stack.until(
      async () => {
        const tasks = await take("east", "w1");
        await Promise.all(
          tasks.map(async (task) => {
            const { stage, kind } = placed.get(task.jobId) ?? { stage: 0, kind: 0 };
            const index = stages.indexOf(task.stage);
            if (index < stage || (index === stage && kind === 1 && task.node === "a"))
              body(await finish("east", task, "w1"), 200);
            else held.push(task);
          }),
        );
        return held.length === 7 * 2 + 7 * 1 + 7 * 2;
      },
      settleMs,
      "every job stands where it shall",
    );
    await allEqual(stack, "west");
    const underWay = held.filter((task) => placed.get(task.jobId)?.kind === 2);
    const answers = underWay.map((task) => finish("east", task, "w1").catch(() => undefined));
    await stack.simulate("crash", "east");
    const answered = new Set((await Promise.all(answers)).flatMap((answer, i) => (answer?.status === 200 ? [i] : [])));
    // Finishes of the dead attempt, late, at the survivors.
    const late = await Promise.all(
      held.map((task, i) => finish(i % 2 === 0 ? "west" : "central", task, "w1", { "hothot-timeout-ms": "25000" })),
    );
    const seen: Task[] = [];
    await workOff(["west", "central"], jobs, seen);
    const { entries } = await readLog(stack, "west");
    for (const job of jobs) {
      const types = entries.filter(({ record }) => record.job?.id === job).map(({ record }) => record.type);
      const { stage, kind } = placed.get(job) ?? { stage: 0, kind: 0 };
      const restarted = types.includes("job.restart");
      // One whose last finish got through before the kill may have ended, or passed a stage.
      if (kind !== 2) {
        assert.ok(restarted, `${job} restarted`);
        const own = seen.filter((task) => task.jobId === job).map((task) => `${task.stage} ${task.node}`);
        const wanted = stages.slice(restartsAt(stage)).flatMap((name) => [`${name} a`, `${name} b`]);
        assert.deepEqual(own.sort(), wanted.sort(), `${job}, which was at ${stages[stage]}`);
      }
      assert.equal(types.filter((type) => type === "job.start").length, 1);
      assert.equal(types.filter((type) => type === "job.end").length, 1, types.join());
      assert.equal(types.at(-1), "job.end");
    }
    for (const [i, answer] of late.entries()) {
      const task = at(held, i);
      const ended = entries.some(({ record }) => record.job?.id === task.jobId && record.type === "job.restart");
      if (ended) problem(answer, "stale_token");
      else assert.ok(answered.size > 0, `${task.id}: ${answer.status}`);
    }
    for (const task of seen) assert.equal(task.attempt, 2);
    await stack.simulate("restart", "east");
    await allServe(stack);
    await allEqual(stack, "east");
  });

  it("restart when their end was known to the lost owner alone, whose outcome is then listed as divergent", async () => {
    const [id = ""] = idsOf(await shardMap(stack, "central"), "central", "lost-end", 1);
    const job = await start("central", id, ["a"], "stop");
    const task = at(await take("central", "w1", 1), 0);
    await allEqual(stack, "west");
    // Cut off from everybody it may still end the job locally, as long as its lease lasts.
    await stack.simulate("isolate", "central");
    const done = await finish("central", task, "w1");
    body(done, 200);
    const ended = body(await on("central", "GET", `/v1/jobs/${job}`), 200);
    assert.equal(ended["status"], "complete");
    const seen: Task[] = [];
    await workOff(["west", "east"], [job], seen);
    assert.deepEqual(
      seen.map(({ jobId, attempt, stage }) => [jobId, attempt, stage]),
      [[job, 2, "STOP"]],
    );
    await stack.simulate("heal", "central");
    await allServe(stack);
    await allEqual(stack, "central");
    const divergent = await stack.until(
      async () => {
        const { items } = body<{ items: Json[] }>(await on("central", "GET", "/v1/divergent-operations"), 200);
        const mine = items.filter((item) => item["clusterId"] === id);
        return mine.length > 0 && mine;
      },
      settleMs,
      "its first end is listed",
    );
    assert.deepEqual(
      divergent.map((item) => [item["type"], item["status"]]),
      [["job.end", "open"]],
    );
    for (const dc of stack.dcs) {
      const now = body(await on(dc, "GET", `/v1/jobs/${job}`), 200);
      assert.equal(now["attempt"], 2);
      assert.equal(now["status"], "complete");
      problem(await finish(dc, task, "w1"), "stale_token");
    }
    const cluster = body(await on("west", "GET", `/v1/clusters/${id}`), 200);
    assert.deepEqual((cluster["state"] as Json)["nodes"], { a: { by_STOP: 2 } });
  });
});
