import assert from "node:assert/strict";
import test from "node:test";
import { Problem } from "../../infra/errors.js";
import { Catalog } from "../../services/jobs/catalog.js";
import { putWorker } from "../../services/jobs/operations.js";
import { tailOf } from "../../services/jobs/output.js";
import { JobWorld, shards } from "../harness/job-world.js";
import { shardOf } from "../../shards/ids.js";

const code = (wanted: string) => (error: unknown) => error instanceof Problem && error.code === wanted;

function started(spec?: Record<string, unknown>, type = "create"): { world: JobWorld; id: string } {
  const world = new JobWorld();
  world.cluster("c1", spec);
  return { world, id: world.start("c1", type) };
}

test("a job runs through its stages to completion, with one record at the start, one per checkpoint, one at the end", () => {
  const { world, id } = started();
  assert.match(id, /^j\d+-[0-9a-z]{16}$/);
  assert.equal(world.clusterRow("c1").status, "pending");
  assert.equal(world.clusterRow("c1").version, 2);
  const stages: string[] = [];
  while (world.job(id).status === "running") {
    stages.push(world.job(id).stage ?? "?");
    const done = world.runStage(id, (task) => ({ [task.name.toLowerCase()]: task.node }));
    assert.deepEqual(
      done.map((task) => task.node),
      ["n1", "n2"],
    );
  }
  assert.deepEqual(stages, world.job(id).stages);
  assert.equal(world.job(id).status, "complete");
  assert.equal(world.job(id).stage, null);
  assert.notEqual(world.job(id).finishedAt, null);
  assert.deepEqual(world.recordTypes(), ["job.start", "job.checkpoint", "job.checkpoint", "job.end"]);
  const cluster = world.clusterRow("c1");
  assert.equal(cluster.status, "active");
  assert.equal(cluster.version, 3);
  const nodes = cluster.state["nodes"] as Record<string, Record<string, unknown>>;
  assert.deepEqual(Object.keys(nodes["n2"] ?? {}), [
    "create",
    "confirm",
    "bootstrap",
    "install",
    "configure",
    "initialize",
    "start",
  ]);
  assert.equal(nodes["n2"]?.["start"], "n2");
});

test("no task state is in a record", () => {
  const { world, id } = started();
  world.runToEnd(id);
  for (const { change } of world.store.records) {
    assert.doesNotMatch(JSON.stringify(change), /workerId|leaseUntil|tries|stdout|"token"/);
    if (change.job !== undefined) assert.equal(change.job.stage, null);
  }
});

test("results of earlier stages reach later tasks, and the next operation", () => {
  const { world, id } = started({ nodes: [{ name: "n1", flavor: "small" }] });
  const [create] = world.runStage(id, () => ({ providerid: "p-1", ipaddresses: { access_v4: "10.0.0.1" } }));
  assert.deepEqual(create?.input["results"], {});
  assert.deepEqual(create?.input["node"], { name: "n1", flavor: "small" });
  assert.equal(create?.input["fence"], "1.1");
  assert.equal(create?.leaseMs, 30_000);
  const [confirm] = world.runStage(id, () => ({ providerid: "p-1b" }));
  assert.deepEqual(confirm?.input["results"], { n1: { providerid: "p-1", ipaddresses: { access_v4: "10.0.0.1" } } });
  const [bootstrap] = world.runStage(id);
  assert.deepEqual(bootstrap?.input["results"], { n1: { providerid: "p-1b", ipaddresses: { access_v4: "10.0.0.1" } } });
  world.runToEnd(id);
  const stop = world.start("c1", "stop");
  const [task] = world.runStage(stop);
  assert.equal((task?.input["results"] as Record<string, Record<string, unknown>>)["n1"]?.["providerid"], "p-1b");
  const remove = world.start("c1", "delete");
  world.runToEnd(remove);
  assert.equal(world.clusterRow("c1").status, "terminated");
  assert.equal("nodes" in world.clusterRow("c1").state, false);
});

