import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { pack } from "msgpackr";
import { endProcess } from "../../infra/local/processes.js";
import { shardOf } from "../../shards/ids.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { databaseOf } from "./database.js";
import { readLog } from "./log-reader.js";
import {
  allEqual,
  at,
  body,
  idsIn,
  idsOf,
  send,
  shardMap,
  shards,
  type Json,
  type ShardView,
  type VerifyLine,
} from "./support.js";

interface Line {
  readonly line: number;
  readonly id?: string;
  readonly status: number;
  readonly version?: number;
  readonly code?: string;
}

const note = 'tab\t, back\\slash, "quotes", new\nline, \u00e9, {"x":1}';

describe("loads, digests, repair", { timeout: 240_000 }, () => {
  let stack: TestStack;
  let map: ShardView[];
  before(async () => {
    stack = await startStack({
      steady: true,
      worker: false,
      env: { HOTHOT_SCRUB_MS: "500", HOTHOT_DIGEST_MS: "1000" },
    });
    map = await shardMap(stack, "east");
  });
  afterAll(() => stack?.stop());

  const load = async (dc: string, rows: readonly unknown[], headers: Record<string, string> = {}): Promise<Line[]> => {
    const text = rows.map((row) => (typeof row === "string" ? row : JSON.stringify(row))).join("\n");
    const all = { "content-type": "application/x-ndjson", ...headers };
    // Longer than a group of rows waits for its owner: a refusal says why.
    const answer = await send(stack, dc, "POST", "/v1/clusters/bulk", text, all, 100_000);
    assert.equal(answer.status, 200, answer.text);
    return answer.text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Line);
  };
  const read = async (dc: string, id: string): Promise<Json> =>
    body(await send(stack, dc, "GET", `/v1/clusters/${id}`), 200);
  const query = async <T extends object>(dc: string, sql: string, values: unknown[] = []): Promise<T[]> => {
    const database = databaseOf(stack, dc);
    try {
      return (await database.pool.query<T>(sql, values)).rows;
    } finally {
      await database.close();
    }
  };
  const verify = async (): Promise<VerifyLine[]> =>
    (await send(stack, "east", "GET", "/v1/verify")).text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as VerifyLine);

  it("answers a line per line, in order, and says of each what became of it", async () => {
    const [known = ""] = idsOf(map, "west", "bulk-known", 1);
    body(await send(stack, "east", "PUT", `/v1/clusters/${known}`, { name: "old", spec: {} }), 201);
    const lines = await load("east", [
      { id: "bulk-a", name: "a", spec: { note }, labels: { "tab\t": "b\\" } },
      "",
      { id: known, name: "new", spec: {} },
      "nonsense",
      { id: "bulk-a", name: "twice", spec: { note } },
      { id: "bulk bad", name: "x", spec: {} },
      { name: "without an id", spec: {}, expiresAt: "2040-01-01T00:00:00Z" },
    ]);
    assert.deepEqual(
      lines.map(({ line, status, version, code }) => [line, status, version ?? code]),
      [
        [1, 201, 1],
        [3, 200, 2],
        [4, 400, "invalid_request"],
        [5, 200, 2],
        [6, 400, "invalid_request"],
        [7, 201, 1],
      ],
    );
    await allEqual(stack, "east");
    for (const dc of stack.dcs) {
      const found = await read(dc, "bulk-a");
      assert.equal(found["name"], "twice");
      assert.deepEqual(found["spec"], { note });
      assert.equal((await read(dc, known))["version"], 2);
      assert.equal((await read(dc, at(lines, -1).id ?? ""))["expiresAt"], "2040-01-01T00:00:00.000Z");
    }
  });

  it("sends large loads through the object store once, and each datacenter holds the same rows", async () => {
    // With a key the rows are cut into loads by their number and size alone, however slowly they arrive.
    const key = { "idempotency-key": "import-large" };
    const count = 5_000;
    const row = (number: number): unknown => ({
      id: `load-${number}`,
      name: `n${number}`,
      spec: { note, text: `${number}-`.repeat(150) },
    });
    const lines = await load(
      "central",
      Array.from({ length: count }, (_, number) => row(number)),
      key,
    );
    assert.equal(lines.length, count);
    assert.deepEqual(
      lines.filter(({ status, version }) => status !== 201 || version !== 1),
      [],
    );
    await allEqual(stack, "west");
    for (const dc of stack.dcs) {
      const [found] = await query<{ n: number }>(dc, "SELECT count(*)::int AS n FROM clusters WHERE id LIKE 'load-%'");
      assert.equal(found?.n, count, dc);
      assert.deepEqual((await read(dc, "load-4999"))["spec"], { note, text: "4999-".repeat(150) });
    }
    const { entries } = await readLog(stack, "east");
    const loads = entries.flatMap(({ record }) => (record.load === undefined ? [] : [record.load]));
    const large = loads.filter((each) => !(each.payload instanceof Uint8Array));
    assert.ok(large.length > 0, "no load went through the object store");
    assert.ok(large.reduce((sum, each) => sum + each.rows, 0) > count * 0.9);
    // A second load of the same ids is compared row by row.
    const again = await load("east", [row(1), row(2), row(count)]);
    assert.deepEqual(
      again.map(({ status, version }) => [status, version]),
      [
        [200, 2],
        [200, 2],
        [201, 1],
      ],
    );
    await allEqual(stack, "east");
  });

  it("takes effect once, whoever is asked again with the same key", async () => {
    const rows = [
      { id: "keyed-1", name: "k", spec: {} },
      { name: "no id", spec: {} },
    ];
    const key = { "idempotency-key": "import-1" };
    const first = await load("east", rows, key);
    const again = await load("west", rows, key);
    assert.deepEqual(
      again,
      first.map((line) => ({ ...line, replayed: true })),
    );
    const stored = await send(stack, "east", "GET", "/v1/clusters/keyed-1", undefined, {
      "hothot-consistency": "owner",
    });
    assert.equal(body(stored, 200)["version"], 1);
    const other = await load("east", [{ id: "keyed-1", name: "other", spec: {} }, rows[1]], key);
    assert.equal(other[0]?.code, "idempotency_key_reused");
  });

  const damage = async (
    what: string,
    dc: string,
    id: string,
    sql: string,
    values: unknown[],
    named: boolean,
  ): Promise<void> => {
    await allEqual(stack, "east");
    const shard = (await read("east", id))["shard"] as number;
    const before = stack.logs(dc).split("a copy is not what it should be").length;
    await query(dc, sql, values);
    await stack.until(
      () => stack.logs(dc).split("a copy is not what it should be").length > before,
      45_000,
      `the scrub finds ${what}`,
    );
    const { text } = await send(stack, dc, "GET", "/metrics");
    assert.match(text, /^hothot_digest_mismatches_total [1-9]/m);
    const bad = (await verify()).filter((line) => !line.equal);
    assert.deepEqual(
      bad.map((line) => [line.shard, line.dc]),
      [[shard, dc]],
      what,
    );
    if (named) assert.deepEqual(bad[0]?.clusters, [id]);
    const repaired = body<{ copied: number }>(await send(stack, "central", "POST", "/v1/repair", { shard }), 200);
    assert.equal(repaired.copied, 1, what);
    await allEqual(stack, "east");
  };

  it("finds a row that was changed by hand in a replica, names it, and repairs it", async () => {
    const [id = ""] = idsOf(map, "west", "damaged", 1);
    body(await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: "right", spec: {} }), 201);
    await damage("a changed row", "east", id, "UPDATE clusters SET name = 'wrong' WHERE id = $1", [id], true);
    assert.equal((await read("east", id))["name"], "right");
  });

  it("and in an owner, from a replica", async () => {
    const [id = ""] = idsOf(map, "west", "owned-damage", 1);
    body(await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: "right", spec: { a: 1 } }), 201);
    await damage("an owner's row", "west", id, "UPDATE clusters SET spec = '{}' WHERE id = $1", [id], true);
    assert.deepEqual((await read("west", id))["spec"], { a: 1 });
  });

  it("and a row that was removed, or is there too much", async () => {
    const [id = "", more = ""] = idsOf(map, "west", "gone", 2);
    body(await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: "right", spec: {} }), 201);
    await damage("a missing row", "central", id, "DELETE FROM clusters WHERE id = $1", [id], true);
    assert.equal((await read("central", id))["name"], "right");
    await query("east", "SELECT 1");
    await damage(
      "a row too much",
      "central",
      id,
      "INSERT INTO clusters SELECT tenant, $2, shard, status, name, spec, state, labels, expires_at, version, created_at, updated_at, deleted, changed_epoch, changed_position, digest FROM clusters WHERE id = $1",
      [id, more],
      false,
    );
    assert.equal((await send(stack, "central", "GET", `/v1/clusters/${more}`)).status, 404);
  });

  it("and a copy that adds up to something else than the log's digest says", async () => {
    const [id = ""] = idsOf(map, "west", "summed", 1);
    const shard = shardOf(id, shards);
    await allEqual(stack, "east");
    await query("east", "UPDATE shard_head SET digest = digest # 4711 WHERE shard = $1", [shard]);
    body(await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: "right", spec: {} }), 201);
    const alarm = await stack.until(
      () =>
        stack
          .logs("east")
          .split("\n")
          .filter((line) => line.includes("a copy is not what it should be") && line.includes('"logged"'))
          .map((line) => JSON.parse(line) as { shard: number; position: number; logged: number; found: number })
          .find((each) => each.shard === shard),
      30_000,
      "east compares its copy with a digest in the log",
    );
    assert.equal(BigInt(alarm.found), BigInt(alarm.logged) ^ 4711n);
    const { entries } = await readLog(stack, "west");
    assert.deepEqual(
      entries
        .filter((entry) => entry.shard === shard && entry.position === alarm.position)
        .map(({ owner, record }) => [owner, record.type, record.digest]),
      [["west", "digest", alarm.logged]],
    );
    const bad = (await verify()).filter((line) => !line.equal);
    assert.deepEqual(
      bad.map((line) => [line.shard, line.dc, line.clusters]),
      [[shard, "east", []]],
    );
    // Its rows are right.
    assert.deepEqual(body(await send(stack, "west", "POST", "/v1/repair", { shard }), 200), { copied: 0 });
    await allEqual(stack, "east");
  });

  const stoppedIn = async (dc: string): Promise<[number, string | undefined][]> =>
    (await shardMap(stack, dc)).filter((each) => each.stopped !== undefined).map((each) => [each.shard, each.stopped]);
  const put = async (id: string): Promise<Json> =>
    body(await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: id, spec: {} }), 201);
  const arrives = (dc: string, id: string): Promise<unknown> =>
    stack.until(
      async () => (await send(stack, dc, "GET", `/v1/clusters/${id}`)).status === 200,
      30_000,
      `${dc} has ${id}`,
    );

  it("stops a shard whose log holds a newer kind of record, and no other, until `repair` copies it again", async () => {
    body(await send(stack, "east", "PUT", "/v1/failover", { paused: true }), 200);
    map = await shardMap(stack, "east");
    const own = map.filter((each) => each.owner === "east");
    const { shard, partition } = at(own, 0);
    const beside = at(
      own.filter((each) => each.partition === partition),
      1,
    ).shard;
    const [other = ""] = idsOf(map, "central", "other", 1);
    for (const dc of ["east", "west"]) {
      const node = stack.stack.site(dc).nodes[0]?.process();
      assert.ok(node !== undefined);
      await endProcess(node, "SIGKILL", 5_000);
    }
    // What a newer program of the owner would have written.
    await query(
      "east",
      `WITH h AS (UPDATE shard_head SET position = position + 1 WHERE shard = $1 RETURNING epoch, position)
       INSERT INTO outbox (shard, epoch, position, record, committed_at) SELECT $1, epoch, position, $2, now() FROM h`,
      [shard, pack([99, Date.now(), null, null, null, null, null])],
    );
    // And a shard that an older program left, which this one can read.
    await query(
      "west",
      `UPDATE shard_head h SET stopped = 'record type 13 is newer than this program', unread = p.sequence
       FROM partition_progress p WHERE p.partition = h.partition AND h.shard = $1`,
      [shardOf(other, shards)],
    );
    for (const dc of ["east", "west"]) await stack.simulate("restart", dc);
    const [unseen = ""] = idsIn(shard, "unseen", 1);
    const [seen = ""] = idsIn(beside, "seen", 1);
    await stack.until(() => put(unseen), 30_000, "east writes");
    await put(seen);
    await stack.until(() => put(other), 30_000, "central writes");
    await arrives("west", other);
    for (const dc of ["central", "west"]) {
      await stack.until(async () => (await stoppedIn(dc)).length === 1, 30_000, `one shard has stopped in ${dc}`);
      assert.deepEqual(await stoppedIn(dc), [[shard, "record type 99 is newer than this program"]]);
      assert.match(stack.logs(dc), /a shard stopped: its log can't be applied/);
      assert.match((await send(stack, dc, "GET", "/metrics")).text, /^hothot_stopped_shards 1$/m);
      await arrives(dc, seen);
      assert.equal((await send(stack, dc, "GET", `/v1/clusters/${unseen}`)).status, 404);
    }
    assert.match((await stack.cli("status")).stdout, /central.*1 stopped/);
    const repaired = body<{ copied: number }>(await send(stack, "central", "POST", "/v1/repair", { shard }), 200);
    assert.ok(repaired.copied >= 2, `${repaired.copied} were copied`);
    const [later = ""] = idsIn(shard, "later", 1);
    await put(later);
    for (const dc of ["central", "west"]) {
      for (const id of [unseen, later]) await arrives(dc, id);
      assert.deepEqual(await stoppedIn(dc), []);
    }
    body(await send(stack, "east", "PUT", "/v1/failover", { paused: false }), 200);
    await allEqual(stack, "east");
  });

  it("verifies under write load", async () => {
    const [id = ""] = idsOf(map, "east", "busy", 1);
    let done = false;
    const writing = (async () => {
      for (let number = 0; !done; number++)
        await send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: `n${number}`, spec: {} });
    })();
    try {
      const lines = await verify();
      assert.deepEqual(
        lines.filter((line) => !line.equal),
        [],
      );
    } finally {
      done = true;
      await writing;
    }
  });

  it("goes on through a takeover in the middle of a load, and each row takes effect once", async () => {
    const count = 20_000;
    const key = { "idempotency-key": "import-takeover" };
    const rows = Array.from({ length: count }, (_, n) => ({ id: `over-${n}`, name: `n${n}`, spec: {} }));
    const there = async (dc: string): Promise<number> =>
      (await query<{ n: number }>(dc, "SELECT count(*)::int AS n FROM clusters WHERE id LIKE 'over-%'"))[0]?.n ?? 0;
    const loading = load("central", rows, key);
    await stack.until(async () => (await there("central")) > 0, 30_000, "rows arrive");
    await stack.simulate("crash", "west");
    const first = await loading;
    const refused = first.filter(({ status }) => status !== 201);
    if (refused.length > 0) {
      const now = (await shardMap(stack, "central")).filter((shard) =>
        refused.some(({ id = "" }) => shardOf(id, shards) === shard.shard),
      );
      assert.fail(`${JSON.stringify([refused.slice(0, 3), now.slice(0, 3)], null, 1)}\n${stack.lastWords()}`);
    }
    assert.equal(first.length, count);
    // Asked for again, it takes effect no second time.
    const again = await load("east", rows, key);
    assert.deepEqual(
      again.filter(({ status, version }) => status !== 201 || version !== 1),
      [],
    );
    await stack.simulate("restart", "west");
    await allEqual(stack, "east", 60_000);
    for (const dc of stack.dcs) assert.equal(await there(dc), count, dc);
  });
});
