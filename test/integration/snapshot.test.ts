import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { endProcess } from "../../infra/local/processes.js";
import { silentLogger } from "../../infra/logger.js";
import { Database } from "../../infra/postgres/database.js";
import { shardOf } from "../../shards/ids.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { readLog } from "./log-reader.js";
import {
  allEqual,
  allServe,
  at,
  body,
  idsIn,
  idsOf,
  send,
  shardMap,
  shards,
  type Json,
  type ShardView,
} from "./support.js";

let stack: TestStack;
let map: ShardView[];
before(async () => {
  stack = await startStack({
    rttMs: 0,
    worker: false,
    env: {
      HOTHOT_LOG_RETENTION_MS: "2000",
      HOTHOT_RESTATE_MS: "500",
      HOTHOT_AUTOMATIC_FAILBACK: "false",
    },
  });
  await allServe(stack);
  // On a busy machine a takeover may have come first, and nothing goes home by itself here.
  await stack.until(
    async () => {
      map = await shardMap(stack, "east");
      if (stack.dcs.every((dc) => map.some((shard) => shard.owner === dc && shard.state === "owned"))) return true;
      await send(stack, "east", "POST", "/v1/rebalances", {});
      return false;
    },
    30_000,
    "every datacenter owns shards",
  );
});
after(() => stack?.stop());

const put = (dc: string, id: string, bytes = 100, headers: Record<string, string> = {}) =>
  send(stack, dc, "PUT", `/v1/clusters/${id}`, { name: id, spec: { filler: "x".repeat(bytes) } }, headers);

async function inDatabase<T>(dc: string, text: string): Promise<T[]> {
  const url = stack.stack.site(dc).postgres?.url() ?? "";
  const database = new Database({ url, connections: 1, name: "test", log: silentLogger });
  try {
    return (await database.pool.query(text)).rows as T[];
  } finally {
    await database.close();
  }
}

/** Writes each id through one datacenter, some at a time. */
async function putAll(dc: string, ids: readonly string[], bytes: number): Promise<void> {
  const left = [...ids];
  await Promise.all(
    Array.from({ length: 16 }, async () => {
      for (let id = left.pop(); id !== undefined; id = left.pop()) {
        const key = { "idempotency-key": `key-${id}` };
        // On a busy machine a lease may run out: whoever has a key repeats.
        await stack.until(async () => (await put(dc, id, bytes, key)).status < 300, 30_000, `${id} is written`);
      }
    }),
  );
}

/** Waits until no partition's log reaches back to what the datacenter has applied. */
async function untilPurgedPast(ids: readonly string[]): Promise<void> {
  const wanted = new Set(ids);
  await stack.until(
    async () => !(await readLog(stack, "east")).entries.some((entry) => wanted.has(entry.record.cluster?.id ?? "")),
    30_000,
    "the log has lost what was written",
  );
}

