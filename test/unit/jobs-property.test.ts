import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { Problem } from "../../infra/errors.js";
import { seededRandom } from "../../infra/random.js";
import { Catalog } from "../../services/jobs/catalog.js";
import type { TakenTask } from "../../services/jobs/operations.js";
import { JobWorld } from "../harness/job-world.js";

const catalog = Catalog.of(
  {
    operations: {
      create: {
        stages: [
          { name: "A", retries: 4 },
          { name: "B", retries: 4, checkpoint: true },
          { name: "C", retries: 4, tasks: ["C1", "C2"] },
          { name: "D", retries: 4, per: "once" },
        ],
      },
    },
  },
  "test",
);

const step = fc.oneof(
  { weight: 6, arbitrary: fc.constant("take" as const) },
  { weight: 6, arbitrary: fc.constant("ok" as const) },
  { weight: 1, arbitrary: fc.constant("fail" as const) },
  { weight: 2, arbitrary: fc.constant("repeat" as const) },
  { weight: 1, arbitrary: fc.constant("expire" as const) },
  { weight: 1, arbitrary: fc.constant("takeover" as const) },
  { weight: 1, arbitrary: fc.constant("reopen" as const) },
  { weight: 2, arbitrary: fc.constant("restart" as const) },
  { weight: 1, arbitrary: fc.constant("pause" as const) },
  { weight: 1, arbitrary: fc.constant("resume" as const) },
  { weight: 1, arbitrary: fc.constant("cancel" as const) },
);

/** A refusal is an answer; anything else is a bug. Returns the code, or undefined when it went through. */
function answer(action: () => unknown): string | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    if (error instanceof Problem) return error.code;
    throw error;
  }
}

/** What must hold of the rows after each step. */
function check(world: JobWorld, id: string): void {
  const job = world.job(id);
  const tasks = world.tasksOf(id).filter((task) => task.attempt === job.attempt);
  const latest = Math.max(-1, ...tasks.map((task) => task.stageIndex));
  for (const task of tasks)
    if (task.stageIndex < latest) assert.equal(task.status, "ok", `${task.id} of an earlier stage`);
  if (job.status === "complete") for (const task of tasks) assert.equal(task.status, "ok");
  const ends = world.store.records.filter(({ change }) => change.type === "job.end").length;
  assert.equal(ends, ["complete", "failed", "cancelled"].includes(job.status) ? 1 : 0, "ends");
  const checkpoints = world.store.records.filter(({ change }) => change.type === "job.checkpoint").length;
  assert(checkpoints <= 1, "a stage behind a checkpoint is not passed again");
  const cluster = world.clusterRow("c1").status;
  if (["running", "paused"].includes(job.status)) assert.equal(cluster, "pending");
  else assert.equal(cluster, job.status === "complete" ? "active" : "incomplete");
}

test("whatever happens to tasks and owners: barriers hold, old tokens change nothing, a job ends exactly once", () => {
  let ended = 0;
  fc.assert(
    fc.property(
      fc.array(step, { minLength: 20, maxLength: 120 }),
      fc.nat(),
      fc.integer({ min: 1, max: 3 }),
      (steps, seed, nodes) => {
        const random = seededRandom(seed);
        const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(random.next() * list.length)];
        const world = new JobWorld({ catalog, seed, settings: { backoffMs: 1 } });
        world.cluster("c1", { nodes: Array.from({ length: nodes }, (_, i) => `n${i}`) });
        const id = world.start("c1");
        const { shard } = world.job(id);
        const taken: { readonly task: TakenTask; readonly worker: string }[] = [];
        let dcs = 0;
        for (const what of steps) {
          world.time.set(world.time.wall() + 5_000);
          const job = world.job(id);
          const run = (operation: Parameters<typeof world.store.writeNow>[0]): void =>
            void answer(() => world.store.writeNow(operation));
          if (what === "take") {
            const task = pick(world.tasksOf(id));
            const worker = `w${Math.floor(random.next() * 3)}`;
            const got = task === undefined ? undefined : world.take(task, worker);
            if (got !== undefined) taken.push({ task: got, worker });
          } else if (what === "ok" || what === "fail" || what === "repeat") {
            const held = pick(what === "repeat" ? taken : taken.slice(-4));
            if (held === undefined) continue;
            const old = held.task.attempt !== job.attempt || job.epoch < world.store.head(shard).tenure;
            const before = JSON.stringify([...world.store.rows.tasks.values(), job, world.store.records.length]);
            const code = answer(() =>
              world.finish(held.task, what === "fail" ? "failed" : "ok", { workerId: held.worker }),
            );
            if (old && job.finishedAt === null) assert.equal(code, "stale_token");
            if (code !== undefined) {
              assert.equal(code, "stale_token");
              assert.equal(
                JSON.stringify([...world.store.rows.tasks.values(), world.job(id), world.store.records.length]),
                before,
              );
            }
          } else if (what === "expire") {
            const task = pick(world.tasksOf(id).filter((each) => each.status === "taken"));
            if (task === undefined) continue;
            world.time.set(world.time.wall() + 31_000);
            run(world.tasks.expire(task.id));
          } else if (what === "takeover") world.store.takeOver(shard, `dc${++dcs}`);
          else if (what === "reopen") world.store.reopen(shard);
          else run(world.jobs[what as "restart"](...((what === "restart" ? [id] : ["", id]) as [string])));
          check(world, id);
        }
        // Left alone, it comes to its end.
        world.store.writeNow(world.jobs.restart(id));
        if (world.job(id).status === "paused") world.store.writeNow(world.jobs.resume("", id));
        for (let i = 0; i < 50 && world.job(id).status === "running"; i++) {
          world.time.set(world.time.wall() + 120_000);
          for (const task of world.tasksOf(id))
            if (task.status === "taken") world.store.writeNow(world.tasks.expire(task.id));
          for (const task of world.waiting(id)) {
            const got = world.take(task, "last");
            if (got !== undefined) world.finish(got, "ok", { workerId: "last" });
          }
          check(world, id);
        }
        assert.notEqual(world.job(id).finishedAt, null);
        const count = (type: string): number => world.store.records.filter(({ change }) => change.type === type).length;
        assert.equal(count("job.start"), 1);
        assert.equal(count("job.end"), 1);
        assert.equal(count("job.restart"), world.job(id).attempt - 1);
        if (world.job(id).status === "complete") ended++;
      },
    ),
    { numRuns: 300 },
  );
  assert(ended > 50, `only ${ended} of the runs completed: the test has lost its grip`);
});