test("a second operation waits for the first, and terminated knows only create and delete", () => {
  const { world, id } = started();
  assert.throws(() => world.start("c1", "stop"), code("job_in_progress"));
  world.runToEnd(id);
  world.runToEnd(world.start("c1", "delete"));
  for (const type of ["start", "stop", "restart", "configure"])
    assert.throws(() => world.start("c1", type), code("invalid_transition"));
  assert.throws(() => world.start("c1", "dance"), code("invalid_request"));
  assert.throws(() => world.start("c9", "stop"), code("not_found"));
  world.cluster("c2", { nodes: [1] });
  assert.throws(() => world.start("c2"), code("invalid_request"));
  world.runToEnd(world.start("c1", "create"));
  assert.equal(world.clusterRow("c1").status, "active");
});

test("a task that fails is tried again after a back-off; used up, it fails the job and stops the others", () => {
  const { world, id } = started();
  const other = world.take(world.waiting(id)[1]!, "w2")!;
  for (let tries = 1; tries <= 3; tries++) {
    const task = world.waiting(id)[0]!;
    const taken = world.take(task)!;
    assert.equal(world.heartbeat(other, "w2").stop, false);
    world.finish(taken, "failed", { stdout: `try ${tries}` });
    if (tries === 3) break;
    assert.equal(world.take(task), undefined, "back-off");
    world.time.set(world.time.wall() + 5_000);
  }
  const job = world.job(id);
  assert.equal(job.status, "failed");
  assert.match(job.error ?? "", /CREATE on n1 failed after 3 tries/);
  assert.equal(world.clusterRow("c1").status, "incomplete");
  assert.deepEqual(world.heartbeat(other, "w2"), { leaseMs: 0, stop: true });
  assert.throws(() => world.finish(other, "ok", { workerId: "w2" }), code("stale_token"));
  assert.deepEqual(
    world.tasksOf(id).map((task) => task.status),
    ["failed", "cancelled"],
  );
  assert.deepEqual(world.recordTypes(), ["job.start", "job.end"]);
});

test("another operation that fails leaves the cluster inconsistent; a retry goes on from the checkpoint", () => {
  const { world, id } = started();
  world.runStage(id, () => ({ providerid: "p" }));
  world.store.writeNow(world.jobs.cancel("", id));
  assert.equal(world.clusterRow("c1").status, "incomplete");
  assert.throws(() => world.store.writeNow(world.jobs.cancel("", id)), code("invalid_transition"));
  const { outcome } = world.store.writeNow(world.jobs.retry("", id));
  assert.equal(outcome.status, 202);
  assert.equal(world.job(id).attempt, 2);
  assert.equal(world.job(id).stage, "CONFIRM");
  assert.equal(
    world.tasksOf(id).every((task) => task.attempt === 2),
    true,
  );
  assert.equal(world.clusterRow("c1").status, "pending");
  const [task] = world.runStage(id);
  assert.equal(task?.input["fence"], "1.2");
  assert.equal((task?.input["results"] as Record<string, Record<string, unknown>>)["n1"]?.["providerid"], "p");
  world.runToEnd(id);
  assert.throws(() => world.store.writeNow(world.jobs.retry("", id)), code("invalid_transition"));
  const stop = world.start("c1", "stop");
  world.store.writeNow(world.jobs.cancel("", stop));
  assert.equal(world.clusterRow("c1").status, "inconsistent");
});

test("a retry after another operation begins at the first stage, and not beside another job", () => {
  const { world, id } = started();
  world.runStage(id);
  world.store.writeNow(world.jobs.cancel("", id));
  const remove = world.start("c1", "delete");
  assert.throws(() => world.store.writeNow(world.jobs.retry("", id)), code("job_in_progress"));
  world.runToEnd(remove);
  world.store.writeNow(world.jobs.retry("", id));
  assert.equal(world.job(id).stage, "CREATE");
});

