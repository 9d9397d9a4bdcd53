import assert from "node:assert/strict";
import test from "node:test";
import { Problem, type ProblemCode } from "../../infra/errors.js";
import { Progress } from "../../replication/progress.js";
import { Room } from "../../routing/index.js";
import { WriteRates } from "../../services/access/write-rates.js";
import type { RequestContext } from "../../services/api.js";
import { Face } from "../../services/face.js";
import { epoch, position, shardId } from "../../shards/ids.js";
import { ManualTime, settled } from "../harness/manual-time.js";

const is =
  (code: ProblemCode) =>
  (error: unknown): boolean =>
    error instanceof Problem && error.code === code;

/** A face before parts that only remember what they were asked. */
function standing(writesPerSecond: number | null = null) {
  const time = new ManualTime();
  const nothing = (): void => undefined;
  const asked: { readonly what: string; readonly at: number; readonly waitMs?: number; readonly rows?: number }[] = [];
  const ended: { now: number; stated: number | null; told: number | null }[] = [];
  /** Keys that the owner knows, and those that have arrived here. */
  const used = new Set<string>();
  const copied = new Set<string>();
  let loading = false;
  let failure: Problem | undefined;
  const progress = new Progress(time, { head: () => undefined } as never);
  const parts = {
    site: "east",
    node: "n1",
    servedBy: "east/n1",
    shards: 4,
    time,
    progress,
    config: { idempotencyRetentionMs: 1_000 },
    metrics: { beforeScrape: nothing, writes: { inc: nothing } },
    map: { onChange: nothing },
    leases: { onChange: nothing },
    jobEvents: { on: nothing },
    data: {
      pool: { query: async () => ({ rows: ended }) },
      db: {
        selectFrom: () => parts.data.db,
        select: () => parts.data.db,
        where: () => parts.data.db,
        executeTakeFirst: async () => {
          asked.push({ what: "worker", at: time.monotonic() });
          return { id: "w" };
        },
      },
    },
    dispatcher: {
      take: async ({ waitMs }: { waitMs: number }) => {
        asked.push({ what: "take", at: time.monotonic(), waitMs });
        return [];
      },
    },
    queries: { keys: async (_tenant: string, key: string) => (copied.has(key) ? [{ shard: 1 }] : []) },
    restorer: { shardWaits: () => loading },
    router: {
      room: new Room(4),
      execute: async ({ command, context }: { command: { rows: unknown[] }; context: { key: string | null } }) => {
        if (failure !== undefined) throw failure;
        asked.push({ what: "load", at: time.monotonic(), rows: command.rows.length });
        const replayed = context.key !== null && used.has(context.key);
        used.add(context.key ?? "");
        return { result: { status: 200, body: [], ...(replayed ? { replayed } : {}) }, route: "local" };
      },
    },
  };
  const book = { limits: () => ({ id: "", maxClusters: null, writesPerSecond }) };
  const quotas = { reserve: async () => nothing };
  const writes = new WriteRates(book, time);
  const finishes = {
    keep: async () => {
      asked.push({ what: "keep", at: time.monotonic() });
      return "key";
    },
  };
  const face = new Face(parts as never, {} as never, quotas as never, writes, {} as never, finishes as never);
  const context = (ms: number, minimum?: number): RequestContext => ({
    requestId: "r",
    caller: { tenant: "", principal: "p" },
    deadline: time.monotonic() + ms,
    durability: "local",
    consistency: "local",
    ...(minimum === undefined
      ? {}
      : { minPosition: { shard: shardId(1), epoch: epoch(2), position: position(minimum) } }),
  });
  return {
    time,
    face,
    asked,
    ended,
    progress,
    writes,
    copied,
    context,
    room: parts.router.room,
    fail: (problem?: Problem) => (failure = problem),
    loads: (is: boolean) => (loading = is),
  };
}

const never = new AbortController().signal;

test("a take and a worker's heartbeat wait until this datacenter has what the caller has seen", async () => {
  const { time, face, asked, progress, context } = standing();
  const began = time.monotonic();
  const take = face.takeTasks(context(25_000, 7), { workerId: "w", waitMs: 20_000, max: 1 }, never);
  await time.advance(10_000);
  assert.equal(asked.length, 0);
  progress.reached(shardId(1), epoch(2), position(7));
  await take;
  // What is left of the deadline is still waited for a task.
  assert.deepEqual(asked, [{ what: "take", at: began + 10_000, waitMs: 15_000 }]);
  await face.takeTasks(context(25_000), { workerId: "w", waitMs: 20_000, max: 1 }, never);
  assert.equal(asked.at(-1)?.waitMs, 20_000);
  const beat = face.workerHeartbeat(context(25_000, 8), "w");
  await time.advance(10_000);
  assert.equal(asked.length, 2);
  progress.reached(shardId(1), epoch(2), position(8));
  await beat;
  assert.equal(asked.at(-1)?.what, "worker");
});

test("a take whose position does not come is refused at its deadline; one of an epoch that ended is lost", async () => {
  const { time, face, asked, ended, progress, context } = standing();
  const late = assert.rejects(
    face.takeTasks(context(5_000, 7), { workerId: "w", waitMs: 0, max: 1 }, never),
    is("deadline_exceeded"),
  );
  await time.advance(5_000);
  await late;
  progress.reached(shardId(1), epoch(3), position(1));
  ended.push({ now: 3, stated: 6, told: null });
  const take = face.takeTasks(context(5_000, 7), { workerId: "w", waitMs: 0, max: 1 }, never);
  await assert.rejects(take, is("position_lost"));
  assert.deepEqual(asked, []);
});

