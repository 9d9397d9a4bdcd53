import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import { databaseOf } from "./database.js";
import {
  allEqual,
  allServe,
  at,
  body,
  followed,
  idsIn,
  idsOf,
  problem,
  sameHistory,
  send,
  settleMs,
  shardMap,
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

interface Operation extends Json {
  readonly id: string;
  readonly status: string;
  readonly progress: { readonly done: number; readonly total: number };
  readonly shards: readonly { readonly shard: number; readonly status: string; readonly error: string | null }[];
}

const seenDead = (stack: TestStack, by: string, dc: string): Promise<boolean> =>
  stack.until(
    async () =>
      body<{ datacenters: { name: string; state: string }[] }>(
        await send(stack, by, "GET", "/v1/topology"),
        200,
      ).datacenters.some(({ name, state }) => name === dc && state === "dead"),
    settleMs,
    `${by} sees that ${dc} is dead`,
  );

describe("planned and forced changes of ownership", { timeout: 300_000 }, () => {
  let stack: TestStack;
  before(async () => {
    stack = await startStack({ env: { HOTHOT_FAILBACK_AFTER_MS: "1500" } });
    // Each must have heard that the others could open shards, before one is sent to them.
    await allServe(stack);
  });
  afterAll(() => stack?.stop());

  const owned = async (dc: string): Promise<number> =>
    (await shardMap(stack, "central")).filter((s) => s.owner === dc).length;
  const start = async (kind: string, request: Json, from = "east"): Promise<Operation> =>
    body<Operation>(await send(stack, from, "POST", `/v1/${kind}`, request), 202);
  const ended = async (kind: string, operation: Operation, from: string): Promise<Operation> => {
    let last = operation;
    await stack.until(
      async () => {
        last = body<Operation>(await send(stack, from, "GET", `/v1/${kind}/${operation.id}`), 200);
        return last.status !== "running";
      },
      settleMs,
      `${operation.id} ends`,
    );
    return last;
  };
  /** Writes all the time, over all datacenters, while `work` goes on; none may fail. */
  async function underLoad<T>(work: () => Promise<T>): Promise<{ result: T; writes: number; worstMs: number }> {
    let going = true;
    let writes = 0;
    let worstMs = 0;
    const failures: string[] = [];
    const writer = async (dc: string, n: number): Promise<void> => {
      for (let i = 0; going; i++) {
        const began = performance.now();
        const answer = await send(stack, dc, "PUT", `/v1/clusters/load-${n}-${i % 40}`, { name: "load", spec: { i } });
        worstMs = Math.max(worstMs, performance.now() - began);
        if (answer.status >= 300) failures.push(`${answer.status} ${answer.text}`);
        writes++;
      }
    };
    const writers = stack.dcs.flatMap((dc, n) => [writer(dc, n), writer(dc, n + 10)]);
    const result = await work();
    going = false;
    await Promise.all(writers);
    assert.deepEqual(failures, []);
    return { result, writes, worstMs };
  }

  it("a dry run shows each shard's way and moves nothing", async () => {
    const before = await shardMap(stack, "east");
    const plan = body<{
      shards: { shard: number; from: string; to: string; unapplied: number; lost: number }[];
    }>(await send(stack, "west", "POST", "/v1/drains", { dc: "east", dryRun: true }), 200);
    assert.deepEqual(
      plan.shards.map((s) => s.shard).sort((a, b) => a - b),
      before.filter((s) => s.owner === "east").map((s) => s.shard),
    );
    // What was written just now is in the log a moment later.
    const takeover = await stack.until(
      async () => {
        const answer = await send(stack, "west", "POST", "/v1/takeovers", { dc: "east", dryRun: true });
        const found = body<typeof plan>(answer, 200);
        return found.shards.every((shard) => shard.lost === 0) && found;
      },
      settleMs,
      "the log has all",
    );
    for (const shards of [plan.shards, takeover.shards])
      for (const shard of shards) {
        assert.equal(shard.from, "east");
        assert.ok(["central", "west"].includes(shard.to));
        assert.equal(shard.lost, 0);
      }
    assert.deepEqual(
      (await shardMap(stack, "east")).map((s) => s.epoch),
      before.map((s) => s.epoch),
    );
  });

  it("a shard is switched over; a request that asks for it again has nothing to do", async () => {
    const shard = at(
      (await shardMap(stack, "east")).filter((s) => s.owner === "east"),
      0,
    ).shard;
    const keyed = at(idsIn(shard, "keyed", 1), 0);
    const put = (dc: string): Promise<Answered> =>
      send(
        stack,
        dc,
        "PUT",
        `/v1/clusters/${keyed}`,
        { name: "k", spec: {} },
        { "idempotency-key": "before-the-move" },
      );
    const first = await put("central");
    body(first, 201);
    const done = await ended("switchovers", await start("switchovers", { shard, to: "west" }, "central"), "central");
    assert.equal(done.status, "complete");
    // The former owner, the new one, and the one that was asked know at once; the same again has nothing to do there.
    for (const dc of stack.dcs) {
      const head = (await shardMap(stack, dc)).find((s) => s.shard === shard);
      assert.equal(head?.owner, "west", dc);
      const again = await ended("switchovers", await start("switchovers", { shard, to: "west" }, dc), "east");
      assert.deepEqual([again.status, again.shards.length], ["complete", 0], JSON.stringify(again));
    }
    problem(await send(stack, "east", "POST", "/v1/switchovers", { shard, to: "nowhere" }), "invalid_request");
    // The new owner gives the first answer to a key of the former one.
    for (const dc of stack.dcs) {
      const again = await put(dc);
      assert.equal(again.headers.get("hothot-served-by"), "west/n1");
      assert.equal(again.headers.get("idempotency-replayed"), "true");
      assert.deepEqual([again.status, again.text], [first.status, first.text]);
    }
  });

  it("an idempotency key begins one operation, wherever the request is repeated", async () => {
    const { shard } = at(
      (await shardMap(stack, "east")).filter((s) => s.owner === "east"),
      0,
    );
    const headers = { "idempotency-key": "one-move" };
    const ask = (from: string, to: string): Promise<Answered> =>
      send(stack, from, "POST", "/v1/switchovers", { shard, to }, headers);
    const first = await ask("central", "west");
    const operation = body<Operation>(first, 202);
    assert.equal((await ended("switchovers", operation, "east")).status, "complete");
    const back = await ended("switchovers", await start("switchovers", { shard, to: "east" }), "east");
    assert.equal(back.status, "complete", JSON.stringify(back));
    for (const dc of stack.dcs) {
      const again = await ask(dc, "west");
      assert.deepEqual([again.status, again.text], [202, first.text]);
      assert.equal(again.headers.get("idempotency-replayed"), "true");
      problem(await ask(dc, "central"), "idempotency_key_reused");
    }
    // Where it began has forgotten it, as one that is away can't be asked: the log's copies know the key.
    const database = databaseOf(stack, "central");
    try {
      const { rowCount } = await database.pool.query("DELETE FROM operations WHERE id = $1", [operation.id]);
      assert.equal(rowCount, 1);
    } finally {
      await database.close();
    }
    for (const dc of stack.dcs) {
      const again = await ask(dc, "west");
      assert.deepEqual([again.status, again.text], [202, first.text]);
      problem(await ask(dc, "central"), "idempotency_key_reused");
    }
    assert.equal((await shardMap(stack, "east")).find((s) => s.shard === shard)?.owner, "east");
  });

  it("a key pauses the takeovers once, wherever the request is repeated", async () => {
    const set = (from: string, paused: boolean, key?: string): Promise<Answered> =>
      send(stack, from, "PUT", "/v1/failover", { paused }, key === undefined ? {} : { "idempotency-key": key });
    const first = await set("east", true, "pause-once");
    assert.equal(body(first, 200)["paused"], true);
    body(await set("central", false), 200);
    for (const dc of stack.dcs) {
      const database = databaseOf(stack, dc);
      try {
        await stack.until(
          async () =>
            (await database.pool.query("SELECT 1 FROM idempotency_keys WHERE body ->> 'paused' = 'true'")).rowCount ===
            1,
          settleMs,
          `${dc} knows the key`,
        );
      } finally {
        await database.close();
      }
      problem(await set(dc, false, "pause-once"), "idempotency_key_reused");
      const again = await set(dc, true, "pause-once");
      assert.equal(again.text, first.text);
      assert.equal(again.headers.get("idempotency-replayed"), "true");
    }
    for (const dc of stack.dcs)
      await stack.until(
        async () => body(await send(stack, dc, "GET", "/v1/topology"), 200)["failoverPaused"] === false,
        settleMs,
        `${dc} knows that takeovers go on`,
      );
  });

  it("a datacenter's shards are switched over to one; what is cancelled on its way ends with whole partitions", async () => {
    const before = await shardMap(stack, "east");
    const mine = before.filter((s) => s.owner === "east");
    const database = databaseOf(stack, "east");
    const client = await database.connect();
    let drain: Operation;
    try {
      // The first step waits until it is cancelled.
      await client.query("BEGIN");
      await client.query("SELECT 1 FROM shard_head WHERE shard = ANY ($1) FOR UPDATE", [mine.map((s) => s.shard)]);
      drain = await start("drains", { dc: "east" }, "central");
      body(await send(stack, "west", "POST", `/v1/drains/${drain.id}/cancel`, {}), 200);
    } finally {
      await client.query("ROLLBACK");
      client.release();
      await database.close();
    }
    drain = await ended("drains", drain, "west");
    assert.equal(drain.status, "cancelled", JSON.stringify(drain));
    assert.deepEqual(drain.progress, { done: mine.length, total: mine.length });
    assert.ok(drain.shards.some((s) => s.status === "complete") && drain.shards.every((s) => s.status !== "failed"));
    const now = await shardMap(stack, "east");
    for (const { shard, status } of drain.shards)
      assert.equal(at(now, shard).owner === "east", status === "cancelled", `shard ${shard}`);
    const owners = (partition: number): Set<string | null> =>
      new Set(mine.filter((s) => s.partition === partition).map((s) => at(now, s.shard).owner));
    for (const { partition } of mine) assert.equal(owners(partition).size, 1, `partition ${partition}`);
    // To cancel it again changes nothing.
    assert.deepEqual(body(await send(stack, "west", "POST", `/v1/drains/${drain.id}/cancel`, {}), 200), drain);
    const rest = await ended("switchovers", await start("switchovers", { dc: "east", to: "central" }, "west"), "east");
    assert.deepEqual([rest.status, await owned("east")], ["complete", 0], JSON.stringify(rest));
    problem(await send(stack, "west", "POST", `/v1/switchovers/${rest.id}/cancel`, {}), "invalid_transition");
    const back = await ended("rebalances", await start("rebalances", {}), "east");
    assert.equal(back.status, "complete", JSON.stringify(back));
  });

  it("a drain under load: no request fails, the datacenter owns nothing, any datacenter shows how far it is", async (t) => {
    const { result, writes, worstMs } = await underLoad(async () =>
      ended("drains", await start("drains", { dc: "east" }, "west"), "central"),
    );
    assert.equal(result.status, "complete", JSON.stringify(result));
    assert.deepEqual(result.progress.done, result.progress.total);
    assert.equal(await owned("east"), 0);
    t.diagnostic(
      `${result.progress.total} shards moved under ${writes} writes, the slowest took ${Math.round(worstMs)} ms`,
    );
  });

  it("a rebalance spreads the shards evenly, and an automatic failback does not undo it", async () => {
    const { result } = await underLoad(async () => ended("rebalances", await start("rebalances", {}), "east"));
    assert.equal(result.status, "complete", JSON.stringify(result));
    const counts = await Promise.all(stack.dcs.map(owned));
    assert.ok(Math.max(...counts) - Math.min(...counts) <= 6, String(counts));
    const history = await sameHistory(stack, stack.dcs);
    for (const kind of ["switchover", "drain", "rebalance"])
      assert.ok(history.some((change) => change.kind === kind && followed(change)));
    for (const { kind, by, divergent, from, to } of history.filter(({ from }) => from !== null))
      assert.deepEqual([by, divergent, from === to], ["anonymous", 0, false], kind);
  });

  it("a job goes on where it was: no task runs again, and a finish comes with the token that it had", async () => {
    const id = at(idsOf(await shardMap(stack, "east"), "east", "moved", 1), 0);
    const nodes = Array.from({ length: 6 }, (_, n) => `n${n}`);
    body(await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: "moved", spec: { nodes } }), 201);
    const job = body(await send(stack, "east", "POST", `/v1/clusters/${id}/operations`, { type: "create" }), 202);
    const of = async (dc: string): Promise<Json> =>
      body(
        await send(stack, dc, "GET", `/v1/jobs/${String(job["id"])}`, undefined, { "hothot-consistency": "owner" }),
        200,
      );
    const shard = at(
      (await shardMap(stack, "east")).filter((s) => s.shard === Number(/^j(\d+)-/.exec(String(job["id"]))?.[1])),
      0,
    ).shard;
    const tasksOf = async (): Promise<{ id: string; status: string; tries: number }[]> =>
      body<{ items: { id: string; status: string; tries: number }[] }>(
        await send(stack, "west", "GET", `/v1/jobs/${String(job["id"])}/tasks`),
        200,
      ).items;
    const finished = await stack.until(
      async () => {
        const ok = (await tasksOf()).filter((task) => task.status === "ok");
        return ok.length > 0 && ok;
      },
      settleMs,
      "some tasks are finished",
    );
    const done = await ended("switchovers", await start("switchovers", { shard, to: "central" }), "east");
    assert.equal(done.status, "complete", JSON.stringify(done));
    await stack.until(async () => (await of("central"))["status"] === "complete", settleMs, "the job ends");
    assert.equal((await of("central"))["attempt"], 1);
    const tasks = await tasksOf();
    assert.equal(tasks.length, 6 * 7);
    assert.ok(tasks.every((task) => task.status === "ok"));
    for (const task of finished)
      assert.equal(tasks.find(({ id }) => id === task.id)?.tries, task.tries, `${task.id} was not done again`);
  });

  it("a target that is dead is refused before anything moves, and the owner goes on in its epoch", async () => {
    const before = await shardMap(stack, "east");
    const shard = at(
      before.filter((s) => s.owner === "east"),
      0,
    );
    await stack.simulate("crash", "west");
    const done = await ended("switchovers", await start("switchovers", { shard: shard.shard, to: "west" }), "east");
    assert.equal(done.status, "failed");
    assert.match(String(done.shards[0]?.error), /can't (open|be reached)/);
    const now = at(
      (await shardMap(stack, "east")).filter((s) => s.shard === shard.shard),
      0,
    );
    assert.deepEqual([now.owner, now.epoch, now.state], ["east", shard.epoch, "owned"]);
  });

  it("what a takeover moved fails back by itself, without a failed request", async () => {
    await stack.until(async () => (await owned("west")) === 0, settleMs, "west's shards are taken over");
    await stack.simulate("restart", "west");
    await underLoad(() => stack.until(async () => (await owned("west")) >= 18, 60_000, "west's shards are back"));
    const history = body<{
      items: { kind: string; to: string }[];
    }>(await send(stack, "east", "GET", "/v1/history?limit=1000"), 200);
    assert.ok(history.items.some((change) => change.kind === "failback" && change.to === "west"));
    await allServe(stack);
    await allEqual(stack, stack.dcs[1] ?? "");
  });

  it("a takeover of a datacenter that is alive is refused, unless it is forced; then it loses nothing that was published", async () => {
    problem(await send(stack, "east", "POST", "/v1/takeovers", { dc: "central" }), "owner_reachable");
    const again = { "idempotency-key": "forced" };
    const shard = at(
      (await shardMap(stack, "east")).filter((s) => s.owner === "central"),
      0,
    ).shard;
    const request = { shard, to: "west", force: true };
    const first = await send(stack, "east", "POST", "/v1/takeovers", request, again);
    const done = await ended("takeovers", body<Operation>(first, 202), "east");
    assert.equal(done.status, "complete", JSON.stringify(done));
    // The same request, and the same wish anew.
    assert.equal((await send(stack, "central", "POST", "/v1/takeovers", request, again)).text, first.text);
    problem(await send(stack, "east", "POST", "/v1/takeovers", request), "already_moving");
    assert.equal(
      at(
        (await shardMap(stack, "east")).filter((s) => s.shard === shard),
        0,
      ).owner,
      "west",
    );
    await allServe(stack);
    await allEqual(stack, stack.dcs[1] ?? "");
  });

  it("paused failover stops automatic takeovers, says so, and goes on when resumed", async () => {
    body(await send(stack, "east", "PUT", "/v1/failover", { paused: true }), 200);
    await stack.until(
      async () =>
        body<{ failoverPaused: boolean }>(await send(stack, "west", "GET", "/v1/topology"), 200).failoverPaused,
      settleMs,
      "all know",
    );
    const topology = body<{
      automaticTakeover: { possible: boolean; why: string };
    }>(await send(stack, "west", "GET", "/v1/topology"), 200);
    assert.equal(topology.automaticTakeover.possible, false);
    assert.match(topology.automaticTakeover.why, /paused/);
    const had = await owned("west");
    await stack.simulate("crash", "west");
    await seenDead(stack, "east", "west");
    problem(
      await send(
        stack,
        "east",
        "PUT",
        `/v1/clusters/${at(idsOf(await shardMap(stack, "east"), "west", "p", 1), 0)}`,
        { name: "x", spec: {} },
        { "hothot-timeout-ms": "3000" },
      ),
      "owner_unreachable",
    );
    assert.equal(await owned("west"), had);
    body(await send(stack, "east", "PUT", "/v1/failover", { paused: false }), 200);
    await stack.until(async () => (await owned("west")) === 0, settleMs, "west's shards are taken over");
    await stack.simulate("restart", "west");
    await allServe(stack);
  });

  it("a database that is another incarnation closes all; everybody opens anew with the next epoch, and nothing is lost (rule i)", async () => {
    const before = await shardMap(stack, "east");
    const id = at(idsOf(before, "central", "kept", 1), 0);
    body(await send(stack, "central", "PUT", `/v1/clusters/${id}`, { name: "kept", spec: {} }), 201);
    const database = databaseOf(stack, "central");
    try {
      await database.pool.query("UPDATE meta SET restore_number = restore_number + 1");
      await database.pool.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user",
      );
    } finally {
      await database.close();
    }
    await stack.until(
      async () => {
        const now = await shardMap(stack, "east");
        return now.every(
          (s) => s.owner !== "central" || s.epoch > (before.find((b) => b.shard === s.shard)?.epoch ?? 0),
        );
      },
      60_000,
      "central opens its shards again",
    );
    await allServe(stack);
    await stack.until(
      async () =>
        (await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: "kept", spec: { again: true } })).status ===
        200,
      settleMs,
      "writes go on",
    );
    await allEqual(stack, stack.dcs[1] ?? "");
  });
});

