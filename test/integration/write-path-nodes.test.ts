import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after as afterAll, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import { databaseOf } from "./database.js";
import { readLog } from "./log-reader.js";
import {
  after,
  allEqual,
  allServe,
  at,
  body,
  idsIn,
  idsOf,
  placeOf,
  placeText,
  problem,
  send,
  settleMs,
  shardMap,
  timed,
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

/** Bytes that have come to whoever listens on the URL's port, and that it has not read. */
const bytesWaiting = (url: string): number => {
  const port = Number(new URL(url).port).toString(16).toUpperCase().padStart(4, "0");
  // A line: number, local address:port, remote address:port, state, tx_queue:rx_queue, ...
  return readFileSync("/proc/net/tcp", "utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[1]?.endsWith(`:${port}`) === true && fields[3] === "01")
    .reduce((sum, fields) => sum + parseInt(fields[4]?.split(":")[1] ?? "0", 16), 0);
};

describe("several processes of a datacenter", { timeout: 240_000 }, () => {
  let stack: TestStack;
  let map: ShardView[];
  /** `<dc>/<node>`, as Hothot-Served-By names them. */
  let nodes: string[];
  before(async () => {
    stack = await startStack({ steady: true, nodes: 2 });
    map = await shardMap(stack, "east");
    nodes = stack.dcs.flatMap((dc) => [`${dc}/n1`, `${dc}/n2`]);
  });
  afterAll(() => stack?.stop());

  const urls = {
    url: (node: string): string => {
      const [dc = "", number = ""] = node.split("/n");
      return stack.stack.site(dc).nodes[Number(number) - 1]?.url ?? "";
    },
  };
  const on = (
    node: string,
    method: string,
    where: string,
    data?: unknown,
    headers?: Record<string, string>,
  ): Promise<Answered> => send(urls, node, method, where, data, headers);
  const put = (node: string, id: string, headers?: Record<string, string>, name = "n"): Promise<Answered> =>
    on(node, "PUT", `/v1/clusters/${id}`, { name, spec: {} }, headers);

  /** Which of the datacenter's two processes acts for it, and the other one. */
  const replicatorOf = async (dc: string): Promise<Record<"acts" | "other", { node: string; pid: number }>> => {
    const database = databaseOf(stack, dc);
    try {
      const { rows } = await database.pool.query<{ holder: string }>(
        "SELECT holder FROM locks WHERE name = 'replicator'",
      );
      const found = [1, 2].map((n) => {
        const pid = stack.stack.site(dc).nodes[n - 1]?.process()?.pid;
        assert.ok(pid !== undefined);
        return { node: `${dc}/n${n}`, pid };
      });
      const acts = at(rows, 0).holder.startsWith("n1") ? 0 : 1;
      return { acts: at(found, acts), other: at(found, 1 - acts) };
    } finally {
      await database.close();
    }
  };
  /** The operation that was just begun moves its one shard. */
  const moves = async (begun: Answered, to: string): Promise<void> => {
    const { id, kind } = body(begun, 202);
    const ended = await stack.until(
      async () => {
        const found = body<Json & { shards: Json[] }>(
          await on("west/n1", "GET", `/v1/${String(kind)}s/${String(id)}`),
          200,
        );
        return found["status"] !== "running" && found;
      },
      settleMs,
      "the end of the operation",
    );
    assert.equal(ended["status"], "complete", JSON.stringify(ended));
    assert.equal(ended.shards.length, 1, "an operation that moves nothing");
    await stack.until(
      async () =>
        (await shardMap(stack, "west")).find(({ shard }) => shard === ended.shards[0]?.["shard"])?.owner === to,
      settleMs,
      `the shard is ${to}'s`,
    );
  };

  it("all serve any request; what they own they do themselves", async () => {
    const served = new Set<string>();
    for (const owner of stack.dcs)
      for (const [index, node] of nodes.entries())
        for (const [nth, durability] of ["local", "replicated"].entries()) {
          const id = at(idsOf(map, owner, `any-${index}`, 2), nth);
          const answer = await put(node, id, { "hothot-durability": durability });
          body(answer, 201);
          assert.equal(answer.headers.get("hothot-owner"), owner);
          const by = answer.headers.get("hothot-served-by") ?? "";
          assert.ok(nodes.includes(by), by);
          if (node.startsWith(owner)) assert.equal(by, node);
          else assert.ok(by.startsWith(`${owner}/`), by);
          served.add(by);
        }
    assert.equal(served.size, 6);
  });

  it("show a long operation that another one carries out, as any datacenter does", async () => {
    const shard = at(
      map.filter((each) => each.owner === "east"),
      0,
    ).shard;
    for (const [n, node] of (["east/n1", "east/n2", "west/n2"] as const).entries()) {
      const to = n % 2 === 0 ? "central" : "east";
      const begun = body(await on(node, "POST", "/v1/switchovers", { shard, to }), 202);
      const ends = nodes.map(async (each) => {
        let last: Json = begun;
        await stack.until(
          async () => {
            last = body(await on(each, "GET", `/v1/switchovers/${String(begun["id"])}`), 200);
            return last["status"] !== "running";
          },
          settleMs,
          `the end of the operation at ${each}`,
        );
        return last["status"];
      });
      assert.deepEqual(
        await Promise.all(ends),
        nodes.map(() => "complete"),
      );
    }
    await moves(await on("central/n2", "POST", "/v1/switchovers", { shard, to: "east" }), "east");
    map = await shardMap(stack, "east");
  });

  it("plan with what their datacenter knows, not with what each has heard", async () => {
    const { shard } = at(
      map.filter((each) => each.owner === "east"),
      0,
    );
    const { other: still } = await replicatorOf("central");
    process.kill(still.pid, "SIGSTOP");
    let back: Promise<Answered>;
    try {
      await moves(await on("east/n1", "POST", "/v1/switchovers", { shard, to: "central" }), "central");
      // It reads this before it hears of the move.
      back = on(still.node, "POST", "/v1/switchovers", { shard, to: "east" });
      await stack.until(() => bytesWaiting(urls.url(still.node)) > 0, settleMs, "the request is there");
    } finally {
      process.kill(still.pid, "SIGCONT");
    }
    await moves(await back, "east");
    // Asked of either process of the owner, the one that acts for it moves the shard; nobody takes the move for an abandoned one.
    for (let n = 0; n < 6; n++)
      for (const [from, to] of [
        ["east", "central"],
        ["central", "east"],
      ] as const)
        await moves(await on(`${from}/n${1 + (n % 2)}`, "POST", "/v1/switchovers", { shard, to }), to);
    map = await shardMap(stack, "east");
  });

  it("number concurrent writes of a shard densely together", async () => {
    const shard = at(
      map.filter((each) => each.owner === "west"),
      3,
    ).shard;
    const before = placeOf(await put("west/n1", at(idsIn(shard, "first", 1), 0))).position;
    const ids = idsIn(shard, "dense", 200);
    const answers = await Promise.all(
      ids.map((id, n) =>
        put(at(n % 2 === 0 ? ["west/n1", "west/n2"] : nodes, n % (n % 2 === 0 ? 2 : 6)), id, {
          "hothot-durability": n % 5 === 0 ? "replicated" : "local",
        }),
      ),
    );
    for (const answer of answers) body(answer, 201);
    assert.deepEqual(
      answers.map((answer) => placeOf(answer).position).sort((a, b) => a - b),
      Array.from({ length: 200 }, (_, n) => before + 1 + n),
    );
    assert.equal(new Set(answers.map((answer) => answer.headers.get("hothot-served-by"))).size, 2);
    await allEqual(stack, "east");
    const { entries } = await readLog(stack, "west");
    assert.deepEqual(
      entries.filter((entry) => entry.shard === shard).map((entry) => entry.position),
      Array.from({ length: before + 200 }, (_, n) => n + 1),
    );
  });

  it("read each other's writes with Hothot-Min-Position, and share keys and races", async () => {
    for (const owner of stack.dcs) {
      for (let round = 0; round < 6; round++) {
        const id = at(idsOf(map, owner, `own-${round}`, 1), 0);
        const answer = await put(at(nodes, round), id, {}, `round ${round}`);
        body(answer, 201);
        for (const read of await Promise.all(
          nodes.map((node) => on(node, "GET", `/v1/clusters/${id}`, undefined, after(answer))),
        ))
          assert.equal(body(read, 200)["name"], `round ${round}`);
      }
      const id = at(idsOf(map, owner, "key", 1), 0);
      const keyed = await Promise.all(
        Array.from({ length: 24 }, (_, n) => put(at(nodes, n % 6), id, { "idempotency-key": `nodes-${owner}` })),
      );
      assert.equal(new Set(keyed.map((answer) => `${answer.status} ${answer.text}`)).size, 1);
      assert.equal(keyed.filter((answer) => answer.headers.get("idempotency-replayed") === null).length, 1);
      const race = await Promise.all(
        Array.from({ length: 24 }, (_, n) => put(at(nodes, n % 6), id, { "if-match": '"1"' }, `race ${n}`)),
      );
      assert.equal(race.filter((answer) => answer.status === 200).length, 1);
      for (const answer of race) if (answer.status !== 200) problem(answer, "version_mismatch");
    }
  });

  it("run a job's tasks, whichever of them is asked", async () => {
    for (const owner of stack.dcs) {
      const id = at(idsOf(map, owner, "job", 1), 0);
      body(await on(at(nodes, 1), "PUT", `/v1/clusters/${id}`, { name: id, spec: { nodes: ["a", "b"] } }), 201);
      const job = body(await on(at(nodes, 3), "POST", `/v1/clusters/${id}/operations`, { type: "create" }), 202);
      for (const node of nodes)
        await stack.until(
          async () => body(await on(node, "GET", `/v1/jobs/${String(job["id"])}`), 200)["status"] === "complete",
          settleMs,
          `${node} sees the job complete`,
        );
    }
  });

  it("take each other's share of the forwards while one of them stands still", async () => {
    const { acts, other: still } = await replicatorOf("central");
    process.kill(still.pid, "SIGSTOP");
    try {
      const ids = idsOf(await shardMap(stack, "east"), "central", "stands-still", 80);
      const keyed = ids.slice(0, 40).map((id) => put("east/n1", id, { "idempotency-key": id }));
      for (const answer of await Promise.all(keyed)) body(answer, 201);
      // Once it is not heard any more, nothing is given to it, though NATS would.
      for (const answer of await Promise.all(ids.slice(40).map((id) => put("east/n1", id)))) {
        body(answer, 201);
        assert.equal(answer.headers.get("hothot-served-by"), acts.node);
      }
    } finally {
      process.kill(still.pid, "SIGCONT");
    }
    await allServe(stack);
  });

  it("give a shard away only after each of them confirmed: one that stands still calls the move off, and its owner goes on (rule h)", async () => {
    const moved = new Set<number>();
    /** Moves the shard to west. @returns what the operation says of it in the end */
    const move = async (shard: number): Promise<{ readonly status: string; readonly error: string | null }> => {
      const { id } = body(await on("east/n1", "POST", "/v1/switchovers", { shard, to: "west" }), 202);
      const ended = await stack.until(
        async () => {
          const found = body<Json & { shards: { status: string; error: string | null }[] }>(
            await on("east/n1", "GET", `/v1/switchovers/${String(id)}`),
            200,
          );
          return found["status"] !== "running" && at(found.shards, 0);
        },
        settleMs,
        `shard ${shard} has moved or stays`,
      );
      if (ended.status === "complete") moved.add(shard);
      return ended;
    };
    // Who drives the move must not be the one that stands still, nor may that one be gone from the list before the move begins.
    for (let tries = 1; ; tries++) {
      const { acts, other: still } = await replicatorOf("central");
      const before = at(
        (await shardMap(stack, "east")).filter(({ owner, shard }) => owner === "central" && !moved.has(shard)),
        0,
      );
      process.kill(still.pid, "SIGSTOP");
      try {
        const { value: ended, ms } = await timed(move(before.shard));
        if (tries < 3 && !(ended.error ?? "").includes(`${still.node} did not confirm`)) continue;
        assert.equal(ended.status, "failed");
        assert.match(ended.error ?? "", new RegExp(`${still.node} did not confirm that it holds the shard`));
        assert.ok(ms < settleMs / 2, `called off after ${Math.round(ms)} ms`);
        const write = await put(acts.node, at(idsIn(before.shard, "goes-on", 1), 0));
        body(write, 201);
        assert.equal(placeOf(write).epoch, before.epoch, "the owner goes on in its epoch");
        // Its last lease has run out, and no other is given to it: then it has no say.
        await stack.until(async () => (await move(before.shard)).status === "complete", settleMs, "the shard moves");
        process.kill(still.pid, "SIGCONT");
        const late = await stack.until(
          async () => {
            const got = await put(still.node, at(idsIn(before.shard, "goes-on", 1), 0));
            return got.status < 300 && got;
          },
          settleMs,
          `${still.node} serves again`,
        );
        assert.equal(placeOf(late).epoch, before.epoch + 1);
        assert.equal(late.headers.get("hothot-owner"), "west");
        break;
      } finally {
        process.kill(still.pid, "SIGCONT");
      }
    }
    await allServe(stack);
  });

  it("go on without one that is killed, in the same epochs, with its shards where they are", async () => {
    const before = await shardMap(stack, "east");
    for (const victim of ["n1", "n2"]) {
      const pids = stack.stack.site("central").nodes[victim === "n1" ? 0 : 1]?.process();
      assert.ok(pids !== undefined);
      process.kill(pids.pid, "SIGKILL");
      const other = victim === "n1" ? "central/n2" : "central/n1";
      const shardsOf = before.filter((shard) => shard.owner === "central");
      const answers = await Promise.all(
        shardsOf.flatMap(({ shard }) => [
          put(other, at(idsIn(shard, `kill-${victim}-a`, 1), 0), { "hothot-durability": "replicated" }),
          put("east/n2", at(idsIn(shard, `kill-${victim}-b`, 1), 0), {
            "hothot-durability": "replicated",
            "idempotency-key": `kill-${victim}-${shard}`,
          }),
        ]),
      );
      for (const answer of answers) {
        body(answer, 201);
        assert.equal(answer.headers.get("hothot-served-by"), other);
        assert.equal(placeOf(answer).epoch, at(before, placeOf(answer).shard).epoch, placeText(placeOf(answer)));
      }
      // A move asked of the one that is left ends soon: the dead one can't say that it holds the shard.
      const { shard } = at(shardsOf, 0);
      const began = performance.now();
      const { id } = body(await on(other, "POST", "/v1/switchovers", { shard, to: "west" }), 202);
      const ended = await stack.until(
        async () => {
          const found = body(await on(other, "GET", `/v1/switchovers/${String(id)}`), 200);
          return found["status"] !== "running" && found;
        },
        settleMs,
        "the end of a move behind a death",
      );
      assert.match(JSON.stringify(ended), new RegExp(`central/${victim} did not confirm`));
      assert.ok(performance.now() - began < 10_000, "it does not wait for the dead one's answer");
      await stack.simulate("restart", "central");
      await allServe(stack);
      for (const node of nodes)
        await stack.until(async () => (await on(node, "GET", "/readyz")).status === 200, settleMs, `${node} is ready`);
      for (const shard of await shardMap(stack, "east"))
        assert.equal(shard.owner, at(before, shard.shard).owner, "no takeover");
    }
    const { items } = body<{ items: Json[] }>(await on("west/n2", "GET", "/v1/history?limit=1000"), 200);
    assert.deepEqual(
      items.filter((item) => item["kind"] === "takeover" && item["from"] !== item["to"]),
      [],
    );
    await allEqual(stack, "central");
  });
});