test("whether an epoch ended without a position is waited for until it is known, and no read passes before", async () => {
  const { time, face, asked, ended, progress, context, loads, room } = standing();
  const beat = (ms: number): Promise<string> =>
    face.workerHeartbeat(context(ms, 7), "w").then(
      () => "served",
      (error: unknown) => (error instanceof Problem ? error.code : String(error)),
    );
  const know = (now: number, stated: number | null, told: number | null): void => {
    ended.splice(0, 1, { now, stated, told });
  };
  progress.reached(shardId(1), epoch(5), position(1));
  // The history of a copy that loads has gaps: what it says of a later epoch says nothing of this one.
  know(5, null, 90);
  loads(true);
  const [late, lost] = [beat(1_000), beat(10_000)];
  await time.advance(1_000);
  assert.equal(await late, "deadline_exceeded");
  assert.deepEqual([asked.length, room.waiting], [0, 1]);
  know(5, 6, null);
  await time.advance(200);
  assert.deepEqual([await lost, await beat(0)], ["position_lost", "position_lost"]);
  // The own open is in the log, and the database has not heard.
  loads(false);
  know(2, null, null);
  const early = beat(10_000);
  await time.advance(500);
  assert.equal(asked.length, 0);
  know(3, 9, null);
  await time.advance(200);
  assert.equal(await early, "served");
  // So far back that nobody knows.
  know(5, null, null);
  assert.deepEqual([await beat(1_000), room.waiting], ["served", 0]);
});

test("those that wait for positions leave room for others, and give theirs back when their clients leave", async () => {
  const { time, face, progress, context, room } = standing();
  const left = new AbortController();
  const take = (signal = never): Promise<unknown> =>
    face.takeTasks(context(600_000, 7), { workerId: "w", waitMs: 0, max: 1 }, signal);
  const gone = take(left.signal);
  const waits = take();
  await settled();
  assert.equal(room.waiting, 2);
  await assert.rejects(take(), is("overloaded"));
  left.abort();
  await gone;
  await settled();
  assert.equal(room.waiting, 1);
  const next = take();
  progress.reached(shardId(1), epoch(2), position(7));
  await Promise.all([waits, next]);
  assert.equal(room.waiting, 0);
  // What is there already needs no room.
  const elsewhere = [room.place(), room.place()];
  for (const each of elsewhere) each.for("west");
  await take();
  await time.advance(0);
});

test("a take that waits for a position ends when its client leaves", async () => {
  const { face, asked, context } = standing();
  const left = new AbortController();
  const take = face.takeTasks(context(600_000, 7), { workerId: "w", waitMs: 0, max: 1 }, left.signal);
  await settled();
  left.abort();
  // The dispatcher knows what to do for nobody.
  await take;
  assert.equal(asked.length, 1);
});

const loadRows = (count: number) =>
  Array.from({ length: count }, (_, i) => ({
    id: `c${i}`,
    name: "n",
    spec: "{}",
    state: "{}",
    labels: "{}",
    expiresAt: null,
  }));

test("rows that come again with their key wait for no turn, and count once", async () => {
  const { face, asked, writes, copied, context } = standing(10);
  const keyed = { ...context(60_000), idempotencyKey: "k" };
  await face.load(keyed, shardId(1), loadRows(8));
  // The owner knows the key, the copy here does not yet: what was counted is given back.
  await face.load(keyed, shardId(1), loadRows(2));
  writes.take("");
  copied.add("k");
  await face.load(keyed, shardId(1), loadRows(500));
  assert.equal(asked.length, 3);
  writes.take("");
  assert.throws(() => writes.take(""), is("quota_exceeded"));
});

test("a finish is kept where its owner can't be reached, or where too many wait for that owner; not where it was refused", async () => {
  const { face, asked, context, fail } = standing();
  const finish = { taskId: "j1-abcdefgh.1.1", token: "t", workerId: "w", status: "ok" } as const;
  for (const code of ["owner_unreachable", "overloaded", "stale_token"] as const) {
    fail(new Problem(code));
    const kept = code === "stale_token" ? code : "outcome_unknown";
    await assert.rejects(face.execute(context(1_000), { type: "task.finish", ...finish }), is(kept));
  }
  assert.deepEqual(
    asked.map(({ what }) => what),
    ["keep", "keep"],
  );
});

test("each row of a bulk request counts as a write of its tenant; what had no effect does not", async () => {
  const { time, face, asked, writes, context, fail } = standing(10);
  const began = time.monotonic();
  fail(new Problem("overloaded"));
  for (let n = 0; n < 5; n++)
    await assert.rejects(face.load(context(60_000), shardId(1), loadRows(100)), is("overloaded"));
  fail();
  await face.load(context(60_000), shardId(1), loadRows(100));
  assert.throws(() => writes.take(""), is("quota_exceeded"));
  const second = face.load(context(60_000), shardId(2), loadRows(500));
  const third = assert.rejects(face.load(context(60_000), shardId(3), loadRows(10)), is("quota_exceeded"));
  await time.advance(20_000);
  await Promise.all([second, third]);
  assert.deepEqual(
    asked.map(({ rows: count, at }) => [count, Math.round((at - began) / 1_000)]),
    [
      [100, 0],
      [500, 9],
    ],
  );
});
