import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { after as afterAll, before, describe, it } from "node:test";
import { LocalStack } from "../../infra/local/stack.js";
import { builtInCatalog } from "../../services/jobs/catalog-built-in.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { readLog } from "./log-reader.js";
import {
  after,
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
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

interface Job {
  readonly id: string;
  readonly clusterId: string;
  readonly type: string;
  readonly status: string;
  readonly attempt: number;
  readonly epoch: number;
  readonly stage: string | null;
  readonly stages: readonly string[];
  readonly startedIn: string;
  readonly runsIn: string;
  readonly createdAt: string;
  readonly finishedAt: string | null;
  readonly error: string | null;
  readonly input: Json;
}

const jobFields = [
  "id",
  "clusterId",
  "type",
  "input",
  "status",
  "attempt",
  "epoch",
  "stage",
  "stages",
  "startedIn",
  "runsIn",
  "createdAt",
  "finishedAt",
  "error",
];
const createStages = ["CREATE", "CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"];
const over = new Set(["complete", "failed", "cancelled"]);

describe("jobs with the built-in worker", { timeout: 300_000 }, () => {
  let stack: TestStack;
  let map: ShardView[];
  before(async () => {
    stack = await startStack({ steady: true, env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
    map = await shardMap(stack, "east");
  });
  afterAll(() => stack?.stop());

  const on = (
    dc: string,
    method: string,
    where: string,
    data?: unknown,
    headers?: Record<string, string>,
  ): Promise<Answered> => send(stack, dc, method, where, data, headers);
  const make = async (dc: string, id: string, nodes: readonly unknown[] = ["n1", "n2"]): Promise<void> => {
    body(await on(dc, "PUT", `/v1/clusters/${id}`, { name: id, spec: { nodes } }), 201);
  };
  const start = (dc: string, id: string, type: string, more: Json = {}): Promise<Answered> =>
    on(dc, "POST", `/v1/clusters/${id}/operations`, { type, ...more });
  const jobOf = async (dc: string, id: string): Promise<Job> => body<Job>(await on(dc, "GET", `/v1/jobs/${id}`), 200);
  const ended = (dc: string, id: string, ms = settleMs): Promise<Job> =>
    stack.until(
      async () => {
        const job = await jobOf(dc, id);
        return over.has(job.status) && job;
      },
      ms,
      `job ${id} ends, as ${dc} sees it`,
    );
  const clusterOf = async (dc: string, id: string): Promise<Json> =>
    body(await on(dc, "GET", `/v1/clusters/${id}`), 200);

  it("runs a create through its stages, in the owner's datacenter, to `active`", async () => {
    for (const owner of stack.dcs) {
      const id = at(idsOf(map, owner, "create", 1), 0);
      await make("east", id);
      const started = await start("west", id, "create", { input: { why: "test" } });
      const first = body<Job>(started, 202);
      for (const name of jobFields) assert.ok(name in first, name);
      assert.match(started.headers.get("location") ?? "", new RegExp(`^/v1/jobs/${first.id}$`));
      assert.equal(started.headers.get("hothot-owner"), owner);
      assert.equal(started.headers.get("hothot-served-by"), `${owner}/n1`);
      assert.equal(placeOf(started).shard, at(map, placeOf(started).shard).shard);
      assert.deepEqual(first.stages, createStages);
      assert.deepEqual(first.input, { why: "test" });
      assert.equal(first.clusterId, id);
      assert.equal(first.type, "create");
      assert.equal(first.status, "running");
      assert.equal(first.attempt, 1);
      assert.equal(first.epoch, at(map, placeOf(started).shard).epoch);
      assert.equal(first.startedIn, owner);
      assert.equal(first.runsIn, owner);
      assert.equal(first.finishedAt, null);
      assert.equal(first.error, null);
      const pending = body(await on("east", "GET", `/v1/clusters/${id}`, undefined, after(started)), 200);
      assert.ok(pending["status"] === "pending" || pending["status"] === "active");

      const seen: (string | null)[] = [];
      await stack.until(
        async () => {
          const job = await jobOf(owner, first.id);
          if (seen.at(-1) !== job.stage) seen.push(job.stage);
          return over.has(job.status);
        },
        settleMs,
        "the job ends",
      );
      const stages = seen.filter((stage) => stage !== null);
      assert.deepEqual(
        stages,
        createStages.filter((stage) => stages.includes(stage)),
        "stages in their order",
      );
      for (const dc of stack.dcs) {
        const job = await ended(dc, first.id);
        assert.equal(job.status, "complete");
        assert.equal(job.attempt, 1);
        assert.equal(job.stage, null);
        assert.ok(!Number.isNaN(Date.parse(job.finishedAt ?? "")));
        const cluster = await clusterOf(dc, id);
        assert.equal(cluster["status"], "active");
        assert.equal(cluster["version"], 3, "made, started, ended");
        assert.match(JSON.stringify(cluster["state"]), /providerid/, "what the tasks gave");
      }
      const tasks = body<{ items: Json[] }>(await on("central", "GET", `/v1/jobs/${first.id}/tasks`), 200).items;
      assert.deepEqual(
        tasks.map((task) => [task["name"], task["node"], task["status"]]),
        createStages.flatMap((stage) => ["n1", "n2"].map((node) => [stage, node, "ok"])),
      );
      for (const task of tasks) {
        assert.match(String(task["id"]), new RegExp(`^${first.id}\\.1\\.\\d+$`));
        assert.match(String(task["stdout"]), /simulated/);
        assert.ok("stderr" in task);
      }
      // A stage is a barrier: none of its tasks ended before all of the one before it had.
      for (let index = 2; index < tasks.length; index += 2)
        assert.ok(String(at(tasks, index)["finishedAt"]) >= String(at(tasks, index - 1)["finishedAt"]), "barrier");
    }
  });

  it("keeps one job of a cluster at a time, and the transitions of the contract", async () => {
    const id = at(idsOf(map, "central", "one", 1), 0);
    await make("east", id);
    const later = new Date(Date.now() + 3_600_000).toISOString();
    const queued = body<Job>(await start("east", id, "create", { notBefore: later }), 202);
    assert.equal(queued.status, "queued");
    for (const dc of stack.dcs) {
      problem(await start(dc, id, "create"), "job_in_progress");
      problem(await start(dc, id, "delete"), "job_in_progress");
      problem(await on(dc, "DELETE", `/v1/clusters/${id}`), "job_in_progress");
    }
    problem(await on("west", "POST", `/v1/jobs/${queued.id}/pause`), "invalid_transition");
    problem(await on("west", "POST", `/v1/jobs/${queued.id}/resume`), "invalid_transition");
    problem(await on("west", "POST", `/v1/jobs/${queued.id}/retry`), "invalid_transition");
    const cancelled = body<Job>(await on("west", "POST", `/v1/jobs/${queued.id}/cancel`), 200);
    assert.equal(cancelled.status, "cancelled");
    problem(await on("east", "POST", `/v1/jobs/${queued.id}/cancel`), "invalid_transition");

    const gone = body<Job>(await start("east", id, "delete"), 202);
    assert.deepEqual(gone.stages, ["DELETE"]);
    assert.equal((await ended("east", gone.id)).status, "complete");
    await stack.until(async () => (await clusterOf("west", id))["status"] === "terminated", settleMs, "terminated");
    for (const dc of stack.dcs)
      for (const type of ["configure", "start", "stop", "restart"])
        problem(await start(dc, id, type), "invalid_transition");
    const again = body<Job>(await start("west", id, "create"), 202);
    assert.equal((await ended("central", again.id)).status, "complete");
    assert.equal((await clusterOf("central", id))["status"], "active");
    for (const type of ["configure", "start", "stop", "restart"]) {
      const job = body<Job>(await start("east", id, type), 202);
      assert.equal((await ended("central", job.id)).status, "complete", type);
      assert.equal((await clusterOf("central", id))["status"], "active");
    }
    const list = body<{ items: Job[] }>(
      await on("central", "GET", `/v1/jobs?cluster=${id}&status=complete`),
      200,
    ).items;
    assert.deepEqual(list.map((job) => job.type).sort(), ["configure", "create", "delete", "restart", "start", "stop"]);
    const missing = problem(await start("east", id, "dance"), "invalid_request");
    assert.equal(at(missing["errors"] as Json[], 0)["path"], "/type");
  });

  it("starts a job once for a key, and once for many that come together", async () => {
    const id = at(idsOf(map, "west", "key", 1), 0);
    await make("west", id);
    const keyed = await Promise.all(
      stack.dcs.map((dc) =>
        on(dc, "POST", `/v1/clusters/${id}/operations`, { type: "create" }, { "idempotency-key": "job-key" }),
      ),
    );
    assert.equal(new Set(keyed.map((answer) => answer.text)).size, 1);
    for (const answer of keyed) assert.equal(answer.status, 202, answer.text);
    const [other = ""] = idsOf(map, "east", "race", 1);
    await make("east", other);
    const race = await Promise.all(Array.from({ length: 12 }, (_, n) => start(at(stack.dcs, n % 3), other, "create")));
    const won = race.filter((answer) => answer.status === 202);
    assert.equal(won.length, 1);
    for (const answer of race) if (answer.status !== 202) problem(answer, "job_in_progress");
  });

  it("deletes a cluster whose time is over", async () => {
    const id = at(idsOf(map, "west", "expires", 1), 0);
    const expiresAt = new Date(Date.now() + 1_500).toISOString();
    body(await on("east", "PUT", `/v1/clusters/${id}`, { name: id, spec: {}, expiresAt }), 201);
    for (const dc of stack.dcs)
      await stack.until(
        async () => (await clusterOf(dc, id))["status"] === "terminated",
        settleMs,
        `${dc}: terminated`,
      );
    const { items } = body<{ items: Job[] }>(await on("west", "GET", `/v1/jobs?cluster=${id}`), 200);
    assert.deepEqual(
      items.map((job) => [job.type, job.status]),
      [["delete", "complete"]],
    );
  });

  it("puts a start, checkpoints and an end of each job into the log, and nothing of its tasks", async () => {
    const ids = stack.dcs.flatMap((dc) => idsOf(map, dc, "busy", 8));
    await Promise.all(ids.map((id, n) => make(at(stack.dcs, n % 3), id, ["a", "b", "c"])));
    const jobs = await Promise.all(
      ids.map(async (id, n) => body<Job>(await start(at(stack.dcs, n % 3), id, "create"), 202)),
    );
    for (const job of jobs) assert.equal((await ended("west", job.id, 60_000)).status, "complete");
    await allEqual(stack, "west");
    const { entries, bytes } = await readLog(stack, "west");
    for (const job of jobs) {
      const mine = entries.filter((entry) => entry.record.job?.id === job.id);
      assert.deepEqual(
        mine.map((entry) => entry.record.type),
        ["job.start", "job.checkpoint", "job.checkpoint", "job.end"],
      );
      assert.deepEqual(
        mine.map((entry) => entry.record.job?.stage),
        [null, null, null, null],
        "no stage under way",
      );
      assert.deepEqual(
        mine.map((entry) => entry.record.job?.checkpoint?.stages ?? null),
        [null, 1, 4, null],
      );
    }
    const kinds = new Set(entries.map((entry) => entry.record.type));
    const known = [
      "cluster.put",
      "cluster.delete",
      "job.start",
      "job.restart",
      "job.checkpoint",
      "job.change",
      "job.end",
      "worker.put",
      "worker.delete",
      "digest",
      "audit",
    ];
    assert.deepEqual(
      [...kinds].filter((kind) => !known.includes(kind)),
      [],
    );
    // Neither tasks' ids nor their output anywhere in any record.
    const text = JSON.stringify(entries.map((entry) => entry.record));
    for (const job of jobs) assert.ok(!text.includes(`${job.id}.1.`), "a task's id");
    for (const word of ["stdout", "stderr", "leaseUntil", "simulated, fence", "workerId"])
      assert.ok(!text.includes(word), word);
    assert.ok(bytes > 0);
  });

  it("restarts jobs of a killed datacenter as the next attempt where their shards went, and finishes them", async () => {
    const ids = idsOf(map, "central", "killed", 6);
    // Many nodes, so that none is done before the kill.
    const nodes = Array.from({ length: 20 }, (_, n) => `n${n}`);
    await Promise.all(ids.map((id) => make("central", id, nodes)));
    const jobs = await Promise.all(
      ids.map(async (id) =>
        body<Job>(
          await on(
            "central",
            "POST",
            `/v1/clusters/${id}/operations`,
            { type: "create" },
            { "hothot-durability": "replicated" },
          ),
          202,
        ),
      ),
    );
    await stack.simulate("crash", "central");
    for (const job of jobs) {
      const last = await ended("east", job.id, 90_000);
      assert.equal(last.status, "complete", last.error ?? "");
      assert.equal(last.attempt, 2);
      assert.equal(last.startedIn, "central");
      const owner = at(await shardMap(stack, "east"), Number(/^j(\d+)-/.exec(job.id)?.[1])).owner;
      assert.equal(last.runsIn, owner);
      assert.notEqual(owner, "central");
      assert.ok(last.epoch > job.epoch);
      const tasks = body<{ items: Json[] }>(await on("west", "GET", `/v1/jobs/${job.id}/tasks`), 200).items;
      assert.ok(tasks.length > 0 && tasks.every((task) => task["attempt"] === 2 && task["status"] === "ok"));
    }
    await stack.simulate("restart", "central");
    await allServe(stack);
    await allEqual(stack, "central");
    for (const job of jobs) assert.equal((await ended("central", job.id)).attempt, 2);
    const { entries } = await readLog(stack, "central");
    for (const job of jobs) {
      const types = entries.filter((entry) => entry.record.job?.id === job.id).map((entry) => entry.record.type);
      assert.equal(types.filter((type) => type === "job.start").length, 1);
      assert.equal(types.filter((type) => type === "job.restart").length, 1);
      assert.equal(types.filter((type) => type === "job.end").length, 1);
      assert.equal(types.at(-1), "job.end");
    }
    const metrics = (await on("east", "GET", "/metrics")).text + (await on("west", "GET", "/metrics")).text;
    const counted = [...metrics.matchAll(/^hothot_jobs_restarted_total(?:\{[^}]*\})? (\d+)/gm)].map((hit) =>
      Number(hit[1]),
    );
    assert.equal(
      counted.reduce((sum, count) => sum + count, 0),
      jobs.length,
    );
  });

  it("leaves a cluster `incomplete` or `inconsistent` when its handlers fail", async () => {
    const types = [
      ["create", "incomplete"],
      ["delete", "incomplete"],
      ["configure", "inconsistent"],
      ["start", "inconsistent"],
      ["stop", "inconsistent"],
      ["restart", "inconsistent"],
    ] as const;
    const ids = types.map(([type]) => `fails-${type}`);
    await Promise.all(ids.map((id) => make("east", id)));
    await stack.stack.down();
    const catalog = path.join(stack.dir, "catalog.json");
    writeFileSync(catalog, JSON.stringify(builtInCatalog));
    await LocalStack.up(stack.dir, {
      env: {
        HOTHOT_SIMULATED_FAILURE_PERCENT: "100",
        HOTHOT_AUTOMATIC_FAILBACK: "false",
        HOTHOT_CATALOG: catalog,
      },
    });
    await allServe(stack);
    const jobs = await Promise.all(
      types.map(async ([type], n) => body<Job>(await start(at(stack.dcs, n % 3), at(ids, n), type), 202)),
    );
    for (const [n, [type, status]] of types.entries()) {
      const job = await ended("west", at(jobs, n).id);
      assert.equal(job.status, "failed", type);
      assert.ok((job.error ?? "") !== "");
      assert.equal(job.attempt, 1);
      for (const dc of stack.dcs)
        await stack.until(
          async () => (await clusterOf(dc, at(ids, n)))["status"] === status,
          settleMs,
          `${type}: ${status}`,
        );
    }
    // From every status but `terminated` every operation starts.
    const again = body<Job>(await start("central", at(ids, 0), "configure"), 202);
    assert.equal((await ended("east", again.id)).status, "failed");
    assert.equal((await clusterOf("east", at(ids, 0)))["status"], "inconsistent");
    const retried = await on("east", "POST", `/v1/jobs/${again.id}/retry`);
    assert.ok(retried.status < 300, retried.text);
    assert.equal((JSON.parse(retried.text) as Job).attempt, 2);
    assert.equal((await ended("east", again.id)).status, "failed");

    // The catalog changes while the processes run.
    const reload = (operations: object): void => {
      writeFileSync(catalog, JSON.stringify({ operations }));
      for (const dc of stack.dcs) for (const pid of stack.pids(dc).node) process.kill(pid, "SIGHUP");
    };
    problem(await start("east", at(ids, 2), "dance"), "invalid_request");
    reload({ ...builtInCatalog.operations, dance: { stages: [{ name: "STEP", retries: 1 }] } });
    const dance = async (id: string): Promise<Job> => body<Job>(await start("east", id, "dance"), 202);
    const danced = await stack.until(() => dance(at(ids, 2)), settleMs, "the new operation is known");
    assert.deepEqual(danced.stages, ["STEP"]);
    reload({ dance: { stages: [] } });
    for (const dc of stack.dcs)
      await stack.until(
        async () => /^hothot_catalog_faults_total [1-9]/m.test((await on(dc, "GET", "/metrics")).text),
        settleMs,
        `${dc} has seen the faulty catalog`,
      );
    assert.match(stack.logs("east"), /the old catalog stays in use/);
    assert.match(stack.logs("east"), /must have at least one stage/);
    assert.equal((await dance(at(ids, 3))).type, "dance");
    await allEqual(stack, "east");
  });
});