test("a paused job offers nothing, keeps what is finished, and goes on", () => {
  const { world, id } = started();
  const [first, second] = world.waiting(id);
  const taken = world.take(first!)!;
  world.store.writeNow(world.jobs.pause("", id));
  assert.equal(world.take(second!), undefined);
  assert.equal(world.heartbeat(taken).stop, false);
  world.finish(taken);
  assert.equal(world.job(id).status, "paused");
  assert.equal(world.clusterRow("c1").status, "pending");
  assert.equal(world.job(id).stage, "CREATE");
  const offered: string[] = [];
  world.events.on({ offered: (tasks) => offered.push(...tasks.map((task) => task.id)) });
  world.store.writeNow(world.jobs.resume("", id));
  assert.deepEqual(offered, [second!.id]);
  world.runToEnd(id);
  assert.equal(world.job(id).status, "complete");
});

test("a stage that was through when the job was paused ends with the resume", () => {
  const { world, id } = started(undefined, "stop");
  const taken = world.waiting(id).map((task) => world.take(task)!);
  world.store.writeNow(world.jobs.pause("", id));
  for (const task of taken) world.finish(task);
  assert.equal(world.job(id).status, "paused");
  world.store.writeNow(world.jobs.resume("", id));
  assert.equal(world.job(id).status, "complete");
});

test("a finish may be repeated; any other token, worker or outcome changes nothing", () => {
  const { world, id } = started();
  const taken = world.take(world.waiting(id)[0]!)!;
  const shard = world.job(id).shard;
  const answer = world.finish(taken, "ok", { result: { a: 1 } });
  const before = JSON.stringify([...world.store.rows.tasks.values(), ...world.store.rows.jobs.values()]);
  assert.deepEqual(world.finish(taken, "ok", { result: { a: 2 } }), answer);
  const stale: (() => unknown)[] = [
    () => world.finish(taken, "failed"),
    () => world.finish(taken, "ok", { workerId: "w2" }),
    () => world.finish({ ...taken, token: `${shard}.1.2` }),
    () => world.finish({ ...taken, token: `${shard}.2.1` }),
    () => world.finish({ ...taken, token: `${shard + 1}.1.1` }),
    () => world.finish({ ...taken, token: "rubbish" }),
    () => world.finish({ ...taken, token: "" }),
    () => world.finish({ ...taken, id: "rubbish" }),
    () => world.finish({ ...taken, id: taken.id.replace(/1$/, "9") }),
    () => world.finish({ id: `j${shard}-aaaaaaaaaaaaaaaa.1.1`, token: taken.token }),
    () => world.finish({ ...taken, id: world.waiting(id)[0]!.id }),
    () => world.heartbeat({ ...taken, token: `${shard}.1.2` }),
  ];
  for (const [index, attempt] of stale.entries()) assert.throws(attempt, code("stale_token"), String(index));
  assert.equal(JSON.stringify([...world.store.rows.tasks.values(), ...world.store.rows.jobs.values()]), before);
});

test("the finish that ended the job may be repeated, also at the next owner", () => {
  const { world, id } = started({ nodes: ["n1"] }, "stop");
  const [taken] = world.runStage(id);
  assert.equal(world.job(id).status, "complete");
  world.finish(taken!);
  world.store.takeOver(world.job(id).shard, "west");
  world.finish(taken!);
  assert.throws(() => world.finish(taken!, "failed"), code("stale_token"));
  assert.deepEqual(world.recordTypes(), ["job.start", "job.end"]);
});

test("a failed try may be repeated while it waits for its next one", () => {
  const { world, id } = started();
  const taken = world.take(world.waiting(id)[0]!)!;
  world.finish(taken, "failed");
  world.finish(taken, "failed");
  assert.equal(world.waiting(id)[0]?.tries, 1);
  assert.throws(() => world.finish(taken, "ok"), code("stale_token"));
});

