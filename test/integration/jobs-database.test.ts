import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import { Database } from "../../infra/postgres/database.js";
import { systemRandom } from "../../infra/random.js";
import { LoadWriter } from "../../replication/load-writer.js";
import { PostgresOwnerStore } from "../../replication/owner-store.js";
import { Writer } from "../../replication/writer.js";
import { epoch, shardOf, type ShardId } from "../../shards/ids.js";
import { simulatedHandler } from "../../services/jobs/builtin-worker.js";
import { Catalog } from "../../services/jobs/catalog.js";
import { Dispatcher } from "../../services/jobs/dispatcher.js";
import { PostgresJobSource } from "../../services/jobs/job-source.js";
import {
  defaultJobSettings,
  JobEvents,
  JobOperations,
  putWorker,
  TaskOperations,
} from "../../services/jobs/operations.js";
import { TaskRetention } from "../../services/jobs/task-retention.js";
import { until } from "../../infra/local/wait.js";
import { freshDatabase, startPostgres, type TestPostgres } from "../harness/servers.js";

const shards = 8;
const all = Array.from({ length: shards }, (_, shard) => shard as ShardId);
const never = new AbortController().signal;
const local = () => ({ durability: "local", deadline: systemTime.monotonic() + 10_000 }) as const;
let server: TestPostgres;

before(async () => {
  server = await startPostgres();
});
after(() => server.stop());

/** Jobs of one datacenter that owns every shard, on a real database. */
async function datacenter() {
  const options = { url: await freshDatabase(server), statementTimeoutMs: 5_000, log: silentLogger };
  const database = new Database({ ...options, connections: 6, name: "test", pipeline: true });
  const unpiped = new Database({ ...options, connections: 2, name: "test loads" });
  await database.migrate();
  for (const shard of all)
    await database.pool.query(
      "INSERT INTO shard_head (shard, partition, owner, epoch, state, tenure) VALUES ($1, 0, 'east', 1, 'owned', 1)",
      [shard],
    );
  let current = epoch(1);
  const writer = new Writer({
    store: new PostgresOwnerStore(database),
    gate: { enter: () => current, mayAcknowledge: () => true },
    events: { uncertain: () => undefined, committed: () => {}, published: async () => {} },
    site: "east",
    time: systemTime,
    random: systemRandom,
    log: silentLogger,
  });
  const events = new JobEvents();
  const context = { catalog: () => Catalog.builtIn(), events, settings: { ...defaultJobSettings, leaseMs: 2_000 } };
  const jobs = new JobOperations(context);
  const tasks = new TaskOperations(context);
  const source = new PostgresJobSource(database.db);
  const dispatcher = new Dispatcher({
    source,
    writer,
    jobs,
    tasks,
    events,
    time: systemTime,
    log: silentLogger,
    scanMs: 100,
  });
  await dispatcher.start();
  for (const shard of all) dispatcher.onOwned(shard, epoch(1), epoch(1));
  await writer.write(
    putWorker({ tenant: "", id: "w1", shard: shardOf("w1", shards), capacity: 50, labels: { a: "b" } }),
    local(),
  );
  const cluster = async (id: string, more: Record<string, unknown> = {}): Promise<void> => {
    const shard = shardOf(id, shards);
    const now = new Date(systemTime.wall()).toISOString();
    await writer.write(
      {
        shard,
        needs: {},
        decide: (work) => {
          work.record({
            type: "cluster.put",
            cluster: {
              tenant: "",
              id,
              shard,
              status: "active",
              name: id,
              spec: { nodes: ["n1", "n2"] },
              state: {},
              labels: { env: "test" },
              expiresAt: null,
              version: 1,
              createdAt: now,
              updatedAt: now,
              deleted: false,
              ...more,
            },
          });
          return { status: 201, body: null };
        },
      },
      local(),
    );
  };
  const start = async (clusterId: string, type: string, notBefore: string | null = null): Promise<string> => {
    const request = { tenant: "", clusterId, shard: shardOf(clusterId, shards), type, input: {}, notBefore };
    return ((await writer.write(jobs.start(request), local())).outcome.body as { id: string }).id;
  };
  const row = async (id: string) =>
    database.db.selectFrom("jobs").selectAll().where("id", "=", id).executeTakeFirstOrThrow();
  /** Takes and finishes until `ended` says so. */
  const work = async (done: () => Promise<boolean>): Promise<void> => {
    const handler = simulatedHandler({ taskMs: 0, failurePercent: 0, time: systemTime });
    const end = systemTime.monotonic() + 20_000;
    while (!(await done())) {
      assert(systemTime.monotonic() < end, "the jobs did not end within 20 s");
      const taken = await dispatcher.take({ tenant: "", workerId: "w1", waitMs: 50, max: 50 }, never);
      await Promise.all(
        taken.map(async (task) => {
          const given = await handler(task, { signal: new AbortController().signal, fence: "" });
          const finish = {
            tenant: "",
            taskId: task.id,
            token: task.token,
            workerId: "w1",
            status: "ok",
            result: given?.result ?? {},
            stdout: given?.stdout ?? "",
          } as const;
          await writer.write(tasks.finish(finish), local());
        }),
      );
    }
  };
  const takeover = async (): Promise<void> => {
    current = epoch(current + 1);
    await database.pool.query("UPDATE shard_head SET epoch = $1, tenure = $1", [current]);
    await database.pool.query("DELETE FROM tasks");
    for (const shard of all) dispatcher.onOwned(shard, current, current);
  };
  const close = async (): Promise<void> => {
    await dispatcher.stop();
    await unpiped.close();
    await database.close();
  };
  return { database, unpiped, dispatcher, writer, jobs, tasks, source, cluster, start, row, work, takeover, close };
}

