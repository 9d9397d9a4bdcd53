import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { silentLogger } from "../../infra/logger.js";
import { LogStreams } from "../../infra/nats/log-streams.js";
import { Database } from "../../infra/postgres/database.js";
import { LocalStack } from "../../infra/local/stack.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { openLink, readLog, readObjects, type LogContent } from "./log-reader.js";
import { allEqual, allServe, at, body, idsIn, idsOf, placeOf, send, shardMap, shards } from "./support.js";

const retentionMs = 2_000;
const env = {
  HOTHOT_LOG_RETENTION_MS: String(retentionMs),
  HOTHOT_RESTATE_MS: "500",
};

/** For the second part: a log that is small rather than young. Twelve partitions share the bytes. */
const maxBytes = 1_000_000;
const bounded = { HOTHOT_LOG_RETENTION_MS: "40000", HOTHOT_LOG_MAX_BYTES: String(maxBytes) };

let stack: TestStack;
before(async () => {
  stack = await startStack({ steady: true, env, worker: false });
});
after(() => stack?.stop());

const put = (dc: string, id: string, name = "n") =>
  send(stack, dc, "PUT", `/v1/clusters/${id}`, { name, spec: { filler: "x".repeat(200) } });

async function inDatabase<T>(dc: string, action: (database: Database) => Promise<T>): Promise<T> {
  const url = stack.stack.site(dc).postgres?.url() ?? "";
  const database = new Database({ url, connections: 1, name: "test", log: silentLogger });
  try {
    return await action(database);
  } finally {
    await database.close();
  }
}

const has = (log: LogContent, id: string): boolean => log.entries.some((entry) => entry.record.cluster?.id === id);

describe("a log that keeps two seconds", { concurrency: false }, () => {
  it("loses what is old, keeps the newest statement of every idle shard, and the outbox follows", async () => {
    await allServe(stack);
    const map = await shardMap(stack, "east");
    const ids = stack.dcs.flatMap((dc) => idsOf(map, dc, "old", 20));
    for (const id of ids) body(await put("east", id), 201);
    // A load that is large enough for the object store.
    const rows = idsIn(at(map, 0).shard, "loaded", 20).map((id) => ({ id, name: id, spec: { f: "x".repeat(4_000) } }));
    const load = rows.map((row) => JSON.stringify(row)).join("\n");
    const type = { "content-type": "application/x-ndjson", "idempotency-key": "load" };
    // It is looked for from the start: it does not stay for long.
    const [payloads, { text }] = await Promise.all([
      stack.until(
        async () => {
          const found = await readObjects(stack, "central");
          return found.length > 0 && found;
        },
        25_000,
        "a payload is in the object store",
      ),
      send(stack, "west", "POST", "/v1/clusters/bulk", load, type),
    ]);
    assert.equal(text.split('"status":201').length - 1, rows.length, text);
    ids.push(...rows.map((row) => row.id));
    const log = await stack.until(
      async () => {
        const found = await readLog(stack, "central");
        return !ids.some((id) => has(found, id)) && found;
      },
      25_000,
      "the log has lost the old records",
    );
    for (const dc of stack.dcs)
      assert.equal((await send(stack, dc, "GET", `/v1/clusters/${at(rows, 0).id}`)).status, 200, dc);
    await stack.until(
      async () => (await readObjects(stack, "central")).every((id) => !payloads.includes(id)),
      15_000,
      "the payloads that the log does not refer to any more are gone",
    );
    const kept = new Set(log.batches.map((batch) => batch.header.shard));
    assert.equal(kept.size, shards, "a message of every shard is there");
    for (const batch of log.batches)
      if (batch.header.kind !== "records") assert.ok(batch.open !== null && Array.isArray(batch.open.epochEnds));
    for (const dc of stack.dcs)
      await stack.until(
        async () =>
          inDatabase(dc, async (database) => {
            const { rows } = await database.pool.query<{ n: number }>("SELECT count(*)::int AS n FROM outbox");
            return rows[0]?.n === 0;
          }),
        15_000,
        `${dc}'s outbox has lost what the log has`,
      );
  });

  it("starts again, and every shard takes the next position of its epoch", async () => {
    const heads = await shardMap(stack, "east");
    await stack.stack.down();
    await LocalStack.up(stack.dir, { portBase: stack.portBase, env: bounded });
    await allServe(stack);
    for (const head of heads) {
      const place = placeOf(await put("west", at(idsIn(head.shard, "again", 1), 0)));
      assert.equal(place.position, head.position + 1, `shard ${head.shard}`);
      assert.ok(place.epoch >= head.epoch, `shard ${head.shard}`);
    }
    await allEqual(stack, "east");
  });

  it("warns before a datacenter that is away is left behind by size, and brings that one back by snapshots", async () => {
    const { shard, partition } = at(
      (await shardMap(stack, "east")).filter((each) => each.owner === "east"),
      0,
    );
    const ids = idsIn(shard, "large", 40);
    const link = await openLink(stack, "east");
    const streams = new LogStreams("local", 1, [link]);
    const state = async (): Promise<{ first: number; bytes: number }> => {
      const found = await streams.state(partition, 5_000);
      assert.ok(found);
      return { first: found.firstSequence, bytes: found.bytes };
    };
    const fill = async (share: number): Promise<void> => {
      while ((await state()).bytes < (maxBytes / 12) * share) {
        const filler = "x".repeat(200);
        const answer = await put("east", at(ids, n++ % 40), filler);
        assert.ok(answer.status < 300, answer.text);
      }
    };
    let n = 0;
    try {
      await stack.simulate("crash", "west");
      // Purge after purge comes nearer to what the dead one has not applied; the warning lies one before it.
      const seen = async (): Promise<{ warned: boolean; left: boolean }> => {
        await fill(0.77);
        const { text } = await send(stack, "east", "GET", "/metrics");
        const value = (name: string): number =>
          Number(new RegExp(`^${name}\\{[^}]*dc="west"[^}]*\\} (\\d+)`, "m").exec(text)?.[1] ?? 0);
        return {
          warned: value("hothot_replicas_endangered") === 1,
          left: value("hothot_replicas_left_behind_total") > 0,
        };
      };
      const first = await stack.until(
        async () => {
          const now = await seen();
          return (now.warned || now.left) && now;
        },
        30_000,
        "the warning",
      );
      assert.deepEqual(first, { warned: true, left: false });
      await stack.until(async () => (await seen()).left, 30_000, "the purge");
      await stack.simulate("restart", "west");
      await allServe(stack);
      await allEqual(stack, "west");
      for (const id of ids.slice(0, Math.min(n, 40)))
        assert.equal((await send(stack, "west", "GET", `/v1/clusters/${id}`)).status, 200, id);
    } finally {
      await link.close();
    }
  });
});
