import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import { readLog } from "./log-reader.js";
import {
  allEqual,
  allServe,
  at,
  body,
  idsOf,
  placeOf,
  problem,
  send,
  settleMs,
  shardMap,
  timed,
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

interface Task {
  readonly id: string;
  readonly jobId: string;
  readonly clusterId: string;
  readonly name: string;
  readonly node: string | null;
  readonly stage: string;
  readonly attempt: number;
  readonly token: string;
  readonly input: Json;
  readonly leaseMs: number;
}

const taskFields = ["id", "jobId", "clusterId", "name", "node", "stage", "attempt", "token", "input", "leaseMs"];

describe("a worker of one's own", { timeout: 300_000 }, () => {
  let stack: TestStack;
  let map: ShardView[];
  before(async () => {
    stack = await startStack({ steady: true, worker: false, env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
    map = await shardMap(stack, "east");
    for (const id of ["w1", "w2"]) body(await on("east", "PUT", `/v1/workers/${id}`, { capacity: 100 }), 200);
    for (const dc of stack.dcs)
      await stack.until(
        async () => (await on(dc, "POST", "/v1/workers/w2/heartbeat", {})).status === 200,
        settleMs,
        `${dc} knows w2`,
      );
  });
  afterAll(() => stack?.stop());

  const on = (
    dc: string,
    method: string,
    where: string,
    data?: unknown,
    headers?: Record<string, string>,
  ): Promise<Answered> => send(stack, dc, method, where, data, headers);
  const begin = async (
    id: string,
    nodes: readonly string[],
    type = "create",
    more: Json = {},
  ): Promise<{ id: string; epoch: number }> => {
    const made = await on("east", "PUT", `/v1/clusters/${id}`, { name: id, spec: { nodes }, ...more });
    assert.ok(made.status < 300, made.text);
    return body(await on("west", "POST", `/v1/clusters/${id}/operations`, { type }), 202);
  };
  const take = async (dc: string, workerId: string, more: Json = {}): Promise<Task[]> =>
    body<{ tasks: Task[] }>(await on(dc, "POST", "/v1/tasks/take", { workerId, ...more }), 200).tasks;
  const finish = (dc: string, task: Task, more: Json = {}): Promise<Answered> =>
    on(dc, "POST", `/v1/tasks/${task.id}/finish`, { token: task.token, workerId: "w1", status: "ok", ...more });
  const beat = (dc: string, task: Task, workerId = "w1"): Promise<Answered> =>
    on(dc, "POST", `/v1/tasks/${task.id}/heartbeat`, { token: task.token, workerId });
  const tasksOf = async (job: { id: string }): Promise<Json[]> =>
    body<{ items: Json[] }>(await on("east", "GET", `/v1/jobs/${job.id}/tasks`), 200).items;
  const cancel = async (job: { id: string }): Promise<void> => {
    body(await on("east", "POST", `/v1/jobs/${job.id}/cancel`), 200);
  };

  it("registers, again without a record, and is known everywhere", async () => {
    const first = await on("central", "PUT", "/v1/workers/known", { capacity: 4, labels: { zone: "a" } });
    const registered = body(first, 200);
    assert.equal(registered["id"], "known");
    assert.equal(registered["capacity"], 4);
    assert.deepEqual(registered["labels"], { zone: "a" });
    const again = await on("west", "PUT", "/v1/workers/known", { capacity: 4, labels: { zone: "a" } });
    assert.deepEqual(body(again, 200), registered);
    assert.equal(placeOf(again).position, placeOf(first).position, "nothing new was written");
    const changed = await on("east", "PUT", "/v1/workers/known", { capacity: 5 });
    assert.equal(body(changed, 200)["capacity"], 5);
    assert.equal(placeOf(changed).position, placeOf(first).position + 1);
    for (const dc of stack.dcs) {
      await stack.until(
        async () => (await on(dc, "POST", "/v1/workers/known/heartbeat", {})).status === 200,
        settleMs,
        `${dc} knows the worker`,
      );
      problem(await on(dc, "POST", "/v1/workers/nobody/heartbeat", {}), "not_found");
      problem(await on(dc, "POST", "/v1/tasks/take", { workerId: "nobody" }), "not_found");
    }
    problem(await on("east", "PUT", "/v1/workers/known", { capacity: 0 }), "invalid_request");
    problem(await on("east", "PUT", "/v1/workers/a%20b", {}), "invalid_request");
  });

  it("waits for a task, and gets it as soon as there is one, where its shard is owned", async () => {
    const { ms, value } = await timed(() => take("west", "w1", { waitMs: 600 }));
    assert.deepEqual(value, []);
    assert.ok(ms >= 590, `${ms} ms`);
    const id = at(idsOf(map, "central", "poll", 1), 0);
    const waiting = timed(take("central", "w1", { waitMs: 20_000 }));
    const elsewhere = take("east", "w2", { waitMs: 1_500 });
    const began = performance.now();
    const job = await begin(id, ["a", "b"]);
    const { value: tasks } = await waiting;
    assert.ok(performance.now() - began < 5_000, "not at the end of its waiting");
    assert.equal(tasks.length, 1);
    const task = at(tasks, 0);
    assert.deepEqual(Object.keys(task).sort(), [...taskFields].sort());
    assert.equal(task.jobId, job.id);
    assert.match(task.id, new RegExp(`^${job.id}\\.1\\.\\d+$`));
    assert.equal(task.clusterId, id);
    assert.equal(task.name, "CREATE");
    assert.equal(task.stage, "CREATE");
    assert.ok(task.node === "a" || task.node === "b");
    assert.equal(task.attempt, 1);
    assert.equal(task.token, `${placeOf(await finish("central", task)).shard}.${job.epoch}.1`);
    assert.ok(task.leaseMs > 0);
    assert.deepEqual(await elsewhere, []);
    await cancel(job);
  });

  it("gives each task to one worker only, at most as many as asked for and as it has room for", async () => {
    const nodes = Array.from({ length: 20 }, (_, n) => `n${n}`);
    const id = at(idsOf(map, "east", "share", 1), 0);
    const job = await begin(id, nodes);
    const takes = await Promise.all(
      Array.from({ length: 12 }, (_, n) => take("east", n % 2 === 0 ? "w1" : "w2", { max: 3, waitMs: 200 })),
    );
    for (const tasks of takes) assert.ok(tasks.length <= 3);
    const taken = takes.flat();
    assert.equal(taken.length, 20);
    assert.equal(new Set(taken.map((task) => task.id)).size, 20);
    assert.deepEqual(taken.map((task) => task.node).sort(), [...nodes].sort());
    assert.ok(
      taken.every((task) => task.stage === "CREATE"),
      "a stage is a barrier",
    );
    assert.deepEqual(await take("east", "w1", { max: 5, waitMs: 100 }), []);
    await cancel(job);
    // Of a small worker, no more than it has room for; by name, only what it names.
    body(await on("east", "PUT", "/v1/workers/small", { capacity: 2 }), 200);
    const next = await begin(id, nodes);
    assert.deepEqual(await take("east", "small", { max: 10, waitMs: 100, names: ["START"] }), []);
    const few = await take("east", "small", { max: 10, waitMs: 1_000, names: ["CREATE"] });
    assert.equal(few.length, 2);
    assert.deepEqual(await take("east", "small", { max: 10, waitMs: 100 }), []);
    await cancel(next);
  });

  it("heartbeats and finishes through any datacenter; a repeated finish is answered again; any other is stale", async () => {
    const job = await begin(at(idsOf(map, "west", "finish", 1), 0), ["a", "b", "c"]);
    const [first, second, third] = await take("west", "w1", { max: 3, waitMs: 5_000 });
    assert.ok(first !== undefined && second !== undefined && third !== undefined);
    for (const dc of stack.dcs) {
      const answer = await beat(dc, first);
      const lease = body<{ leaseMs: number; stop: boolean }>(answer, 200);
      assert.deepEqual(Object.keys(lease).sort(), ["leaseMs", "stop"]);
      assert.ok(lease.leaseMs > 0);
      assert.equal(lease.stop, false);
      problem(await beat(dc, first, "w2"), "stale_token");
      problem(await beat(dc, { ...first, token: first.token.replace(/\d+$/, "2") }), "stale_token");
      problem(await beat(dc, { ...first, token: "nonsense" }), "stale_token");
      problem(await finish(dc, { ...first, token: `${first.token}0` }), "stale_token");
      problem(await finish(dc, first, { workerId: "w2" }), "stale_token");
    }
    assert.deepEqual(
      (await tasksOf(job)).map((task) => task["status"]),
      ["taken", "taken", "taken"],
      "nothing changed",
    );
    const done = { result: { ip: "10.0.0.1" }, stdout: "made\n", stderr: "warned\n" };
    const answers: Answered[] = [];
    for (const dc of stack.dcs) answers.push(await finish(dc, first, done));
    for (const answer of answers) {
      const lease = body<Json>(answer, 200);
      assert.deepEqual(Object.keys(lease).sort(), ["leaseMs", "stop"]);
      assert.equal(answer.headers.get("hothot-served-by"), "west/n1");
    }
    problem(await finish("east", first, { status: "failed" }), "stale_token");
    const shown = (await tasksOf(job)).find((task) => task["id"] === first.id);
    assert.equal(shown?.["status"], "ok");
    assert.equal(shown?.["stdout"], "made\n");
    assert.equal(shown?.["stderr"], "warned\n");
    assert.deepEqual(shown?.["result"], { ip: "10.0.0.1" });
    // A failed try is offered again, until its tries are used up; then the job has failed, and its other tasks stop.
    let failing = second;
    for (let tries = 1; tries <= 3; tries++) {
      body(await finish("central", failing, { status: "failed", stderr: `try ${tries}` }), 200);
      if (tries < 3) {
        const again = await take("west", "w1", { max: 1, waitMs: 10_000 });
        failing = at(again, 0);
        assert.equal(failing.id, second.id);
        assert.equal(failing.token, second.token);
      }
    }
    const failed = body(await on("west", "GET", `/v1/jobs/${job.id}`), 200);
    assert.equal(failed["status"], "failed");
    assert.equal(body(await on("west", "GET", `/v1/clusters/${third.clusterId}`), 200)["status"], "incomplete");
    const stopped = await beat("east", third);
    assert.equal(body<{ stop: boolean }>(stopped, 200).stop, true);
    problem(await finish("east", third), "stale_token");
    const stale = (await on("west", "GET", "/metrics")).text;
    assert.match(stale, /^hothot_stale_finishes_total(\{[^}]*\})? [1-9]/m);
  });

  it("stops offering tasks of a paused job, and goes on when it is resumed", async () => {
    const job = await begin(at(idsOf(map, "central", "pause", 1), 0), ["a", "b"], "restart");
    const [first] = await take("central", "w1", { max: 1, waitMs: 5_000 });
    assert.ok(first !== undefined);
    assert.equal(body(await on("east", "POST", `/v1/jobs/${job.id}/pause`), 200)["status"], "paused");
    assert.deepEqual(await take("central", "w1", { max: 5, waitMs: 300 }), []);
    body(await finish("west", first), 200);
    assert.equal(body(await on("west", "POST", `/v1/jobs/${job.id}/resume`), 200)["status"], "running");
    for (const stage of ["STOP", "START", "START"]) {
      const [task] = await take("central", "w1", { max: 1, waitMs: 10_000 });
      assert.equal(task?.stage, stage);
      body(await finish("east", task), 200);
    }
    assert.equal(body(await on("central", "GET", `/v1/jobs/${job.id}`), 200)["status"], "complete");
  });

  it("is paused, resumed, cancelled and tried again once for a key, wherever and whenever the request comes again", async () => {
    const job = await begin(at(idsOf(map, "central", "keyed", 1), 0), ["a"], "restart");
    const ask = (dc: string, verb: string): Promise<Answered> =>
      on(dc, "POST", `/v1/jobs/${job.id}/${verb}`, undefined, { "idempotency-key": `${verb}-once` });
    const firsts = new Map<string, Answered>();
    for (const [verb, status] of [
      ["pause", "paused"],
      ["resume", "running"],
      ["cancel", "cancelled"],
      ["retry", "running"],
    ] as const) {
      const first = await ask("east", verb);
      assert.ok(first.status < 300, first.text);
      assert.equal((JSON.parse(first.text) as Json)["status"], status);
      firsts.set(verb, first);
      // Those before, too: what came after them is not undone.
      for (const [earlier, answered] of firsts)
        for (const dc of ["west", "central"]) {
          const again = await ask(dc, earlier);
          assert.deepEqual([again.status, again.text], [answered.status, answered.text], earlier);
          assert.equal(again.headers.get("idempotency-replayed"), "true");
        }
      const now = await on("west", "GET", `/v1/jobs/${job.id}`, undefined, { "hothot-consistency": "owner" });
      assert.equal(body(now, 200)["status"], status);
      problem(
        await on("west", "POST", `/v1/jobs/${job.id}/${verb === "cancel" ? "pause" : "cancel"}`, undefined, {
          "idempotency-key": `${verb}-once`,
        }),
        "idempotency_key_reused",
      );
    }
    await cancel(job);
  });

  it("is refused with stale_token after a takeover, in every datacenter, and the next attempt goes on from the checkpoint", async () => {
    const [id = "", fresh = ""] = idsOf(map, "east", "over", 2);
    const job = await begin(id, ["a", "b"]);
    for (const task of await take("east", "w1", { max: 2, waitMs: 5_000 }))
      body(await finish("east", task, { result: { made: `machine of ${task.node}` } }), 200);
    const held = await take("east", "w1", { max: 2, waitMs: 5_000 });
    assert.deepEqual(
      held.map((task) => task.stage),
      ["CONFIRM", "CONFIRM"],
    );
    const other = await begin(fresh, ["a"]);
    const [early] = await take("east", "w2", { max: 1, waitMs: 5_000 });
    assert.equal(early?.jobId, other.id);
    await allEqual(stack, "west");
    await stack.simulate("crash", "east");

    // Sent while nobody owns the shard: it waits, and is then refused by the new owner.
    const long = { "hothot-timeout-ms": "25000" };
    const [one, two] = [at(held, 0), at(held, 1)];
    const data = (task: Task): Json => ({ token: task.token, workerId: "w1", status: "ok", result: { late: true } });
    const answers = await Promise.all([
      on("central", "POST", `/v1/tasks/${one.id}/finish`, data(one), long),
      on("west", "POST", `/v1/tasks/${two.id}/finish`, data(two), long),
      on("west", "POST", `/v1/tasks/${two.id}/heartbeat`, { token: two.token, workerId: "w1" }, long),
    ]);
    for (const answer of answers) problem(answer, "stale_token");

    const now = await shardMap(stack, "west");
    const shard = Number(/^j(\d+)-/.exec(job.id)?.[1]);
    const owner = String(at(now, shard).owner);
    assert.ok(owner === "central" || owner === "west");
    for (const dc of ["central", "west"]) body(await on(dc, "POST", "/v1/workers/w1/heartbeat", {}), 200);
    const restarted = await stack.until(
      async () => {
        const found = body(await on(owner, "GET", `/v1/jobs/${job.id}`), 200);
        return found["attempt"] === 2 && found;
      },
      settleMs,
      "the job is in its next attempt",
    );
    assert.equal(restarted["status"], "running");
    assert.equal(restarted["startedIn"], "east");
    assert.equal(restarted["runsIn"], owner);
    assert.equal(restarted["epoch"], at(now, shard).epoch);

    const stages: string[] = [];
    const mine: Task[] = [];
    await stack.until(
      async () => {
        for (const dc of ["central", "west"])
          for (const task of await take(dc, "w1", { max: 10, waitMs: 300 })) {
            assert.equal(task.attempt, 2);
            if (task.jobId === job.id) {
              assert.equal(task.token, `${shard}.${at(now, shard).epoch}.2`);
              stages.push(task.stage);
              mine.push(task);
              const results = task.input["results"] as Record<string, Json>;
              assert.equal(results[task.node ?? ""]?.["made"], `machine of ${task.node}`, "what the checkpoint holds");
              // The old token does nothing to the new attempt's task.
              problem(await finish(dc, { ...task, token: one.token }), "stale_token");
            }
            body(await finish(dc === "west" ? "central" : "west", task, { result: { stage: task.stage } }), 200);
          }
        const ended = await Promise.all(
          [job, other].map(async ({ id: each }) => body(await on("west", "GET", `/v1/jobs/${each}`), 200)),
        );
        return ended.every((each) => each["status"] === "complete");
      },
      settleMs,
      "both jobs are complete",
    );
    assert.deepEqual(
      stages,
      ["CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"].flatMap((stage) => [stage, stage]),
    );
    problem(await finish("central", one), "stale_token");

    await stack.simulate("restart", "east");
    await allServe(stack);
    for (const dc of stack.dcs) {
      problem(await finish(dc, one), "stale_token");
      problem(await beat(dc, two), "stale_token");
      problem(await finish(dc, early, { workerId: "w2" }), "stale_token");
      // The last finish of the attempt that counted is answered again.
      body(await finish(dc, at(mine, -1)), 200);
      const seen = body(await on(dc, "GET", `/v1/clusters/${id}`), 200);
      assert.equal(seen["status"], "active");
      assert.ok(!JSON.stringify(seen).includes("late"), "the late finish left nothing");
    }
    await allEqual(stack, "east");
    const { entries } = await readLog(stack, "east");
    assert.deepEqual(
      entries.filter((entry) => entry.record.job?.id === job.id).map((entry) => entry.record.type),
      ["job.start", "job.checkpoint", "job.restart", "job.checkpoint", "job.end"],
    );
    assert.deepEqual(
      entries.filter((entry) => entry.record.job?.id === other.id).map((entry) => entry.record.type),
      ["job.start", "job.restart", "job.checkpoint", "job.checkpoint", "job.end"],
    );
  });
});
