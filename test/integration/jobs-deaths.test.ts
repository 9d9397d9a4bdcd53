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

/** Labels of clusters whose jobs a test works by itself. */
const apart = { worked: "apart" };

describe("jobs whose owner dies", { timeout: 240_000 }, () => {
  let stack: TestStack;
  /** A job whose first owner died, and what a worker of it has. */
  let twice: { readonly id: string; readonly held: Task[] };
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
  const replicated = { "hothot-durability": "replicated" };
  const make = async (dc: string, id: string, nodes: readonly string[], more: Json = {}): Promise<void> => {
    const fields = { name: id, spec: { nodes }, labels: { worked: "here" }, ...more };
    body(await on(dc, "PUT", `/v1/clusters/${id}`, fields, replicated), 201);
  };
  const begin = async (dc: string, id: string, type: string, more: Json = {}): Promise<string> =>
    String(body(await on(dc, "POST", `/v1/clusters/${id}/operations`, { type, ...more }, replicated), 202)["id"]);
  const start = async (dc: string, id: string, nodes: readonly string[], type = "create", more?: Json) => {
    await make(dc, id, nodes, more);
    return begin(dc, id, type);
  };
  const take = async (
    dc: string,
    workerId: string,
    max = 100,
    labels: Json = { worked: "here" },
    waitMs = 500,
  ): Promise<Task[]> =>
    body<{ tasks: Task[] }>(await on(dc, "POST", "/v1/tasks/take", { workerId, max, waitMs, labels }), 200).tasks;
  const jobOf = async (dc: string, id: string): Promise<Json> => body(await on(dc, "GET", `/v1/jobs/${id}`), 200);
  const ownerOf = async (dc: string, job: string): Promise<string> =>
    String(at(await shardMap(stack, dc), Number(/^j(\d+)-/.exec(job)?.[1])).owner);
  const finish = (dc: string, task: Task, workerId: string, headers?: Record<string, string>) =>
    on(
      dc,
      "POST",
      `/v1/tasks/${task.id}/finish`,
      { token: task.token, workerId, status: "ok", result: { [`by_${task.stage}`]: task.attempt } },
      headers,
    );
  /** Works all tasks of the survivors until the jobs have ended. */
  const workOff = async (
    dcs: readonly string[],
    workerId: string,
    jobs: readonly string[],
    seen: Task[],
    labels?: Json,
  ): Promise<void> => {
    await stack.until(
      async () => {
        for (const dc of dcs)
          for (const task of await take(dc, workerId, 100, labels)) {
            seen.push(task);
            body(await finish(dc, task, workerId), 200);
          }
        const all = await Promise.all(jobs.map((id) => jobOf(at(dcs, 0), id)));
        return all.every((job) => job["status"] === "complete");
      },
      90_000,
      "all jobs are complete",
    );
  };

  it("restart when their end was known to the lost owner alone, whose outcome is then listed as divergent", async () => {
    const [id = ""] = idsOf(await shardMap(stack, "central"), "central", "lost-end", 1);
    const job = await start("central", id, ["a"], "stop");
    const task = at(await take("central", "w1", 1), 0);
    // A worker stands still meanwhile, for longer than its lease.
    const [other = ""] = idsOf(await shardMap(stack, "east"), "west", "paused", 1);
    await start("west", other, ["a"], "stop", { labels: apart });
    const [paused] = await take("west", "w1", 1, apart);
    assert.ok(paused !== undefined);
    await allEqual(stack, "west");
    // Cut off from everybody it may still end the job locally, as long as its lease lasts.
    await stack.simulate("isolate", "central");
    const done = await finish("central", task, "w1");
    body(done, 200);
    const ended = body(await on("central", "GET", `/v1/jobs/${job}`), 200);
    assert.equal(ended["status"], "complete");
    const seen: Task[] = [];
    await workOff(["west", "east"], "w2", [job], seen);
    assert.deepEqual(
      seen.map(({ jobId, attempt, stage }) => [jobId, attempt, stage]),
      [[job, 2, "STOP"]],
    );
    const [again] = await stack.until(
      async () => {
        const tasks = await take("west", "w2", 1, apart, 5_000);
        return tasks.length > 0 && tasks;
      },
      settleMs,
      "its task is offered to another worker",
    );
    assert.deepEqual([again?.id, again?.input["try"]], [paused.id, 2]);
    problem(await finish("east", paused, "w1"), "stale_token");
    const beat = { token: paused.token, workerId: "w1" };
    problem(await on("west", "POST", `/v1/tasks/${paused.id}/heartbeat`, beat), "stale_token");
    body(await finish("east", at([again], 0) as Task, "w2"), 200);
    assert.equal((await jobOf("west", paused.jobId))["status"], "complete");
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
    // One more, which will see a second owner die.
    const [more = ""] = idsOf(await shardMap(stack, "east"), "east", "twice", 1);
    const id = await start("east", more, ["a"], "create", { labels: apart });
    const [made] = await take("east", "w1", 1, apart);
    assert.ok(made?.jobId === id);
    body(await finish("east", made, "w1"), 200);
    twice = { id, held: await take("east", "w1", 1, apart) };
    await allEqual(stack, "west");
    const underWay = held.filter((task) => placed.get(task.jobId)?.kind === 2);
    const answers = underWay.map((task) => finish("east", task, "w1").catch(() => undefined));
    await stack.simulate("crash", "east");
    const answered = new Set((await Promise.all(answers)).flatMap((answer, i) => (answer?.status === 200 ? [i] : [])));
    // Finishes of the dead attempt, late, at the survivors.
    const late = await Promise.all(
      held.map((task, i) => finish(i % 2 === 0 ? "west" : "central", task, "w1", { "hothot-timeout-ms": "25000" })),
    );
    // The worker that registered in the dead datacenter goes on in the others, without registering there.
    const seen: Task[] = [];
    await workOff(["west", "central"], "w1", jobs, seen);
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

  it("restart again when the next owner dies for good; what was scheduled there comes due elsewhere", async () => {
    const { id: job, held } = twice;
    const owner = await ownerOf("east", job);
    const [heir = "", other = ""] = stack.dcs.filter((dc) => dc !== owner);
    assert.equal((await jobOf(owner, job))["attempt"], 2);
    held.push(...(await take(owner, "w1", 1, apart, 10_000)));
    const map = await shardMap(stack, owner);
    const [scheduled = "", expiring = "", cancelled = "", late = ""] = idsOf(map, owner, "due", 4);
    for (const cluster of [scheduled, cancelled, late]) await make(owner, cluster, ["a"], { labels: apart });
    const dropped = await begin(owner, cancelled, "stop");
    body(await on(owner, "POST", `/v1/jobs/${dropped}/cancel`, undefined, replicated), 200);
    const [soon, far] = [8_000, 3_600_000].map((ms) => new Date(Date.now() + ms).toISOString());
    const [due, queued] = await Promise.all([
      begin(owner, scheduled, "stop", { notBefore: soon }),
      begin(owner, late, "stop", { notBefore: far }),
      make(owner, expiring, ["a"], { labels: apart, expiresAt: soon }),
    ]);
    await stack.simulate("crash", owner);
    const answers = await Promise.all(held.map((task) => finish(other, task, "w1", { "hothot-timeout-ms": "25000" })));
    for (const answer of answers) problem(answer, "stale_token");
    const seen: Task[] = [];
    await workOff([heir, other], "w1", [job, due], seen, apart);
    const deletion = await stack.until(
      async () => {
        await workOff([heir, other], "w1", [], seen, apart);
        const { items } = body<{ items: Json[] }>(await on(heir, "GET", `/v1/jobs?cluster=${expiring}`), 200);
        return items[0]?.["status"] === "complete" && items[0];
      },
      settleMs,
      "the cluster whose time is over is deleted",
    );
    assert.deepEqual([deletion["type"], deletion["attempt"]], ["delete", 1]);
    assert.notEqual(deletion["startedIn"], owner);
    assert.equal(body(await on(heir, "GET", `/v1/clusters/${expiring}`), 200)["status"], "terminated");
    const done = await jobOf(heir, due);
    assert.deepEqual([done["attempt"], done["startedIn"]], [1, owner]);
    assert.notEqual(done["runsIn"], owner);
    assert.equal((await jobOf(heir, job))["attempt"], 3);
    assert.deepEqual(
      seen.filter((task) => task.jobId === job).map(({ stage, attempt }) => `${stage} ${attempt}`),
      stages.slice(1).map((stage) => `${stage} 3`),
      "from its checkpoint, though two owners died",
    );
    const fences = [...held, ...seen].filter((task) => task.jobId === job).map((task) => String(task.input["fence"]));
    const epochs = [...new Set(fences)].map((fence) => Number(fence.split(".")[0]));
    assert.equal(epochs.length, 3, "one fence for each attempt");
    assert.deepEqual(
      epochs,
      [...epochs].sort((a, b) => a - b),
      "which grows",
    );
    assert.deepEqual([(await jobOf(heir, queued))["status"], (await jobOf(heir, queued))["attempt"]], ["queued", 1]);
    assert.deepEqual(
      [(await jobOf(heir, dropped))["status"], (await jobOf(heir, dropped))["attempt"]],
      ["cancelled", 1],
    );
    const { entries } = await readLog(stack, heir);
    const types = entries.filter(({ record }) => record.job?.id === job).map(({ record }) => record.type);
    assert.deepEqual(types, ["job.start", "job.checkpoint", "job.restart", "job.restart", "job.checkpoint", "job.end"]);
  });
});