describe("two datacenters with a witness", { timeout: 120_000 }, () => {
  let stack: TestStack;
  let initial: ShardView[];
  before(async () => {
    // Only by hand in this test.
    stack = await startStack({ dcs: ["a", "b"], witness: "w", env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
    initial = await shardMap(stack, "a");
  });
  afterAll(() => stack?.stop());

  /** Why no datacenter could be taken over by itself now. */
  const whyNot = (dc: string): Promise<string> =>
    stack.until(
      async () => {
        const { automaticTakeover } = body<{ automaticTakeover: { possible: boolean; why: string } }>(
          await send(stack, dc, "GET", "/v1/topology"),
          200,
        );
        return !automaticTakeover.possible && automaticTakeover.why;
      },
      settleMs,
      `${dc} says that no datacenter could be taken over`,
    );

  it("the survivor owns the dead one's shards by the witness's vote, and the dead one returns", async () => {
    const topology = body<{
      witnesses: { name: string; state: string }[];
      automaticTakeover: { possible: boolean };
    }>(await send(stack, "a", "GET", "/v1/topology"), 200);
    assert.deepEqual(topology.witnesses, [{ name: "w", state: "serving" }]);
    assert.equal(topology.automaticTakeover.possible, true);
    await stack.simulate("crash", "a");
    await stack.until(
      async () => (await shardMap(stack, "b")).every((s) => s.owner === "b" && s.state === "owned"),
      settleMs,
      "b owns all",
    );
    const id = at(idsOf(await shardMap(stack, "b"), "b", "two", 1), 0);
    body(
      await send(
        stack,
        "b",
        "PUT",
        `/v1/clusters/${id}`,
        { name: "x", spec: {} },
        { "hothot-durability": "replicated" },
      ),
      201,
    );
    assert.match(await whyNot("b"), /^a is not heard/);
    await stack.simulate("restart", "a");
    await allServe(stack);
    await allEqual(stack, stack.dcs[1] ?? "");
  });

  it("what was taken over goes home when an operator says so", async () => {
    const home = initial.filter((s) => s.owner === "a").map((s) => s.shard);
    const { shards: planned } = body<{ shards: { shard: number; from: string; to: string; lost: number }[] }>(
      await send(stack, "a", "POST", "/v1/failbacks", { dc: "a", dryRun: true }),
      200,
    );
    assert.deepEqual(
      planned.map((s) => s.shard).sort((x, y) => x - y),
      home,
    );
    assert.ok(planned.every((s) => s.from === "b" && s.to === "a" && s.lost === 0));
    const { id } = body(await send(stack, "a", "POST", "/v1/failbacks", { dc: "a" }), 202);
    const done = await stack.until(
      async () => {
        const found = body<Operation>(await send(stack, "b", "GET", `/v1/failbacks/${String(id)}`), 200);
        return found.status !== "running" && found;
      },
      settleMs,
      "the failback ends",
    );
    assert.deepEqual([done.status, done.shards.length], ["complete", home.length], JSON.stringify(done));
    const history = await sameHistory(stack, stack.dcs);
    for (const s of await shardMap(stack, "b")) {
      assert.equal(s.owner, at(initial, s.shard).owner);
      if (s.owner === "a")
        assert.deepEqual(
          history.filter(({ shard }) => shard === s.shard).map(({ kind, from, to }) => `${kind} ${from} ${to}`),
          ["initial null a", "takeover a b", "failback b a"],
        );
    }
  });

  it("without the witness a dead datacenter's shards wait, since one of two can't outvote the other", async () => {
    await stack.simulate("crash", "w");
    assert.match(await whyNot("a"), /^w is not heard/);
    const moved = (await shardMap(stack, "a")).filter((s) => s.owner === "b");
    assert.ok(moved.length > 0);
    await stack.simulate("crash", "b");
    // What is sent to it while it may still be there has an unknown outcome.
    await seenDead(stack, "a", "b");
    const refused = await send(
      stack,
      "a",
      "PUT",
      `/v1/clusters/${at(idsOf(await shardMap(stack, "a"), "b", "q", 1), 0)}`,
      { name: "x", spec: {} },
      { "hothot-timeout-ms": "5000" },
    );
    assert.equal(refused.status, 503);
    assert.ok(["owner_unreachable", "no_lease"].includes(String((JSON.parse(refused.text) as Json)["code"])));
    assert.equal((await shardMap(stack, "a")).filter((s) => s.owner === "b").length, moved.length);
    await stack.simulate("restart", "w");
    await stack.until(
      async () => (await shardMap(stack, "a")).every((s) => s.owner === "a"),
      settleMs,
      "with the witness's vote a owns all",
    );
  });
});
