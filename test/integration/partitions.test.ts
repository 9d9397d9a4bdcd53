import assert from "node:assert/strict";
import process from "node:process";
import { after as afterAll, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import { databaseOf } from "./database.js";
import { allEqual, allServe, at, body, idsIn, pause, placeOf, placeText, send, settleMs, shardMap } from "./support.js";

/** Writes through every datacenter, with keys, while something goes wrong. */
interface Load {
  /** Ends the load. @returns what was refused for good, and how many were acknowledged */
  end(): Promise<{ readonly refused: string[]; readonly acknowledged: number }>;
}

describe("links and datacenters that come and go", { timeout: 300_000 }, () => {
  let stack: TestStack;
  before(async () => {
    stack = await startStack({ rttMs: 0, env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
    await allServe(stack);
  });
  afterAll(() => stack?.stop());

  let loads = 0;
  const places = new Map<string, string>();
  /** @param through the datacenters that are asked */
  function load(through: readonly string[] = stack.dcs, timeoutMs = 20_000): Load {
    const run = ++loads;
    let going = true;
    const refused: string[] = [];
    let acknowledged = 0;
    const writers = through.map(async (dc, n) => {
      for (let i = 0; going; i++) {
        const key = `${run}-${n}-${i}`;
        const answer = await send(
          stack,
          dc,
          "PUT",
          `/v1/clusters/flap-${(i * 7 + n) % 60}`,
          { name: "n", spec: { key } },
          { "idempotency-key": key, "hothot-timeout-ms": String(timeoutMs) },
        );
        if (answer.status >= 300) {
          refused.push(`${dc} ${answer.text}`);
          continue;
        }
        acknowledged++;
        const place = placeText(placeOf(answer));
        assert.equal(places.get(place) ?? key, key, `${place} was given twice`);
        places.set(place, key);
        await pause(5);
      }
    });
    return {
      end: async () => {
        going = false;
        await Promise.all(writers);
        return { refused, acknowledged };
      },
    };
  }

  /** How often each shard changed its owner while `work` went on; more than once would be thrash. */
  async function changes(work: () => Promise<unknown>): Promise<number> {
    const before = await shardMap(stack, "central");
    await work();
    await allServe(stack);
    const after = await shardMap(stack, "central");
    const grown = after.map((shard) => shard.epoch - at(before, shard.shard).epoch);
    // A fence that came to no takeover is resumed by an own open: that is an epoch, but no other owner.
    assert.ok(Math.max(...grown) <= 2, `a shard went through ${Math.max(...grown)} epochs`);
    const moved = after.filter((shard) => shard.owner !== at(before, shard.shard).owner);
    return moved.length;
  }

  it("one link goes up and down every 300 ms for 20 s: nothing fails, no shard changes its owner more than once", async (t) => {
    const writes = load();
    const moved = await changes(async () => {
      const until = performance.now() + 20_000;
      for (let down = true; performance.now() < until; down = !down) {
        await stack.simulate(down ? "cut" : "heal", "east:west");
        await pause(300);
      }
      await stack.simulate("heal", "east:west");
    });
    const { refused, acknowledged } = await writes.end();
    assert.deepEqual(refused, []);
    t.diagnostic(`${acknowledged} writes, ${moved} shards changed their owner`);
    assert.equal(moved, 0, "nobody was silent to a majority");
    await allEqual(stack, "central");
  });

  it("what one datacenter sends to another is lost, and not the other way: requests go by the third, nobody is taken over", async (t) => {
    const writes = load(stack.dcs, 40_000);
    const moved = await changes(async () => {
      await stack.simulate("cut", "east:west", true);
      await pause(8_000);
      await stack.simulate("heal", "east:west");
    });
    const { refused, acknowledged } = await writes.end();
    t.diagnostic(`${acknowledged} writes, ${moved} shards changed their owner`);
    assert.deepEqual(refused, []);
    assert.equal(moved, 0);
    await allEqual(stack, "east");
  });

  it("a datacenter whose words are lost, though it hears the others, is taken over once, and returns", async (t) => {
    const writes = load(["central", "west"], 30_000);
    const moved = await changes(async () => {
      await stack.simulate("cut", "east", true);
      await stack.until(
        async () => (await shardMap(stack, "central")).every((shard) => shard.owner !== "east"),
        settleMs,
        "east's shards are taken over",
      );
      await stack.simulate("heal", "east");
    });
    const { refused, acknowledged } = await writes.end();
    t.diagnostic(`${acknowledged} writes, ${moved} shards changed their owner`);
    assert.deepEqual(refused, []);
    assert.ok(moved > 0);
    await allEqual(stack, "east");
  });

  /** Every datacenter owns its share again. */
  async function spread(): Promise<void> {
    const { id } = body<{ id: string }>(await send(stack, "central", "POST", "/v1/rebalances", {}), 202);
    await stack.until(
      async () => body(await send(stack, "central", "GET", `/v1/rebalances/${id}`), 200)["status"] === "complete",
      settleMs,
      "the shards are spread evenly",
    );
    await allServe(stack);
  }

  for (const [seconds, what, target] of [
    [1, "all processes", "west"],
    [3, "the node process", "west"],
    [10, "all processes", "central"],
  ] as const)
    it(`${what} of a datacenter stand still for ${seconds} s: at most one change of owner, and it heals`, async (t) => {
      const { node = [] } = stack.pids(target) as { node?: readonly number[] };
      await spread();
      const others = stack.dcs.filter((dc) => dc !== target);
      const writes = load(others, 30_000);
      const moved = await changes(async () => {
        if (what === "all processes") await stack.simulate("pause", target);
        else for (const pid of node) process.kill(pid, "SIGSTOP");
        await pause(seconds * 1_000);
        if (what === "all processes") await stack.simulate("resume", target);
        else for (const pid of node) process.kill(pid, "SIGCONT");
      });
      const { refused, acknowledged } = await writes.end();
      t.diagnostic(`${acknowledged} writes, ${moved} shards changed their owner`);
      assert.deepEqual(refused, []);
      if (seconds > 1) assert.ok(moved > 0, "it was taken over");
      await allEqual(stack, target);
    });

  it("an owner that can't serve what it was given gives it away within seconds", async () => {
    await spread();
    const map = await shardMap(stack, "east");
    const { shard } = at(
      map.filter((each) => each.owner === "central"),
      0,
    );
    const target = at(
      stack.dcs.filter((dc) => dc !== "central"),
      0,
    );
    const third = at(
      stack.dcs.filter((dc) => dc !== "central" && dc !== target),
      0,
    );
    const database = databaseOf(stack, target);
    await database.pool.query(
      "UPDATE shard_head SET stopped = 'set by a test', revision = revision + 1 WHERE shard = $1",
      [shard],
    );
    try {
      body(await send(stack, third, "POST", "/v1/takeovers", { shard, to: target, force: true }), 202);
      const given = await stack.until(
        async () => {
          const now = at(await shardMap(stack, third), shard);
          return now.epoch === at(map, shard).epoch + 2 && now.owner !== target && now.state === "owned" && now;
        },
        settleMs,
        `${target} has given shard ${shard} away`,
      );
      const [id = ""] = idsIn(shard, "given", 1);
      const written = await send(stack, target, "PUT", `/v1/clusters/${id}`, { name: "n", spec: {} });
      body(written, 201);
      assert.equal(written.headers.get("hothot-served-by"), `${given.owner}/n1`);
    } finally {
      await database.close();
    }
  });
});
