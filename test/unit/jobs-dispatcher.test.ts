import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import { Problem } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import { epoch, shardId, type ShardId } from "../../shards/ids.js";
import { Dispatcher, type DispatcherOptions, type TakeOrder } from "../../services/jobs/dispatcher.js";
import { putWorker, type TakenTask } from "../../services/jobs/operations.js";
import { JobWorld, MemoryJobSource, shards } from "../harness/job-world.js";
import { settled } from "../harness/manual-time.js";

const code = (wanted: string) => (error: unknown) => error instanceof Problem && error.code === wanted;
const never = new AbortController().signal;

interface Desk {
  readonly world: JobWorld;
  readonly dispatcher: Dispatcher;
  readonly source: MemoryJobSource;
  readonly take: (order?: Partial<TakeOrder>, signal?: AbortSignal) => Promise<TakenTask[]>;
  readonly register: (id: string, capacity?: number) => void;
}

async function desk(
  context: TestContext,
  options: Partial<DispatcherOptions> = {},
  world = new JobWorld(),
): Promise<Desk> {
  const source = new MemoryJobSource(world.store);
  const { jobs, tasks, events, time, store } = world;
  const dispatcher = new Dispatcher({
    source,
    writer: store,
    jobs,
    tasks,
    events,
    time,
    log: silentLogger,
    ...options,
  });
  await dispatcher.start();
  context.after(() => dispatcher.stop());
  const register = (id: string, capacity = 10): void => {
    store.writeNow(putWorker({ tenant: "", id, shard: world.shard(id), capacity, labels: {} }));
  };
  register("w1");
  own(world, dispatcher);
  await settled();
  const take: Desk["take"] = (order = {}, signal = never) =>
    dispatcher.take({ tenant: "", workerId: "w1", waitMs: 0, max: 10, ...order }, signal);
  return { world, dispatcher, source, take, register };
}

function own(world: JobWorld, dispatcher: Dispatcher): void {
  for (let shard = 0; shard < shards; shard++) {
    const head = world.store.head(shardId(shard));
    dispatcher.onOwned(shardId(shard), head.epoch, head.tenure);
  }
}

test("a take that waits is served by the commit that starts a job, without a look into the database", async (context) => {
  const { world, source, take } = await desk(context);
  const reads = source.reads;
  const waiting = take({ waitMs: 10_000 });
  await settled();
  world.cluster("c1");
  world.start("c1");
  const tasks = await waiting;
  assert.deepEqual(
    tasks.map((task) => task.node),
    ["n1", "n2"],
  );
  assert.equal(source.reads, reads);
  assert.deepEqual(await take(), []);
});

test("the finish that ends a stage wakes up who waits for the next one", async (context) => {
  const { world, take } = await desk(context);
  world.cluster("c1", { nodes: ["n1"] });
  world.start("c1", "restart");
  const [stop] = await take();
  const waiting = take({ waitMs: 10_000 });
  await settled();
  world.finish(stop!);
  assert.deepEqual(
    (await waiting).map((task) => task.name),
    ["START"],
  );
});

test("a take that nothing comes for ends empty in time; one whose client hangs up ends at once", async (context) => {
  const { world, take } = await desk(context);
  const waiting = take({ waitMs: 5_000 });
  await world.time.advance(4_999);
  await world.time.advance(2);
  assert.deepEqual(await waiting, []);
  const hangUp = new AbortController();
  const gone = take({ waitMs: 5_000 }, hangUp.signal);
  await settled();
  hangUp.abort();
  assert.deepEqual(await gone, []);
  world.cluster("c1");
  const id = world.start("c1");
  assert.equal(world.waiting(id).length, 2);
});

test("tasks taken for a client that hung up are given back", async (context) => {
  const { world, take } = await desk(context);
  world.cluster("c1");
  const hangUp = new AbortController();
  world.store.before = () => hangUp.abort();
  const id = world.start("c1");
  assert.deepEqual(await take({}, hangUp.signal), []);
  assert.deepEqual(
    world.waiting(id).map((task) => task.tries),
    [0, 0],
  );
  world.store.before = () => {};
  assert.equal((await take()).length, 2);
});