test("after a takeover the job restarts from its checkpoint as the next attempt, and old tokens are void at once", () => {
  const { world, id } = started();
  const early = world.take(world.waiting(id)[0]!)!;
  world.finish(early, "ok", { result: { providerid: "p1" } });
  world.finish(world.take(world.waiting(id)[0]!)!, "ok", { result: { providerid: "p2" } });
  world.runStage(id);
  const late = world.take(world.waiting(id)[0]!)!;
  const { shard } = world.job(id);
  world.store.takeOver(shard, "west");
  const before = world.store.records.length;
  for (const token of [early, late]) {
    assert.throws(() => world.finish(token), code("stale_token"));
    assert.throws(() => world.heartbeat(token), code("stale_token"));
  }
  world.store.writeNow(world.jobs.restart(id));
  world.store.writeNow(world.jobs.restart(id));
  assert.deepEqual(world.recordTypes().slice(before), ["job.restart"]);
  const job = world.job(id);
  assert.deepEqual(
    [job.status, job.attempt, job.epoch, job.runsIn, job.startedIn, job.stage],
    ["running", 2, 2, "west", "east", "CONFIRM"],
  );
  assert.throws(() => world.finish(late), code("stale_token"));
  const [again] = world.runStage(id);
  assert.equal(again?.input["fence"], "2.2");
  assert.equal(again?.token, `${shard}.2.2`);
  assert.deepEqual(again?.input["results"], { n1: { providerid: "p1" }, n2: { providerid: "p2" } });
  world.runToEnd(id);
  assert.equal(world.job(id).status, "complete");
  assert.equal(world.recordTypes().filter((type) => type === "job.end").length, 1);
});

test("the next epoch of the same owner keeps the attempt", () => {
  const { world, id } = started();
  const taken = world.take(world.waiting(id)[0]!)!;
  world.store.reopen(world.job(id).shard);
  world.store.writeNow(world.jobs.restart(id));
  assert.equal(world.job(id).attempt, 1);
  world.finish(taken);
  world.runToEnd(id);
  assert.equal(world.job(id).status, "complete");
});

test("queued, paused and finished jobs stay what they are after a takeover", () => {
  const world = new JobWorld();
  for (const id of ["a", "b", "c"]) world.cluster(id);
  const queued = world.start("a", "create", new Date(world.time.wall() + 60_000).toISOString());
  const paused = world.start("b");
  const cancelled = world.start("c");
  const lost = world.take(world.waiting(paused)[0]!)!;
  world.store.writeNow(world.jobs.pause("", paused));
  world.store.writeNow(world.jobs.cancel("", cancelled));
  for (let shard = 0; shard < shards; shard++)
    world.store.takeOver(shardOf(["a", "b", "c"][shard % 3]!, shards), "west");
  const before = world.store.records.length;
  for (const id of [queued, paused, cancelled]) world.store.writeNow(world.jobs.restart(id));
  assert.equal(world.store.records.length, before);
  assert.deepEqual(
    [queued, paused, cancelled].map((id) => world.job(id).status),
    ["queued", "paused", "cancelled"],
  );
  assert.throws(() => world.finish(lost), code("stale_token"));
  world.store.writeNow(world.jobs.resume("", paused));
  assert.equal(world.job(paused).attempt, 2);
  world.runToEnd(paused);
  assert.equal(world.job(paused).status, "complete");
});

test("a scheduled job leaves its cluster alone until it is due", () => {
  const world = new JobWorld();
  world.cluster("c1");
  const at = world.time.wall() + 60_000;
  const id = world.start("c1", "stop", new Date(at).toISOString());
  assert.equal(world.job(id).status, "queued");
  assert.equal(world.clusterRow("c1").status, "active");
  assert.throws(() => world.start("c1", "start"), code("job_in_progress"));
  world.store.writeNow(world.jobs.startDue(id));
  assert.equal(world.job(id).status, "queued");
  world.time.set(at);
  world.store.writeNow(world.jobs.startDue(id));
  assert.equal(world.clusterRow("c1").status, "pending");
  world.runToEnd(id);
  assert.deepEqual(world.recordTypes(), ["job.change", "job.start", "job.end"]);
  const cancelled = world.start("c1", "stop", new Date(at + 60_000).toISOString());
  world.store.writeNow(world.jobs.cancel("", cancelled));
  assert.equal(world.clusterRow("c1").status, "active");
});

