import assert from "node:assert/strict";
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
  shardMap,
  timed,
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

describe("the write path", { timeout: 240_000 }, () => {
  let stack: TestStack;
  let map: ShardView[];
  before(async () => {
    stack = await startStack({ steady: true });
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
  const put = (dc: string, id: string, headers?: Record<string, string>, name = "n"): Promise<Answered> =>
    on(dc, "PUT", `/v1/clusters/${id}`, { name, spec: {} }, headers);
  const freshShard = (owner: string, nth: number): number => {
    // Worker registrations and earlier tests leave marks: what matters is where the shard stood before.
    const mine = map.filter((shard) => shard.owner === owner);
    return at(mine, mine.length - 1 - nth).shard;
  };
  const standing = async (dc: string, shard: number): Promise<number> => at(await shardMap(stack, dc), shard).position;

  it("lets any node serve any request, and says who owns and who did the work", async () => {
    for (const owner of stack.dcs)
      for (const [index, dc] of stack.dcs.entries()) {
        const id = at(idsOf(map, owner, "any", 3), index);
        for (const durability of ["local", "replicated"]) {
          const answer = await put(dc, id, { "hothot-durability": durability });
          assert.equal(answer.status, durability === "local" ? 201 : 200, answer.text);
          assert.equal(answer.headers.get("hothot-owner"), owner);
          assert.equal(answer.headers.get("hothot-served-by"), `${owner}/n1`);
          assert.equal(placeOf(answer).epoch, at(map, placeOf(answer).shard).epoch);
        }
        const gone = await on(dc, "DELETE", `/v1/clusters/${id}`);
        assert.equal(gone.status, 204);
        assert.equal(gone.headers.get("hothot-served-by"), `${owner}/n1`);
      }
  });

  it("numbers 200 concurrent writes of a shard densely, acknowledges each once, and commits them in groups", async () => {
    const shard = freshShard("central", 0);
    const before = await standing("central", shard);
    const ids = idsIn(shard, "dense", 200);
    const answers = await Promise.all(ids.map((id, number) => put(at(stack.dcs, number % 3), id)));
    const positions = answers.map((answer) => {
      assert.equal(answer.status, 201, answer.text);
      assert.equal(placeOf(answer).shard, shard);
      assert.equal(placeOf(answer).epoch, at(map, shard).epoch);
      return placeOf(answer).position;
    });
    assert.deepEqual(
      [...positions].sort((a, b) => a - b),
      Array.from({ length: 200 }, (_, number) => before + number + 1),
    );
    assert.equal(await standing("central", shard), before + 200);
    const database = databaseOf(stack, "central");
    try {
      const { rows } = await database.pool.query<{ transactions: number; rows: number }>(
        "SELECT count(DISTINCT xmin::text)::int AS transactions, count(*)::int AS rows FROM clusters WHERE id LIKE 'dense-%'",
      );
      assert.equal(rows[0]?.rows, 200);
      assert.ok((rows[0]?.transactions ?? 0) <= 100, `${rows[0]?.transactions} transactions for 200 writes`);
    } finally {
      await database.close();
    }
    // The log holds the same, in the same order, once.
    await stack.until(
      async () => (await standing("east", shard)) === before + 200 && (await standing("west", shard)) === before + 200,
      10_000,
      "the peers have applied 200 writes",
    );
    const { entries } = await readLog(stack, "east");
    const logged = entries.filter((entry) => entry.shard === shard && entry.position > before);
    assert.deepEqual(
      logged.map((entry) => entry.position),
      Array.from({ length: 200 }, (_, number) => before + number + 1),
    );
    for (const [index, answer] of answers.entries()) {
      const entry = at(logged, placeOf(answer).position - before - 1);
      assert.equal(entry.record.cluster?.id, ids[index]);
      assert.equal(entry.record.type, "cluster.put");
    }
  });

  it("numbers 200 concurrent writes over all shards densely in each", async () => {
    const before = await shardMap(stack, "east");
    const heads = await Promise.all(map.map((shard) => standing(shard.owner ?? "", shard.shard)));
    assert.equal(heads.length, before.length);
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, number) => put(at(stack.dcs, number % 3), `wide-${number}`)),
    );
    const byShard = new Map<number, number[]>();
    for (const answer of answers) {
      assert.equal(answer.status, 201, answer.text);
      const { shard, position } = placeOf(answer);
      byShard.set(shard, [...(byShard.get(shard) ?? []), position]);
    }
    for (const [shard, positions] of byShard)
      assert.deepEqual(
        positions.sort((a, b) => a - b),
        positions.map((_, index) => at(heads, shard) + index + 1),
        `shard ${shard}`,
      );
  });

  it("keeps writes of one cluster in one order: 60 concurrent puts make 60 versions", async () => {
    const id = at(idsOf(map, "west", "versions", 1), 0);
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, number) => put(at(stack.dcs, number % 3), id, {}, `v${number}`)),
    );
    const seen = answers
      .map((answer) => ({ ...(JSON.parse(answer.text) as { version: number; name: string }), ...placeOf(answer) }))
      .sort((a, b) => a.version - b.version);
    assert.deepEqual(
      seen.map((each) => each.version),
      Array.from({ length: 60 }, (_, number) => number + 1),
    );
    for (const [index, each] of seen.entries()) assert.equal(each.position, at(seen, 0).position + index);
    assert.equal(answers.filter((answer) => answer.status === 201).length, 1);
    for (const dc of stack.dcs) {
      const last = await on(dc, "GET", `/v1/clusters/${id}`, undefined, {
        "hothot-min-position": placeText(at(seen, 59)),
      });
      assert.equal(body(last, 200)["name"], at(seen, 59).name);
    }
  });

  it("acknowledges `replicated` once the log has the write", async () => {
    const ids = stack.dcs.flatMap((owner) => idsOf(map, owner, "stored", 4));
    for (const id of ids) body(await put("east", id, { "hothot-durability": "replicated" }), 201);
    const { entries } = await readLog(stack, "west");
    for (const id of ids)
      assert.equal(entries.filter((entry) => entry.record.cluster?.id === id).length, 1, `${id} is in the log, once`);
  });

  it("reads its own writes anywhere with Hothot-Min-Position, also in lists and after deletes", async () => {
    for (let round = 0; round < 20; round++) {
      const owner = at(stack.dcs, round % 3);
      const id = at(idsOf(map, owner, `own${round}`, 1), 0);
      const writtenAt = at(stack.dcs, (round + 1) % 3);
      const answer = await on(writtenAt, "PUT", `/v1/clusters/${id}`, {
        name: `r${round}`,
        spec: {},
        labels: { own: `r${round}` },
      });
      body(answer, 201);
      await Promise.all(
        stack.dcs.map(async (dc) => {
          const got = body(await on(dc, "GET", `/v1/clusters/${id}`, undefined, after(answer)), 200);
          assert.equal(got["name"], `r${round}`);
          const list = await on(dc, "GET", `/v1/clusters?label=own:r${round}`, undefined, after(answer));
          assert.deepEqual(
            body<{ items: Json[] }>(list, 200).items.map((item) => item["id"]),
            [id],
          );
        }),
      );
      const gone = await on(writtenAt, "DELETE", `/v1/clusters/${id}`);
      assert.equal(gone.status, 204);
      await Promise.all(
        stack.dcs.map(async (dc) =>
          problem(await on(dc, "GET", `/v1/clusters/${id}`, undefined, after(gone)), "not_found"),
        ),
      );
    }
  });

  it("gives up on an unknown position at the deadline, and not before", async () => {
    const id = at(idsOf(map, "east", "unknown", 1), 0);
    const place = placeOf(await put("east", id));
    for (const unknown of [
      { ...place, position: place.position + 1000 },
      { ...place, epoch: place.epoch + 1, position: 1 },
    ])
      await Promise.all(
        stack.dcs.flatMap((dc) =>
          [`/v1/clusters/${id}`, "/v1/clusters", "/v1/jobs"].map(async (where) => {
            const { ms, value } = await timed(() =>
              on(dc, "GET", where, undefined, {
                "hothot-min-position": placeText(unknown),
                "hothot-timeout-ms": "500",
              }),
            );
            problem(value, "deadline_exceeded");
            assert.ok(ms >= 495 && ms < 5_000, `${ms} ms`);
          }),
        ),
      );
  });

  it("gives the first answer again, byte for byte, to the same key and body through any datacenter", async () => {
    const id = at(idsOf(map, "central", "key", 1), 0);
    const data = { name: "keyed", spec: { b: 1, a: [1, 2, { z: 1, y: 2 }] }, labels: { z: "1", a: "2" } };
    const key = { "idempotency-key": "write-path-key-1" };
    const first = await on("east", "PUT", `/v1/clusters/${id}`, data, key);
    assert.equal(first.status, 201);
    assert.equal(first.headers.get("idempotency-replayed"), null);
    body(await put("west", id, {}, "something else"), 200);
    for (const dc of stack.dcs)
      for (const durability of ["local", "replicated"]) {
        const again = await on(dc, "PUT", `/v1/clusters/${id}`, data, { ...key, "hothot-durability": durability });
        assert.equal(again.text, first.text);
        assert.equal(again.status, first.status);
        assert.equal(again.headers.get("idempotency-replayed"), "true");
        for (const name of ["etag", "hothot-position", "hothot-owner", "content-type"])
          assert.equal(again.headers.get(name), first.headers.get(name), name);
      }
    const now = body(await on("west", "GET", `/v1/clusters/${id}`, undefined, { "hothot-consistency": "owner" }), 200);
    assert.equal(now["version"], 2);
    assert.equal(now["name"], "something else");
    for (const dc of stack.dcs) {
      problem(await on(dc, "PUT", `/v1/clusters/${id}`, { ...data, name: "x" }, key), "idempotency_key_reused");
      problem(await on(dc, "DELETE", `/v1/clusters/${id}`, undefined, key), "idempotency_key_reused");
      problem(await on(dc, "PUT", `/v1/clusters/${id}`, data, { ...key, "if-match": '"2"' }), "idempotency_key_reused");
    }
    const remove = { "idempotency-key": "write-path-key-2" };
    const gone = await on("west", "DELETE", `/v1/clusters/${id}`, undefined, remove);
    for (const dc of stack.dcs) {
      const again = await on(dc, "DELETE", `/v1/clusters/${id}`, undefined, remove);
      assert.equal(again.status, 204);
      assert.equal(again.text, "");
      assert.equal(again.headers.get("idempotency-replayed"), "true");
      assert.equal(again.headers.get("hothot-position"), gone.headers.get("hothot-position"));
    }
  });

  it("carries a keyed write out once, however many of it come at once", async () => {
    for (const owner of stack.dcs) {
      const id = at(idsOf(map, owner, "once", 1), 0);
      const key = { "idempotency-key": `once-${owner}` };
      const answers = await Promise.all(
        Array.from({ length: 24 }, (_, number) => put(at(stack.dcs, number % 3), id, key)),
      );
      assert.deepEqual(new Set(answers.map((answer) => `${answer.status} ${answer.text}`)).size, 1);
      assert.equal(answers[0]?.status, 201);
      assert.equal(answers.filter((answer) => answer.headers.get("idempotency-replayed") === null).length, 1);
      assert.equal(new Set(answers.map((answer) => answer.headers.get("hothot-position"))).size, 1);
    }
  });

  it("refuses the key of another cluster's write in the same shard", async () => {
    const [one = "", two = ""] = idsIn(freshShard("east", 1), "same-shard", 2);
    const key = { "idempotency-key": "two-clusters" };
    body(await put("west", one, key), 201);
    problem(await put("central", two, key), "idempotency_key_reused");
  });

  it("refuses the key of another cluster's write in another shard", async () => {
    const [one, two] = [at(idsOf(map, "east", "key-a", 1), 0), at(idsOf(map, "west", "key-b", 1), 0)];
    const key = { "idempotency-key": "two-shards" };
    const first = await on("east", "POST", "/v1/clusters", { id: one, name: "n", spec: {} }, key);
    body(first, 201);
    const other = await on("east", "POST", "/v1/clusters", { id: two, name: "n", spec: {} }, key);
    problem(other, "idempotency_key_reused");
    // From elsewhere as well, as soon as the owner's copy has the first write.
    body(await on("west", "GET", `/v1/clusters/${one}`, undefined, after(first)), 200);
    problem(
      await on("central", "POST", "/v1/clusters", { id: two, name: "n", spec: {} }, key),
      "idempotency_key_reused",
    );
    problem(await on("west", "GET", `/v1/clusters/${two}`), "not_found");
  });

  it("one key for two clusters at two datacenters at once: each takes effect once or is refused, and a third is refused", async () => {
    const ids = (["east", "west", "central"] as const).map(
      (dc) => [dc, at(idsOf(map, dc, "key-at-once", 1), 0)] as const,
    );
    const key = { "idempotency-key": "at-once" };
    const [third, ...both] = [at(ids, 2), at(ids, 0), at(ids, 1)];
    const ask = ([dc, id]: readonly [string, string]): Promise<Answered> =>
      on(dc, "POST", "/v1/clusters", { id, name: "n", spec: {} }, key);
    const answers = await Promise.all(both.map(ask));
    const done = answers.filter(({ status }) => status === 201);
    assert.ok(done.length > 0, answers.map(({ text }) => text).join());
    for (const [index, answer] of answers.entries()) {
      if (answer.status !== 201) {
        problem(answer, "idempotency_key_reused");
        continue;
      }
      const [dc, id] = at(both, index);
      assert.equal(
        body(await on(dc, "GET", `/v1/clusters/${id}`, undefined, { "hothot-consistency": "owner" }), 200)["version"],
        1,
      );
      body(await on("central", "GET", `/v1/clusters/${id}`, undefined, after(answer)), 200);
    }
    problem(await ask(third), "idempotency_key_reused");
  });

  it("remembers a keyed write that changed nothing", async () => {
    const worker = "/v1/workers/keyed-worker";
    body(await on("east", "PUT", worker, { capacity: 2 }), 200);
    const key = { "idempotency-key": "no-change" };
    const first = await on("central", "PUT", worker, { capacity: 2 }, key);
    body(first, 200);
    assert.equal(first.headers.get("idempotency-replayed"), null);
    const again = await on("west", "PUT", worker, { capacity: 2 }, key);
    assert.equal(again.headers.get("idempotency-replayed"), "true");
    assert.equal(again.text, first.text);
    problem(await on("west", "PUT", worker, { capacity: 3 }, key), "idempotency_key_reused");
  });

  it("merges a patch into a cluster", async () => {
    const id = at(idsOf(map, "central", "patch", 1), 0);
    const fields = { name: "n", spec: { a: { b: 1, c: [1] }, d: true }, state: { s: 1 }, labels: { x: "1", y: "2" } };
    body(await on("east", "PUT", `/v1/clusters/${id}`, fields), 201);
    const patch = { spec: { a: { b: null, e: {} }, d: 2 }, labels: { x: null }, state: null };
    const merged = body(
      await on("west", "PATCH", `/v1/clusters/${id}`, patch, { "content-type": "application/merge-patch+json" }),
      200,
    );
    assert.deepEqual(merged["spec"], { a: { c: [1], e: {} }, d: 2 });
    assert.deepEqual([merged["name"], merged["state"], merged["labels"]], ["n", {}, { y: "2" }]);
    assert.equal(merged["version"], 2);
    problem(await on("west", "PATCH", `/v1/clusters/${id}`, { name: null }), "invalid_request");
    problem(await on("west", "PATCH", `/v1/clusters/${id}`, patch, { "if-match": '"1"' }), "version_mismatch");
    problem(await on("west", "PATCH", `/v1/clusters/${id}-none`, patch), "not_found");
  });

  it("remembers nothing of a keyed write that was refused", async () => {
    const id = at(idsOf(map, "west", "refused", 1), 0);
    const headers = { "idempotency-key": "refused-1", "if-match": '"1"' };
    problem(await put("east", id, headers), "version_mismatch");
    body(await put("east", id), 201);
    const now = await put("central", id, headers);
    assert.equal(body(now, 200)["version"], 2);
    assert.equal(now.headers.get("idempotency-replayed"), null);
  });

  it("lets exactly one of many conditional writes win", async () => {
    for (const owner of stack.dcs) {
      const id = at(idsOf(map, owner, "race", 1), 0);
      const race = async (
        headers: Record<string, string>,
        method: "PUT" | "DELETE" = "PUT",
      ): Promise<{ won: Answered[]; lost: Answered[] }> => {
        const answers = await Promise.all(
          Array.from({ length: 30 }, (_, number) =>
            method === "PUT"
              ? put(at(stack.dcs, number % 3), id, headers, `w${number}`)
              : on(at(stack.dcs, number % 3), "DELETE", `/v1/clusters/${id}`, undefined, headers),
          ),
        );
        return {
          won: answers.filter((answer) => answer.status < 300),
          lost: answers.filter((answer) => answer.status >= 300),
        };
      };
      for (const [version, headers] of [
        [1, { "if-none-match": "*" }],
        [2, { "if-match": '"1"' }],
        [3, { "if-match": '"2"' }],
      ] as const) {
        const { won, lost } = await race(headers);
        assert.equal(won.length, 1);
        for (const answer of lost) problem(answer, "version_mismatch");
        const winner = body<{ version: number; name: string }>(at(won, 0), version === 1 ? 201 : 200);
        assert.equal(winner.version, version);
        const now = body(await on(owner, "GET", `/v1/clusters/${id}`, undefined, after(at(won, 0))), 200);
        assert.equal(now["name"], winner.name);
        assert.equal(now["version"], version);
      }
      const { won, lost } = await race({ "if-match": '"3"' }, "DELETE");
      assert.equal(won.length, 1);
      for (const answer of lost) problem(answer, "not_found");
      const posts = await Promise.all(
        Array.from({ length: 30 }, (_, number) =>
          on(at(stack.dcs, number % 3), "POST", "/v1/clusters", { id, name: "p", spec: {} }),
        ),
      );
      assert.equal(posts.filter((answer) => answer.status === 201).length, 1);
      for (const answer of posts) if (answer.status !== 201) problem(answer, "already_exists");
    }
  });

  it("says on a replica's read how far it lags, as a whole number of milliseconds", async () => {
    const id = at(idsOf(map, "east", "lag", 1), 0);
    await put("east", id);
    for (let round = 0; round < 10; round++)
      for (const dc of stack.dcs) {
        const answer = await on(dc, "GET", `/v1/clusters/${id}`);
        const lag = answer.headers.get("hothot-lag-ms");
        if (dc === "east") assert.equal(lag, null);
        else if (answer.status === 200) assert.match(lag ?? "none", /^\d+$/);
        assert.equal(answer.headers.get("hothot-stale"), null);
      }
    const lag = body<{ items: Json[] }>(await on("west", "GET", "/v1/lag?limit=1000"), 200).items;
    assert.equal(lag.length, map.length);
    for (const item of lag) {
      assert.ok(Number.isInteger(item["positions"]) && Number.isInteger(item["ms"]), JSON.stringify(item));
      assert.equal(item["owner"], at(map, Number(item["shard"])).owner);
    }
  });

  it("a peer that applies nothing slows no owner, knows how far it is behind, and catches up", async () => {
    const ids = idsOf(map, "east", "slow-peer", 200);
    const [first = ""] = ids;
    body(await put("east", first, { "hothot-durability": "replicated" }), 201);
    const readAt = (dc: string): Promise<Answered> => on(dc, "GET", `/v1/clusters/${first}`);
    await stack.until(async () => (await readAt("west")).status === 200, 10_000, "west has the first");
    const lagAt = async (dc: string): Promise<{ positions: number; ms: number }> => {
      const { items } = body<{ items: { owner: string; positions: number; ms: number }[] }>(
        await on(dc, "GET", "/v1/lag?limit=1000"),
        200,
      );
      const mine = items.filter((item) => item.owner === "east");
      return {
        positions: Math.max(...mine.map((item) => item.positions)),
        ms: Math.max(...mine.map((item) => item.ms)),
      };
    };
    const database = databaseOf(stack, "west");
    const client = await database.connect();
    try {
      await client.query("BEGIN");
      await client.query("LOCK TABLE clusters IN EXCLUSIVE MODE");
      const written = await Promise.all(
        ids.map((id, number) => put(number % 2 === 0 ? "east" : "central", id, undefined, "second")),
      );
      for (const answer of written) assert.ok(answer.status < 300, answer.text);
      const held = await put("east", first, { "hothot-durability": "replicated" }, "third");
      body(held, 200);
      // The other peer goes on; this one shows what it had, and says so everywhere.
      assert.equal(
        body(await on("central", "GET", `/v1/clusters/${first}`, undefined, after(held)), 200)["name"],
        "third",
      );
      const behind = await stack.until(
        async () => {
          const answer = await readAt("west");
          return Number(answer.headers.get("hothot-lag-ms")) > 600 && answer;
        },
        10_000,
        "west knows that it lags",
      );
      assert.equal(body(behind, 200)["name"], "n");
      const lag = await lagAt("west");
      assert.ok(lag.positions > 0 && lag.ms > 600, JSON.stringify(lag));
      assert.equal((await on("west", "GET", "/readyz?lagMs=500")).status, 503);
      const { text } = await on("west", "GET", "/metrics");
      assert.ok(Number(/^hothot_replication_lag_seconds\{shard_owner="east"\} (\S+)$/m.exec(text)?.[1]) > 0.6);
      await stack.until(
        async () => (await on("central", "GET", "/readyz?lagMs=500")).status === 200,
        10_000,
        "central does not lag",
      );
    } finally {
      await client.query("ROLLBACK");
      client.release();
      await database.close();
    }
    await stack.until(
      async () => (await on("west", "GET", "/readyz?lagMs=500")).status === 200 && (await lagAt("west")).ms === 0,
      10_000,
      "west has caught up",
    );
    assert.equal(body(await readAt("west"), 200)["name"], "third");
    assert.equal((await readAt("west")).headers.get("hothot-lag-ms"), "0");
    // What had come meanwhile, messages of many shards, shared few transactions.
    const west = databaseOf(stack, "west");
    try {
      const { rows } = await west.pool.query<{ transactions: number; shards: number }>(
        "SELECT count(DISTINCT xmin::text)::int AS transactions, count(DISTINCT shard)::int AS shards FROM clusters WHERE id LIKE 'slow-peer-%'",
      );
      const { transactions = 0, shards: touched = 0 } = rows[0] ?? {};
      assert.ok(touched > 15 && transactions <= touched / 2, `${transactions} transactions for ${touched} shards`);
    } finally {
      await west.close();
    }
  });

  it("counts its writes where they came in", async () => {
    const text = (await on("east", "GET", "/metrics")).text;
    assert.match(text, /hothot_writes_total\{[^}]*outcome="ok"[^}]*\} [1-9]/);
    assert.match(text, /hothot_writes_total\{[^}]*route="forwarded"[^}]*\} [1-9]/);
    assert.match(text, /hothot_writes_total\{[^}]*outcome="version_mismatch"[^}]*\} [1-9]/);
    assert.match(text, /hothot_owned_shards(\{[^}]*\})? 2[0-9]/);
  });

  it("keeps `replicated` waiting while a majority of the log is away, and `local` not", async () => {
    const [local = "", stored = "", later = "", unstored = ""] = idsOf(map, "east", "majority", 4);
    body(await put("east", later), 201);
    const others = stack.dcs.filter((dc) => dc !== "east").map((dc) => stack.stack.site(dc).nats.process()?.pid ?? 0);
    assert.ok(others.every((pid) => pid > 0));
    // Shorter than the lease, so that its end plays no part.
    for (const pid of others) process.kill(pid, "SIGSTOP");
    let answers: Answered[];
    try {
      answers = await Promise.all([
        put("east", local, { "hothot-timeout-ms": "700" }),
        put("east", stored, { "hothot-timeout-ms": "700", "hothot-durability": "replicated" }),
        on("east", "GET", `/v1/clusters/${later}`, undefined, { "hothot-timeout-ms": "700" }),
        // Written here, but nowhere else yet.
        put("east", unstored).then(() =>
          on("east", "GET", `/v1/clusters/${unstored}`, undefined, {
            "hothot-consistency": "owner",
            "hothot-durability": "replicated",
            "hothot-timeout-ms": "400",
          }),
        ),
      ]);
    } finally {
      for (const pid of others) process.kill(pid, "SIGCONT");
    }
    body(at(answers, 0), 201);
    problem(at(answers, 1), "outcome_unknown");
    body(at(answers, 2), 200);
    // Refused for want of the log, or, on a slow machine, of a lease: never shown.
    const code = String((JSON.parse(at(answers, 3).text) as Json)["code"]);
    assert.ok(["deadline_exceeded", "no_lease"].includes(code), at(answers, 3).text);
    await allServe(stack);
    const shown = { "hothot-consistency": "owner", "hothot-durability": "replicated" };
    body(await on("west", "GET", `/v1/clusters/${unstored}`, undefined, shown), 200);
    for (const dc of stack.dcs)
      for (const id of [local, stored, unstored])
        await stack.until(
          async () => (await on(dc, "GET", `/v1/clusters/${id}`)).status === 200,
          10_000,
          `${id} in ${dc}`,
        );
  });

  it("lets writers and the applier of a datacenter wait for each other in one order only: no deadlocks", async () => {
    const ids = idsOf(await shardMap(stack, "east"), "east", "crowd", 150);
    let next = 0;
    const writer = async (): Promise<void> => {
      for (let number = next++; number < 600; number = next++) {
        const written = await on("east", "PUT", `/v1/clusters/${at(ids, number % ids.length)}`, {
          name: `crowd ${number}`,
          spec: {},
        });
        assert.ok(written.status === 200 || written.status === 201, written.text);
      }
    };
    await Promise.all(Array.from({ length: 12 }, writer));
    for (const dc of stack.dcs) {
      const database = databaseOf(stack, dc);
      try {
        // Counted a little later than they happen.
        await database.pool.query("SELECT pg_stat_force_next_flush()");
        const { rows } = await database.pool.query<{ deadlocks: number }>(
          "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
        );
        assert.equal(rows[0]?.deadlocks, 0, dc);
      } finally {
        await database.close();
      }
    }
  });

  it("has equal copies in the end", async () => {
    await allEqual(stack, "central");
  });
});