test("names, labels, tenant, max and capacity are kept to", async (context) => {
  const { world, take, register } = await desk(context);
  world.cluster("c1", { nodes: ["a", "b", "c"] }, { labels: { env: "prod", zone: "1" } });
  world.cluster("c2", { nodes: ["d"] });
  world.start("c1");
  world.start("c2", "stop");
  assert.deepEqual(await take({ names: ["DELETE"] }), []);
  assert.deepEqual(
    (await take({ names: ["STOP"] })).map((task) => task.node),
    ["d"],
  );
  assert.deepEqual(await take({ labels: { env: "test" } }), []);
  register("w2", 2);
  assert.equal((await take({ labels: { env: "prod" }, max: 1, workerId: "w2" })).length, 1);
  const [second] = await take({ max: 5, workerId: "w2" });
  assert.notEqual(second, undefined);
  const full = take({ max: 5, workerId: "w2", waitMs: 2_000 });
  await settled();
  world.finish(second!, "ok", { workerId: "w2" });
  await world.time.advance(300);
  assert.equal((await full).length, 1);
  await assert.rejects(async () => {
    const unknown = take({ tenant: "t2" });
    unknown.catch(() => {});
    await world.time.advance(1_000);
    await unknown;
  }, code("not_found"));
});

test("a registration that is on its way is waited for", async (context) => {
  const { world, take, register } = await desk(context);
  const early = take({ workerId: "w9" });
  await world.time.advance(200);
  register("w9");
  await world.time.advance(60);
  assert.deepEqual(await early, []);
});

test("two who want the same task: one gets it", async (context) => {
  const { world, source } = await desk(context);
  const other = await desk(context, {}, world);
  assert.notEqual(source, other.source);
  world.cluster("c1", { nodes: ["n1"] });
  const first = (await desk(context, {}, world)).take({ waitMs: 1_000 });
  const second = other.take({ waitMs: 1_000 });
  await settled();
  world.start("c1");
  await world.time.advance(1_001);
  assert.equal((await first).length + (await second).length, 1);
});

test("a task in back-off is offered when its time comes; one whose lease ran out within a scan", async (context) => {
  const { world, take } = await desk(context);
  world.cluster("c1", { nodes: ["n1"] });
  world.start("c1");
  const [first] = await take();
  world.finish(first!, "failed");
  assert.deepEqual(await take(), []);
  const waiting = take({ waitMs: 10_000 });
  await world.time.advance(1_200);
  assert.equal((await waiting).length, 1);
  const silent = take({ waitMs: 60_000 });
  await world.time.advance(31_100);
  assert.equal((await silent).length, 1);
});

test("a takeover restarts what was running, in batches, and offers it", async (context) => {
  const world = new JobWorld();
  const ids: string[] = [];
  for (let i = 0; i < 70; i++) {
    world.cluster(`c${i}`, { nodes: ["n1"] });
    ids.push(world.start(`c${i}`, "stop"));
  }
  for (let shard = 0; shard < shards; shard++) world.store.takeOver(shardId(shard), "west");
  const { take } = await desk(context, { batch: 16, writesAtOnce: 4 }, world);
  for (let i = 0; i < 20; i++) await settled();
  for (const id of ids)
    assert.deepEqual([world.job(id).attempt, world.job(id).runsIn, world.job(id).status], [2, "west", "running"]);
  assert.equal(world.recordTypes().filter((type) => type === "job.restart").length, 70);
  assert.equal((await take({ max: 100 })).length, 10, "the capacity");
});

test("a lost shard's tasks are not handed out; a pool that was too small is filled again", async (context) => {
  const { world, dispatcher, take, register } = await desk(context, { poolLimit: 4, batch: 3 });
  for (const id of ["c1", "c2", "c3", "c4"]) {
    world.cluster(id, { nodes: ["n1", "n2"] });
    world.start(id, "stop");
  }
  register("big", 100);
  const lost: ShardId = world.shard("c1");
  dispatcher.onLost(lost);
  const expected = ["c1", "c2", "c3", "c4"].filter((id) => world.shard(id) !== lost).length * 2;
  const got: TakenTask[] = [];
  for (let i = 0; i < 30 && got.length < expected; i++) {
    got.push(...(await take({ workerId: "big", max: 3 })));
    await world.time.advance(1_000);
  }
  assert.equal(got.length, expected);
  assert.equal(
    got.some((task) => world.shard(task.clusterId) === lost),
    false,
  );
});

test("a write that is refused for the moment does not lose the task", async (context) => {
  const { world, take } = await desk(context);
  world.cluster("c1", { nodes: ["n1"] });
  world.start("c1");
  let refusals = 0;
  world.store.before = () => {
    if (refusals++ < 2) throw new Problem("no_lease");
  };
  const waiting = take({ waitMs: 5_000 });
  await world.time.advance(2_000);
  assert.equal((await waiting).length, 1);
});

test("a take whose outcome nobody knows is undone, that one alone, long before its lease is over", async (context) => {
  const { world, take } = await desk(context);
  world.cluster("c1", { nodes: ["n1"] });
  const id = world.start("c1");
  let late = true;
  world.store.heard = () => (late ? ((late = false), "late") : "told");
  const waiting = take({ waitMs: 5_000 });
  await world.time.advance(1_000);
  const [task] = await waiting;
  assert.equal(task?.input["try"], 1);
  await world.time.advance(5_000);
  assert.deepEqual(
    world.tasksOf(id).map(({ status, tries }) => [status, tries]),
    [["taken", 1]],
  );
  world.finish(task);
});

