import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { silentLogger } from "../../infra/logger.js";
import { Database } from "../../infra/postgres/database.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { allServe, at, body, idsOf, placeOf, send, shardMap, type Answered, type Json } from "./support.js";

let stack: TestStack;
before(async () => {
  stack = await startStack({
    dcs: ["east", "west"],
    standby: true,
    worker: false,
    env: { HOTHOT_AUTOMATIC_FAILBACK: "false" },
  });
  await allServe(stack);
});
after(() => stack?.stop());

const put = (id: string, timeoutMs: number): Promise<Answered> =>
  send(stack, "east", "PUT", `/v1/clusters/${id}`, { name: id, spec: {} }, { "hothot-timeout-ms": String(timeoutMs) });

describe("a datacenter whose PostgreSQL has a synchronous standby", { concurrency: false }, () => {
  it("loses no acknowledged write when the standby takes over, and goes on in the next epoch", async () => {
    const ids = idsOf(await shardMap(stack, "east"), "east", "standby", 400);
    const first = placeOf(await put(at(ids, 0), 10_000));
    const acknowledged = [at(ids, 0)];
    let done = false;
    const writing = (async () => {
      for (let n = 1; !done; n++) {
        const id = at(ids, n % ids.length);
        if ((await put(id, 1_000)).status < 300) acknowledged.push(id);
      }
    })();
    try {
      await stack.until(() => acknowledged.length > 5, 30_000, "writes are taken");
      await stack.stack.promote("east");
      const before = acknowledged.length;
      await stack.until(() => acknowledged.length > before + 5, 60_000, "writes are taken again");
    } finally {
      done = true;
      await writing;
    }
    const later = placeOf(await put(at(ids, 0), 10_000));
    assert.ok(later.epoch > first.epoch, `epoch ${first.epoch}, then ${later.epoch}`);
    for (const dc of stack.dcs)
      for (const id of new Set(acknowledged))
        await stack.until(
          async () => (await send(stack, dc, "GET", `/v1/clusters/${id}`)).status === 200,
          30_000,
          `${dc} has ${id}`,
        );
    for (const dc of stack.dcs) {
      const { items } = body<{ items: Json[] }>(await send(stack, dc, "GET", "/v1/divergent-operations"), 200);
      assert.deepEqual(items, [], `${dc} has nothing divergent`);
    }
  });

  it("has the former primary as its standby after a restart", async () => {
    await stack.simulate("restart", "east");
    assert.equal(stack.stack.site("east").portsToTake().length, 0, "all of it runs");
    const id = at(idsOf(await shardMap(stack, "east"), "east", "again", 1), 0);
    await stack.until(async () => (await put(id, 2_000)).status < 300, 60_000, "east takes writes");
    const database = new Database({
      url: stack.stack.site("east").pair?.primary.url() ?? "",
      connections: 1,
      name: "test",
      log: silentLogger,
    });
    try {
      await stack.until(
        async () => {
          const { rows } = await database.pool.query<{ state: string }>(
            "SELECT sync_state AS state FROM pg_stat_replication",
          );
          return rows.length === 1 && rows[0]?.state === "sync";
        },
        30_000,
        "commits wait for the former primary",
      );
    } finally {
      await database.close();
    }
  });
});