test("jobs run to their end on a real database, through a takeover, with the records that they should have", async () => {
  const dc = await datacenter();
  try {
    const ids: string[] = [];
    for (let i = 0; i < 20; i++) await dc.cluster(`c${i}`);
    for (let i = 0; i < 20; i++) ids.push(await dc.start(`c${i}`, "create"));
    const complete = async (): Promise<number> =>
      (await Promise.all(ids.map((id) => dc.row(id)))).filter((job) => job.status === "complete").length;
    let rounds = 0;
    await dc.work(async () => ++rounds > 4);
    assert.equal(await complete(), 0);
    await dc.takeover();
    await dc.work(async () => (await complete()) === ids.length);
    for (const id of ids) {
      const job = await dc.row(id);
      assert.deepEqual([job.attempt, job.epoch, job.stage, job.checkpoint], [2, 2, null, null]);
    }
    const clusters = await dc.database.db.selectFrom("clusters").select(["status", "version", "state"]).execute();
    for (const cluster of clusters) {
      assert.deepEqual([cluster.status, cluster.version], ["active", 3]);
      assert.match(JSON.stringify(cluster.state), /"n2":.*access_v4/);
    }
    const listed = await dc.writer.write(dc.tasks.list("", ids[0] ?? ""), local());
    const { items } = listed.outcome.body as { items: { id: string; status: string; stdout: string }[] };
    assert(items.length > 0 && items.every((task) => task.status === "ok" && task.stdout.includes("simulated")));
  } finally {
    await dc.close();
  }
});