test("a cluster whose time is over gets its delete once, and a scheduled job gives way", () => {
  const world = new JobWorld();
  const at = world.time.wall() + 1_000;
  world.cluster("c1", undefined, { expiresAt: new Date(at).toISOString() });
  const queued = world.start("c1", "stop", new Date(at + 60_000).toISOString());
  const expire = () => world.store.writeNow(world.jobs.startExpiry("", "c1", world.shard("c1"))).outcome;
  assert.equal(expire().status, 204);
  world.time.set(at);
  const { status, body } = expire();
  assert.equal(status, 202);
  assert.equal((body as { type: string }).type, "delete");
  assert.equal(world.job(queued).status, "cancelled");
  assert.throws(expire, code("job_in_progress"));
  world.runToEnd((body as { id: string }).id);
  assert.equal(expire().status, 204);
});

test("a silent worker's task is offered again, to fail when its tries are used up", () => {
  const { world, id } = started({ nodes: ["n1"] });
  const expire = (task: { id: string }) => world.store.writeNow(world.tasks.expire(task.id));
  const first = world.take(world.waiting(id)[0]!)!;
  world.time.set(world.time.wall() + 20_000);
  assert.deepEqual(world.heartbeat(first), { leaseMs: 30_000, stop: false });
  world.time.set(world.time.wall() + 20_000);
  expire(first);
  assert.equal(world.waiting(id).length, 0, "the heartbeat extended the lease");
  world.time.set(world.time.wall() + 10_000);
  expire(first);
  const second = world.take(world.waiting(id)[0]!, "w2")!;
  assert.throws(() => world.finish(first), code("stale_token"));
  assert.throws(() => world.heartbeat(first), code("stale_token"));
  world.time.set(world.time.wall() + 30_000);
  expire(second);
  world.take(world.waiting(id)[0]!, "w3");
  world.time.set(world.time.wall() + 30_000);
  expire(second);
  assert.equal(world.job(id).status, "failed");
});

test("a worker that was silent may come back to its task until somebody else takes it", () => {
  const { world, id } = started({ nodes: ["n1"] });
  const late = () => {
    world.time.set(world.time.wall() + 31_000);
    for (const task of world.tasksOf(id)) world.store.writeNow(world.tasks.expire(task.id));
    assert.equal(world.waiting(id).length, 1, "it is offered again");
  };
  const first = world.take(world.waiting(id)[0]!)!;
  late();
  assert.throws(() => world.heartbeat(first, "w2"), code("stale_token"));
  assert.deepEqual(world.heartbeat(first), { leaseMs: 30_000, stop: false });
  assert.equal(world.waiting(id).length, 0, "it has it again");
  late();
  world.finish(first);
  assert.equal(world.tasksOf(id)[0]?.status, "ok");
  assert.equal(world.job(id).stage, "CONFIRM");
  const second = world.take(world.waiting(id)[0]!)!;
  late();
  world.finish(second, "failed");
  const [, confirm] = world.tasksOf(id);
  assert.equal(confirm?.status, "waiting");
  assert.notEqual(confirm?.notBefore, null, "a failure is tried again after a while");
  world.finish(second, "failed");
  assert.throws(() => world.finish(second), code("stale_token"));
  assert.throws(() => world.heartbeat(second), code("stale_token"));
});

test("a finish that names its try does not end a later one", () => {
  const { world, id } = started({ nodes: ["n1"] });
  const first = world.take(world.waiting(id)[0]!)!;
  const finish = (number: number, status: "ok" | "failed") =>
    world.store.writeNow(
      world.tasks.finish({ tenant: "", taskId: first.id, token: first.token, workerId: "w1", try: number, status }),
    );
  finish(1, "failed");
  world.time.set(world.time.wall() + 60_000);
  const second = world.take(world.waiting(id)[0]!)!;
  assert.equal(second.input["try"], 2);
  for (const status of ["ok", "failed"] as const) assert.throws(() => finish(1, status), code("stale_token"));
  assert.equal(world.tasksOf(id)[0]?.status, "taken");
  finish(2, "ok");
  assert.equal(world.tasksOf(id)[0]?.status, "ok");
});

