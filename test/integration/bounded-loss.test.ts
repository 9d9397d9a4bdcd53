import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { endProcess, isAlive } from "../../infra/local/processes.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { shardOf } from "../../shards/ids.js";
import { allEqual, allServe, at, idsOf, problem, send, shardMap, shards, timed, type ShardView } from "./support.js";

const maxUnpublishedMs = 3_000;

let stack: TestStack;
let map: ShardView[];
before(async () => {
  stack = await startStack({
    worker: false,
    env: {
      HOTHOT_MAX_UNPUBLISHED_MS: String(maxUnpublishedMs),
      HOTHOT_MAX_UNPUBLISHED_BYTES: "1000000",
      HOTHOT_BACKLOG_BYTES_PER_SECOND: "1000000",
    },
  });
  await allServe(stack);
  map = await shardMap(stack, "east");
  // A process is killed below: what it acknowledged must not become divergent by a takeover.
  assert.equal((await send(stack, "east", "PUT", "/v1/failover", { paused: true })).status, 200);
});
after(() => stack?.stop());

const put = (dc: string, id: string, headers: Record<string, string> = {}, bytes = 100) =>
  send(stack, dc, "PUT", `/v1/clusters/${id}`, { name: "n", spec: { filler: "x".repeat(bytes) } }, headers);

async function metric(dc: string, name: string): Promise<number> {
  const { text } = await send(stack, dc, "GET", "/metrics");
  return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1] ?? Number.NaN);
}

async function killNats(site: string): Promise<void> {
  const process_ = stack.stack.site(site).nats.process();
  assert.ok(process_ !== undefined);
  await endProcess(process_, "SIGKILL", 5_000);
  assert.ok(!isAlive(process_));
}

const brief = { "hothot-timeout-ms": "1500" };

describe("a log that a majority of its sites has left", { concurrency: false }, () => {
  const acknowledged = new Set<string>();

  it("takes nothing: local writes go on up to their bound, then wait, then are refused", async () => {
    await killNats("central");
    await killNats("west");
    const ids = idsOf(map, "east", "outage", 400);
    let next = 0;
    // The time half: writes are taken until the oldest of the shard is too old.
    const refused = await stack.until(
      async () => {
        const id = at(ids, next++ % 300);
        const { ms, value } = await timed(() => put("east", id, { "hothot-timeout-ms": "1500" }));
        if (value.status < 300) acknowledged.add(id);
        return value.status === 503 && value.text.includes("unpublished_limit") && { ms, value, id };
      },
      40_000,
      "a local write is refused",
    );
    problem(refused.value, "unpublished_limit");
    assert.equal((JSON.parse(refused.value.text) as { owner?: string }).owner, "east");
    assert.ok(refused.ms > 1_000 && refused.ms < 5_000, `it waited ${refused.ms} ms`);
    assert.ok(acknowledged.size > 10, `${acknowledged.size} writes were taken`);
    // What makes no record goes on, though the owner answers it by its database.
    const job = `j${shardOf(refused.id, shards)}-0000000000000000`;
    problem(await send(stack, "east", "GET", `/v1/jobs/${job}/tasks`, undefined, brief), "not_found");
    assert.ok((await metric("east", "hothot_unpublished_records")) >= acknowledged.size);
  });

  it("lets the process that refused go on by itself when a majority is back", async () => {
    const before = stack.pids("east").node;
    await stack.simulate("restart", "central");
    const ids = idsOf(map, "east", "again", 300);
    let next = 0;
    await stack.until(
      async () => {
        const id = at(ids, next++ % 300);
        const { status } = await put("east", id, brief);
        if (status < 300) acknowledged.add(id);
        return status < 300;
      },
      40_000,
      "local writes go on",
    );
    await stack.until(
      async () => (await metric("east", "hothot_unpublished_records")) === 0,
      20_000,
      "the log has taken what was held back",
    );
    assert.deepEqual(stack.pids("east").node, before);
    await killNats("central");
  });

  it("does not refuse `replicated` writes, which wait for it", async () => {
    const id = at(idsOf(map, "east", "replicated", 1), 0);
    const answer = await put("east", id, { "hothot-durability": "replicated", "hothot-timeout-ms": "1500" });
    problem(answer, "outcome_unknown");
  });

  it("bounds the bytes of all shards together", async () => {
    // Large writes to fresh shards: their own age is no reason.
    const ids = idsOf(map, "east", "large", 60);
    const last = await stack.until(
      async () => {
        for (const id of ids) {
          const answer = await put(
            "east",
            id,
            { "hothot-durability": "replicated", "hothot-timeout-ms": "300" },
            100_000,
          );
          if (answer.status === 503 && answer.text.includes("MB")) return answer;
        }
        return undefined;
      },
      40_000,
      "a write is refused for the bytes held back",
    );
    problem(last, "unpublished_limit");
    assert.ok((await metric("east", "hothot_unpublished_bytes")) > 1_000_000);
  });

  it("gets the backlog when it comes back, also from a process that was killed meanwhile; then writes go on", async () => {
    const node = stack.stack.site("east").nodes[0]?.process();
    assert.ok(node !== undefined);
    await endProcess(node, "SIGKILL", 5_000);
    await stack.simulate("restart", "central");
    await stack.simulate("restart", "west");
    await stack.simulate("restart", "east");
    const id = at(idsOf(map, "east", "afterwards", 1), 0);
    await stack.until(async () => (await put("east", id)).status < 300, 40_000, "local writes go on");
    await allServe(stack);
    for (const dc of stack.dcs)
      for (const each of acknowledged)
        await stack.until(
          async () => (await send(stack, dc, "GET", `/v1/clusters/${each}`)).status === 200,
          30_000,
          `${dc} has ${each}`,
        );
    await stack.until(
      async () => (await metric("east", "hothot_unpublished_bytes")) === 0,
      20_000,
      "nothing is held back",
    );
    await allEqual(stack, "east");
  });
});