test("what a commit without an answer made available is found at once", async (context) => {
  const { world, dispatcher, take } = await desk(context);
  world.cluster("c1", { nodes: ["n1"] });
  const waiting = take({ waitMs: 5_000 });
  await settled();
  world.store.heard = () => "lost";
  assert.throws(() => world.start("c1"), code("outcome_unknown"));
  world.store.heard = () => "told";
  dispatcher.onUncertain([world.shard("c1")]);
  await settled();
  assert.equal((await waiting).length, 1);
});

test("jobs of a shard that can't be written keep no other shard's waiting", async (context) => {
  const world = new JobWorld();
  const ids = ["c1", "c2", "c3", "c4", "c5", "c6"];
  for (const id of ids) world.cluster(id, { nodes: ["n1"] });
  const jobs = ids.map((id) => world.start(id, "stop"));
  for (let shard = 0; shard < shards; shard++) world.store.takeOver(shardId(shard), "west");
  const stuck = world.shard("c1");
  const write = world.store.write.bind(world.store);
  world.store.write = async (operation, options) => {
    if (operation.shard !== stuck) return write(operation, options);
    await world.time.sleep(options.deadline - world.time.monotonic());
    throw new Problem("unpublished_limit");
  };
  const { dispatcher } = await desk(context, {}, world);
  const attempts = (): number[] => jobs.map((id) => world.job(id).attempt);
  const wanted = ids.map((id) => (world.shard(id) === stuck ? 1 : 2));
  assert.deepEqual(attempts(), wanted);
  // Another shard comes while the first one's writes wait.
  const other = world.shard(ids.find((id) => world.shard(id) !== stuck) ?? "");
  world.store.takeOver(other, "west");
  const head = world.store.head(other);
  dispatcher.onOwned(other, head.epoch, head.tenure);
  await world.time.advance(4_500);
  assert.deepEqual(
    attempts(),
    wanted.map((attempt, index) => (world.shard(ids[index] ?? "") === other ? 3 : attempt)),
  );
  world.store.write = write;
  await world.time.advance(8_000);
  assert.ok(attempts().every((attempt) => attempt > 1));
});

test("the oldest job's tasks come first, whatever they are called and however many new jobs come", async (context) => {
  const { world, take } = await desk(context);
  const begun = ["c1", "c2", "c3"];
  for (const id of begun) world.cluster(id, { nodes: ["n1"] });
  for (const id of begun) {
    world.start(id);
    await world.time.advance(10);
  }
  const order: string[] = [];
  for (let number = 0; number < 3 * 7; number++) {
    world.cluster(`new-${number}`, { nodes: ["n1"] });
    world.start(`new-${number}`);
    const [task] = await take({ max: 1 });
    order.push(`${task?.clusterId} ${task?.name}`);
    world.finish(task!);
  }
  const stages = ["CREATE", "CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"];
  assert.deepEqual(
    order,
    begun.flatMap((id) => stages.map((stage) => `${id} ${stage}`)),
  );
  // Of one name and of one label, too.
  assert.deepEqual(
    (await take({ names: ["START", "CREATE", "CREATE"], max: 3 })).map((task) => task.clusterId),
    ["new-0", "new-1", "new-2"],
  );
});

test("schedules and expiries come due by themselves", async (context) => {
  const { world } = await desk(context);
  const at = world.time.wall() + 5_000;
  world.cluster("c1", undefined, { expiresAt: new Date(at).toISOString() });
  world.cluster("c2");
  const id = world.start("c2", "stop", new Date(at).toISOString());
  await world.time.advance(4_000);
  assert.equal(world.job(id).status, "queued");
  await world.time.advance(2_100);
  assert.equal(world.job(id).status, "running");
  assert.equal(world.clusterRow("c1").status, "pending");
});

test("too many takes are refused; a drain answers those that wait", async (context) => {
  const { dispatcher, take } = await desk(context, { waitingLimit: 2 });
  const first = take({ waitMs: 10_000 });
  const second = take({ waitMs: 10_000 });
  await settled();
  await assert.rejects(take({ waitMs: 10_000 }), code("overloaded"));
  await dispatcher.drain();
  assert.deepEqual([await first, await second], [[], []]);
  await assert.rejects(take(), code("draining"));
});

test("the next epoch of the same owner restarts nothing", async (context) => {
  const { world, dispatcher } = await desk(context);
  world.cluster("c1");
  const id = world.start("c1");
  const shard = world.shard("c1");
  world.store.reopen(shard);
  dispatcher.onOwned(shard, epoch(2), epoch(1));
  await settled();
  assert.equal(world.job(id).attempt, 1);
});
