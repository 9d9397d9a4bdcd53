import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { endProcess } from "../../infra/local/processes.js";
import { runCli, startStack, type TestStack } from "../harness/stack.js";
import { allEqual, at, body, idsOf, problem, send, settleMs, shardMap, type Answered, type Json } from "./support.js";

describe("one of two datacenters is gone for good", { timeout: 240_000 }, () => {
  let stack: TestStack;
  let mine = "";
  let theirs = "";
  let unpublished = "";
  let worked = "";
  let job: Json = {};
  before(async () => {
    stack = await startStack({ dcs: ["a", "b"], env: { HOTHOT_SIMULATED_TASK_MS: "700" } });
  });
  afterAll(() => stack?.stop());

  const put = (dc: string, id: string, name: string, durability = "local"): Promise<Answered> =>
    send(stack, dc, "PUT", `/v1/clusters/${id}`, { name, spec: {} }, { "hothot-durability": durability });
  const nameAt = async (dc: string, id: string): Promise<unknown> =>
    body(await send(stack, dc, "GET", `/v1/clusters/${id}`), 200)["name"];

  it("its shards wait, the status says why, and a takeover is refused with what a forced one means", async () => {
    const map = await shardMap(stack, "a");
    [mine = ""] = idsOf(map, "a", "glass", 1);
    [theirs = "", unpublished = "", worked = ""] = idsOf(map, "b", "glass", 3);
    for (const id of [mine, theirs, unpublished, worked]) body(await put("a", id, "before", "replicated"), 201);
    job = body(await send(stack, "b", "POST", `/v1/clusters/${worked}/operations`, { type: "create" }), 202);
    await allEqual(stack, "a");

    // Without one of two servers the log takes nothing: these are acknowledged, and in their own datacenter alone.
    const nats = stack.stack.site("a").nats.process();
    assert.ok(nats !== undefined);
    await endProcess(nats, "SIGKILL", 5_000);
    body(await put("b", unpublished, "only at b"), 200);
    body(await put("a", mine, "only at a"), 200);
    await stack.simulate("crash", "b");
    await stack.simulate("restart", "a");

    const topology = body<{ automaticTakeover: { possible: boolean; why: string } }>(
      await send(stack, "a", "GET", "/v1/topology"),
      200,
    );
    assert.equal(topology.automaticTakeover.possible, false);
    assert.match(topology.automaticTakeover.why, /takeover --force/);
    const refusal = await stack.until(
      async () => {
        const found = await send(stack, "a", "POST", "/v1/takeovers", { dc: "b", to: "a" });
        return !found.text.includes("owner_reachable") && found;
      },
      settleMs,
      "a knows that b is dead",
    );
    problem(refusal, "no_majority");
    const refused = await stack.cli("takeover", "--dc", "b");
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /no_majority.*divergent when it returns/s);
    const dry = await stack.cli("takeover", "--dc", "b", "--force", "--dry-run", "--json");
    assert.equal(dry.code, 0, dry.stderr);
    const plan = JSON.parse(dry.stdout) as Json;
    assert.deepEqual([plan["generation"], plan["primary"], plan["sites"], plan["left"]], [2, "a", ["a"], ["b"]]);
    assert.match(String(plan["consequence"]), /b must stay off/);
  });

  it("a forced takeover begins a new log with the survivor's copy, also when it is killed and repeated: it owns all, and restarts the jobs", async () => {
    // What it has started goes on behind it.
    const force = ["takeover", "--dc", "b", "--force", "--dir", stack.dir];
    const killed = await runCli(force, {}, /creating the group's log/);
    assert.equal(killed.code, -1, killed.stderr);
    const forced = await stack.cli("takeover", "--dc", "b", "--force", "--json");
    assert.equal(forced.code, 0, forced.stderr);
    assert.deepEqual((JSON.parse(forced.stdout) as Json)["left"], ["b"]);
    const map = await stack.until(
      async () => {
        const found = await shardMap(stack, "a");
        return found.every((shard) => shard.owner === "a" && shard.state === "owned") && found;
      },
      settleMs,
      "a owns every shard",
    );
    assert.ok(map.every((shard) => shard.epoch > 2 ** 32));
    assert.equal(await nameAt("a", mine), "only at a");
    assert.equal(await nameAt("a", unpublished), "before");
    body(await put("a", theirs, "after", "replicated"), 200);
    body(await put("a", unpublished, "after"), 200);
    const done = await stack.until(
      async () => {
        const found = body(await send(stack, "a", "GET", `/v1/jobs/${String(job["id"])}`), 200);
        return found["status"] === "complete" && found;
      },
      settleMs,
      "the job of the datacenter that is gone is complete",
    );
    assert.deepEqual([done["attempt"], done["runsIn"]], [2, "a"]);
    const history = body<{ items: Json[] }>(await send(stack, "a", "GET", "/v1/history?limit=1000"), 200).items;
    assert.ok(history.some((each) => each["from"] === "b" && each["reason"] === "log generation 2"));
    const again = await stack.cli("simulate", "restart", "b");
    assert.equal(again.code, 1);
    assert.match(again.stderr, /no_such_site/);
  });

  it("the other one comes back with its old disk: what only it had is divergent, and all copies are equal", async () => {
    const added = await stack.cli("dc", "add", "b", "--json");
    assert.equal(added.code, 0, added.stderr);
    await allEqual(stack, "a");
    for (const dc of ["a", "b"]) {
      assert.equal(await nameAt(dc, unpublished), "after");
      assert.equal(await nameAt(dc, mine), "only at a");
    }
    const { items } = body<{ items: Json[] }>(await send(stack, "b", "GET", "/v1/divergent-operations"), 200);
    const found = items.filter((each) => each["clusterId"] === unpublished);
    assert.equal(found.length, 1);
    assert.match(JSON.stringify(at(found, 0)["value"]), /"name":"only at b"/);
    const map = await shardMap(stack, "b");
    assert.ok(
      map.some((shard) => shard.owner === "b"),
      "the rebalance gave it shards",
    );
    for (const shard of ["a", "b"] as const)
      body(await put(shard === "a" ? "b" : "a", shard === "a" ? mine : theirs, "both", "replicated"), 200);
  });
});