test("one try may not take longer than its stage allows, however often it is heard of", () => {
  const catalog = Catalog.of(
    { operations: { create: { stages: [{ name: "S", timeoutMs: 45_000, retries: 1 }] } } },
    "test",
  );
  const world = new JobWorld({ catalog });
  world.cluster("c1");
  const id = world.start("c1");
  const task = world.take(world.waiting(id)[0]!)!;
  world.time.set(world.time.wall() + 25_000);
  assert.equal(world.heartbeat(task).leaseMs, 20_000);
  world.time.set(world.time.wall() + 20_000);
  assert.deepEqual(world.heartbeat(task), { leaseMs: 0, stop: true });
  world.store.writeNow(world.tasks.expire(task.id));
  assert.equal(world.job(id).status, "failed");
});

test("a task that could not be handed over counts no try", () => {
  const { world, id } = started();
  const task = world.take(world.waiting(id)[0]!)!;
  world.store.writeNow(world.tasks.release(task.id, "w2"));
  assert.equal(world.waiting(id).length, 1);
  world.store.writeNow(world.tasks.release(task.id, "w1"));
  assert.deepEqual(
    world.waiting(id).map((each) => each.tries),
    [0, 0],
  );
});

test("too large a result is refused, too many results fail the job, long output keeps its end", () => {
  const world = new JobWorld({ settings: { resultLimit: 1_000, resultsLimit: 1_500, outputLimit: 10 } });
  world.cluster("c1");
  const id = world.start("c1");
  const [a, b] = world.waiting(id).map((task) => world.take(task)!);
  assert.throws(() => world.finish(a!, "ok", { result: { x: "y".repeat(1_000) } }), code("payload_too_large"));
  world.finish(a!, "ok", { result: { x: "y".repeat(900) }, stdout: "0123456789abc" });
  assert.equal(world.tasksOf(id)[0]?.stdout, "3456789abc");
  // Half a character is not kept: the database would refuse it.
  assert.deepEqual([tailOf("😀😀😀a", 4), tailOf("😀😀😀a", 5), tailOf("a😀", 5)], ["😀a", "😀😀a", "a😀"]);
  world.finish(b!, "ok", { result: { x: "y".repeat(900) } });
  assert.equal(world.job(id).status, "failed");
  assert.match(world.job(id).error ?? "", /more than 1500 bytes/);
  assert.equal(world.clusterRow("c1").status, "incomplete");
});

test("no nodes: the tasks run once; an empty list: the job is complete at once", () => {
  const world = new JobWorld();
  world.cluster("c1", {});
  const once = world.start("c1");
  assert.deepEqual(
    world.waiting(once).map((task) => task.node),
    [null],
  );
  world.runToEnd(once);
  assert.equal(world.job(once).status, "complete");
  world.cluster("c2", { nodes: [] });
  const empty = world.start("c2");
  assert.equal(world.job(empty).status, "complete");
  assert.equal(world.clusterRow("c2").status, "active");
  assert.equal(world.clusterRow("c2").version, 3);
});

test("a stage that left the catalog fails the job with a clear error", () => {
  const { world, id } = started({ nodes: ["n1"] });
  world.catalog = Catalog.of({ operations: { create: { stages: [{ name: "CREATE" }] } } }, "test");
  world.runStage(id);
  assert.equal(world.job(id).status, "failed");
  assert.match(world.job(id).error ?? "", /no stage CONFIRM/);
});

test("another tenant's job is not there", () => {
  const { world, id } = started();
  for (const operation of [world.jobs.cancel("t2", id), world.jobs.pause("t2", id), world.tasks.list("t2", id)])
    assert.throws(() => world.store.writeNow(operation), code("not_found"));
  assert.throws(() => world.jobs.cancel("", "rubbish"), code("not_found"));
  const { items } = world.store.writeNow(world.tasks.list("", id)).outcome.body as { items: unknown[] };
  assert.equal(items.length, 2);
});

test("a registration is a record only when it changes something", () => {
  const world = new JobWorld();
  const put = (capacity: number, labels: Record<string, string>) =>
    world.store.writeNow(putWorker({ tenant: "", id: "w1", shard: world.shard("w1"), capacity, labels }));
  put(2, { a: "b" });
  put(2, { a: "b" });
  assert.deepEqual(world.recordTypes(), ["worker.put"]);
  put(3, { a: "b" });
  put(3, {});
  assert.deepEqual(world.recordTypes(), ["worker.put", "worker.put", "worker.put"]);
});