test("what the database is asked for is what it answers: leases, schedules, expiries, workers", async () => {
  const dc = await datacenter();
  try {
    const soon = new Date(systemTime.wall() + 400).toISOString();
    await dc.cluster("due");
    await dc.cluster("over", { expiresAt: soon });
    await dc.cluster("later", { expiresAt: new Date(systemTime.wall() + 3_600_000).toISOString() });
    await dc.cluster("silent");
    const due = await dc.start("due", "stop", soon);
    const silent = await dc.start("silent", "stop");
    const taken = await dc.dispatcher.take({ tenant: "", workerId: "w1", waitMs: 1_000, max: 1 }, never);
    assert.equal(taken[0]?.jobId, silent);
    const worker = await dc.source.worker({ tenant: "", id: "w1" }, all);
    assert.deepEqual(worker, { capacity: 50, labels: { a: "b" }, held: 1 });
    assert.equal((await dc.source.worker({ tenant: "", id: "w1" }, []))?.held, 0);
    assert.equal(await dc.source.worker({ tenant: "t", id: "w1" }, all), undefined);
    const available = await dc.source.availableTasks(
      all.map((shard) => ({ shard, tenure: 1 })),
      null,
      10,
    );
    assert.deepEqual(
      available.map((task) => [task.jobId, task.labels, task.notBefore]),
      [[silent, { env: "test" }, 0]],
    );
    assert.deepEqual(
      await dc.source.availableTasks(
        all.map((shard) => ({ shard, tenure: 2 })),
        null,
        10,
      ),
      [],
    );
    assert.deepEqual(await dc.source.voidJobs([], null, 10), []);
    const lost = await dc.source.voidJobs(
      all.map((shard) => ({ shard, tenure: 2 })),
      null,
      10,
    );
    assert.deepEqual(
      lost.map(({ id }) => id),
      [silent],
    );
    // The silent worker's task, the scheduled job and the delete of the expired cluster come by themselves.
    await dc.work(async () => {
      const rows = await dc.database.db.selectFrom("jobs").select(["clusterId", "type", "status"]).execute();
      return rows.length === 3 && rows.every((job) => job.status === "complete");
    });
    assert.equal((await dc.row(due)).status, "complete");
    const statuses = await dc.database.db.selectFrom("clusters").select(["id", "status"]).orderBy("id").execute();
    assert.deepEqual(
      statuses.map(({ id, status }) => `${id}:${status}`),
      ["due:active", "later:active", "over:terminated", "silent:active"],
    );
  } finally {
    await dc.close();
  }
});

test("a value that the database refuses fails alone, and says so; what was to be committed with it is", async () => {
  const dc = await datacenter();
  const { pool } = dc.database;
  // As no timestamp of PostgreSQL can be.
  const odd = "+010000-01-01T00:59:59.000Z";
  const outcome = async (write: Promise<unknown>): Promise<string> =>
    write.then(
      () => "ok",
      (error: unknown) => (error instanceof Problem ? error.code : String(error)),
    );
  try {
    const ids = Array.from({ length: 40 }, (_, i) => `c${i}`);
    const outcomes = await Promise.all(
      ids.map((id, i) => outcome(dc.cluster(id, i === 13 || i === 14 ? { expiresAt: odd } : {}))),
    );
    assert.deepEqual(
      outcomes,
      ids.map((_, i) => (i === 13 || i === 14 ? "internal" : "ok")),
    );
    const { rows } = await pool.query<{ clusters: number; numbered: number; records: number }>(
      `SELECT (SELECT count(*)::int FROM clusters) AS clusters, (SELECT count(*)::int FROM outbox) AS records,
        (SELECT sum(position)::int FROM shard_head) AS numbered`,
    );
    // And the worker's registration.
    assert.deepEqual(rows[0], { clusters: 38, numbered: 39, records: 39 });

    const loads = new LoadWriter({
      database: dc.unpiped,
      gate: { enter: () => epoch(1), mayAcknowledge: () => true },
      events: { uncertain: () => undefined, committed: () => {}, published: async () => {} },
      site: "east",
      time: systemTime,
      log: silentLogger,
    });
    const load = async (id: string, expiresAt: string | null): Promise<string> =>
      outcome(
        loads.write(
          {
            shard: shardOf(id, shards),
            tenant: "",
            rows: [{ id, name: id, spec: "{}", state: "{}", labels: "{}", expiresAt }],
            key: { key: `load ${id}`, retentionMs: 1_000 },
            trace: { requestId: "r", traceparent: null },
          },
          local(),
        ),
      );
    const ofShard = (shard: number): string =>
      Array.from({ length: 1_000 }, (_, i) => `l${i}`).find((id) => shardOf(id, shards) === shard) ?? "";
    assert.deepEqual(await Promise.all([0, 1, 2, 3].map((shard) => load(ofShard(shard), shard === 2 ? odd : null))), [
      "ok",
      "ok",
      "internal",
      "ok",
    ]);

    // What a task prints is cut between characters.
    await dc.cluster("loud");
    const job = await dc.start("loud", "stop");
    const [task] = await dc.dispatcher.take({ tenant: "", workerId: "w1", waitMs: 1_000, max: 1 }, never);
    assert.ok(task !== undefined);
    const finish = { tenant: "", taskId: task.id, token: task.token, workerId: "w1", status: "ok" } as const;
    const printed = `${"😀".repeat(32_001)}a`;
    assert.equal(await outcome(dc.writer.write(dc.tasks.finish({ ...finish, stdout: printed }), local())), "ok");
    const { stdout } = (
      await pool.query<{ stdout: string }>("SELECT stdout FROM tasks WHERE job_id = $1 AND status = 'ok'", [job])
    ).rows[0] ?? { stdout: "" };
    assert.equal(stdout, `${"😀".repeat(31_999)}a`);
  } finally {
    await dc.close();
  }
});