describe("a datacenter that the log can't bring up to date", { concurrency: false }, () => {
  const acknowledged = new Map<string, string>();
  let divergent: string[] = [];
  const attempted: string[] = [];

  it("sets aside what it never published, loads what it lacks, also when it is killed over it, and serves", async () => {
    const early = stack.dcs.flatMap((dc) => idsOf(map, dc, "early", 10));
    await putAll("central", early, 300);
    // An orphaned delete: the copy must lose the row, too.
    const removed = at(early, 3);
    await stack.until(
      async () => (await send(stack, "west", "GET", `/v1/clusters/${removed}`)).status === 200,
      10_000,
      "west has the early rows",
    );
    await stack.simulate("isolate", "west");
    // Its lease lasts for a moment: what it takes now is never published.
    const own = idsOf(map, "west", "tail", 5);
    const taken = await Promise.all(
      own.map(async (id) => ((await put("west", id, 100, { "hothot-timeout-ms": "800" })).status < 300 ? id : null)),
    );
    divergent = taken.filter((id) => id !== null);
    // A load in the same moment, too large for the log alone: its rows are divergent one by one.
    const rows = own.slice(0, 2).flatMap((id) => idsIn(shardOf(id, shards), `load-${id}`, 3));
    attempted.push(...own, ...rows);
    const loaded = await send(
      stack,
      "west",
      "POST",
      "/v1/clusters/bulk",
      rows.map((id) => JSON.stringify({ id, name: id, spec: { filler: "x".repeat(15_000) } })).join("\n"),
      { "content-type": "application/x-ndjson", "hothot-timeout-ms": "800" },
    );
    for (const line of loaded.status === 200 ? loaded.text.trimEnd().split("\n") : []) {
      const { id, status } = JSON.parse(line) as { id: string; status: number };
      if (status < 300) divergent.push(id);
    }
    await stack.until(
      async () => (await shardMap(stack, "east")).every((shard) => shard.owner !== "west"),
      20_000,
      "west is taken over",
    );
    const moved = at(
      map.filter((shard) => shard.owner === "west"),
      0,
    ).shard;
    const late = [...idsIn(moved, "late", 400), ...stack.dcs.flatMap((dc) => idsOf(map, dc, "late-all", 30))];
    await putAll("east", late, 4_000);
    assert.equal((await send(stack, "east", "DELETE", `/v1/clusters/${removed}`)).status, 204);
    for (const id of [...early, ...late]) if (id !== removed) acknowledged.set(id, id);
    await untilPurgedPast(late);
    // Who purges the log has said that west was left behind.
    const said = (await Promise.all(["east", "central"].map((dc) => send(stack, dc, "GET", "/metrics")))).map(
      (answer) => answer.text,
    );
    assert.ok(
      said.some((text) => /^hothot_replicas_left_behind_total\{dc="west"\} [1-9]/m.test(text)),
      "the alarm of a datacenter that was left behind",
    );

    await stack.simulate("heal", "west");
    await stack.until(
      async () => (await inDatabase<{ n: number }>("west", "SELECT count(*)::int AS n FROM restores"))[0]?.n !== 0,
      30_000,
      "west has begun to load",
    );
    const node = stack.stack.site("west").nodes[0]?.process();
    assert.ok(node !== undefined);
    await endProcess(node, "SIGKILL", 5_000);
    await stack.simulate("restart", "west");
    // Not ready before all that it lacked is there.
    await stack.until(
      async () => (await send(stack, "west", "GET", "/readyz")).status === 200,
      60_000,
      "west is ready",
    );
    await allServe(stack);
    for (const id of acknowledged.keys())
      assert.equal(body(await send(stack, "west", "GET", `/v1/clusters/${id}`), 200)["name"], id);
    assert.equal((await send(stack, "west", "GET", `/v1/clusters/${removed}`)).status, 404);
    await allEqual(stack, "east");
    const list = body<{ items: Json[] }>(await send(stack, "west", "GET", "/v1/divergent-operations"), 200).items;
    const setAside = list.map((each) => each["clusterId"] as string);
    assert.deepEqual(
      divergent.filter((id) => !setAside.includes(id)),
      [],
      "all that was acknowledged",
    );
    assert.deepEqual(
      setAside.filter((id) => !attempted.includes(id)),
      [],
      "nothing else",
    );
    assert.equal(new Set(setAside).size, setAside.length, "each once");
    // Keys and history came along.
    const again = await put("west", at(idsIn(at(map, 0).shard, "late", 1), 0));
    assert.ok(again.status < 300, again.text);
    const histories = await Promise.all(
      stack.dcs.map(
        async (dc) => (await inDatabase<{ n: number }>(dc, "SELECT count(*)::int AS n FROM history"))[0]?.n,
      ),
    );
    assert.equal(new Set(histories).size, 1, `history rows: ${histories.join(", ")}`);
    const keys = await Promise.all(
      stack.dcs.map(
        async (dc) =>
          (
            await inDatabase<{ n: number }>(
              dc,
              "SELECT count(*)::int AS n FROM idempotency_keys WHERE key LIKE 'key-late%'",
            )
          )[0]?.n,
      ),
    );
    assert.deepEqual(keys, [late.length, late.length, late.length]);
  });
});