test("tasks of jobs that ended long ago go, with what they printed; others, and all jobs, stay", async () => {
  const dc = await datacenter();
  const { pool } = dc.database;
  const count = async (jobId: string): Promise<number> =>
    (await pool.query<{ n: number }>("SELECT count(*)::int AS n FROM tasks WHERE job_id = $1", [jobId])).rows[0]?.n ??
    0;
  let active = false;
  const retention = new TaskRetention({
    database: dc.database,
    keepMs: 3_600_000,
    time: { ...systemTime, sleep: (ms, signal) => systemTime.sleep(Math.min(ms, 5), signal) },
    log: silentLogger,
    active: () => active,
  });
  try {
    for (const id of ["old", "young", "going", "left"]) await dc.cluster(id);
    const [old, young] = [await dc.start("old", "stop"), await dc.start("young", "stop")];
    await dc.work(async () => (await dc.row(young)).status === "complete" && (await dc.row(old)).status === "complete");
    const [going, left] = [await dc.start("going", "stop"), await dc.start("left", "stop")];
    // What this datacenter still had to do when it died, of a job that has ended elsewhere since.
    await pool.query("UPDATE jobs SET status = 'complete', finished_at = now() - interval '2 hours' WHERE id = $1", [
      left,
    ]);
    await pool.query("UPDATE jobs SET finished_at = now() - interval '2 hours' WHERE id = $1", [old]);
    await pool.query("UPDATE tasks SET finished_at = now() - interval '2 hours', stdout = 'x' WHERE job_id = $1", [
      old,
    ]);
    // More than one step's worth.
    await pool.query(
      `INSERT INTO tasks SELECT (jsonb_populate_record(t, jsonb_build_object('id', t.job_id || '.1.' || 100 + n))).*
        FROM tasks t, generate_series(1, 600) n WHERE t.job_id = $1 AND t.id LIKE '%.1.1'`,
      [old],
    );
    assert.deepEqual([await count(old), await count(young), await count(going), await count(left)], [602, 2, 2, 2]);
    await retention.start();
    await systemTime.sleep(50);
    assert.equal(await count(old), 602, "another process of the datacenter removes");
    active = true;
    assert.ok(await until(async () => (await count(old)) + (await count(left)) === 0, 20_000), "they are removed");
    assert.deepEqual([await count(young), await count(going)], [2, 2]);
    for (const id of [old, young, going, left]) assert.equal((await dc.row(id)).id, id);
    const listed = await dc.writer.write(dc.tasks.list("", old), local());
    assert.deepEqual(listed.outcome.body, { items: [], nextCursor: null });
  } finally {
    await retention.stop();
    await dc.close();
  }
});
