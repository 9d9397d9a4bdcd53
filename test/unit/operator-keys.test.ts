import assert from "node:assert/strict";
import { test } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import type { Reply } from "../../services/api.js";
import type { CommandContext, RoutedCommand } from "../../services/executor.js";
import { keyed, OperatorKeys } from "../../services/operator-keys.js";
import { startHttp } from "./http-support.js";

interface Row {
  readonly key: string;
  readonly fingerprint: string;
  readonly status: number;
  readonly body: unknown;
  readonly createdAt: number;
}

/** Datacenters whose copies hold what the log took; `down`: owners that take nothing. */
function group() {
  const rows: Row[] = [];
  const down = new Set<string>();
  const takers: string[] = [];
  const dcs = ["east", "west"];
  const keysIn = (site: string): OperatorKeys =>
    new OperatorKeys({
      site,
      servedBy: `${site}/n1`,
      time: systemTime,
      log: silentLogger,
      retentionMs: 60_000,
      datacenters: () => dcs,
      map: { ownedBy: (dc: string) => [{ shard: dcs.indexOf(dc) }] } as never,
      queries: {
        keys: async (_tenant: string, key: string, since: number) =>
          rows.filter((row) => row.key === key && row.createdAt > since),
      } as never,
      router: {
        execute: async (request: RoutedCommand) => {
          const { command } = request;
          const context: CommandContext = request.context;
          if (command.type !== "key.put") throw new TypeError(command.type);
          const owner = dcs[command.shard] ?? "";
          if (down.has(owner)) throw new Problem("owner_unreachable");
          assert.equal(context.durability, "replicated");
          takers.push(owner);
          const { key, fingerprint = "" } = context;
          const { status, body } = command;
          rows.push({ key: key ?? "", fingerprint, status, body, createdAt: systemTime.wall() });
          return { result: { status, body, servedBy: owner }, route: "local" };
        },
      } as never,
    });
  return { rows, down, takers, keysIn };
}

const requests: readonly (readonly [method: string, path: string, body: unknown, other: readonly [string, unknown]])[] =
  [
    ["PUT", "/v1/failover", { paused: true }, ["/v1/failover", { paused: false }]],
    ["POST", "/v1/repair", { shard: 1 }, ["/v1/repair", { shard: 2 }]],
    ["POST", "/v1/drains/op-a/cancel", undefined, ["/v1/drains/op-b/cancel", undefined]],
    ["POST", "/v1/divergent-operations/d1/replay", undefined, ["/v1/divergent-operations/d1/discard", undefined]],
    ["POST", "/v1/divergent-operations/d1/discard", undefined, ["/v1/divergent-operations/d2/discard", undefined]],
  ];

test("an operator's request with a key takes effect once, wherever it is repeated; with another body it is refused", async () => {
  const { rows, keysIn } = group();
  for (const [method, path, body, [otherPath, otherBody]] of requests) {
    let acts = 0;
    let refusal: Problem | undefined;
    const act = async (): Promise<Reply> => {
      if (refusal !== undefined) throw refusal;
      return { status: 200, body: { act: ++acts }, servedBy: "east/n1" };
    };
    const features = {
      setFailover: act,
      repair: act,
      cancelMove: act,
      replayDivergent: act,
      discardDivergent: act,
    };
    const [east, west] = [
      await startHttp({ extensions: keyed(features, keysIn("east")) }),
      await startHttp({ extensions: keyed(features, keysIn("west")) }),
    ];
    const get = async (t: typeof east, where: string, sent: unknown, key?: string) => {
      const answer = await fetch(t.url + where, {
        method,
        headers: { "content-type": "application/json", ...(key === undefined ? {} : { "idempotency-key": key }) },
        ...(sent === undefined ? {} : { body: JSON.stringify(sent) }),
      });
      const text = await answer.text();
      return {
        status: answer.status,
        replayed: answer.headers.get("idempotency-replayed"),
        text,
        code: (JSON.parse(text) as { code?: string }).code,
      };
    };
    try {
      // What is refused had no effect, and may be asked for again.
      refusal = new Problem("no_majority");
      assert.equal((await get(east, path, body, "k")).status, 503);
      refusal = undefined;
      const first = await get(east, path, body, "k");
      assert.equal(first.status, 200, first.text);
      assert.equal(first.replayed, null);
      for (const t of [east, west]) {
        const again = await get(t, path, body, "k");
        assert.deepEqual([again.status, again.text], [200, first.text], path);
        assert.equal(again.replayed, "true");
        const reused = await get(t, otherPath, otherBody, "k");
        assert.deepEqual([reused.status, reused.code], [422, "idempotency_key_reused"], otherPath);
      }
      assert.equal(acts, 1);
      await get(west, path, body, "k2");
      await get(west, path, body);
      await get(west, path, body);
      assert.equal(acts, 4);
      // At once: one of them acts.
      const both = await Promise.all([get(east, path, body, "k3"), get(east, path, body, "k3")]);
      assert.equal(acts, 5);
      assert.equal(both[0]?.text, both[1]?.text);
    } finally {
      await Promise.all([east.stop(), west.stop()]);
      rows.length = 0;
    }
  }
});

test("a key is taken by any owner that can be reached; where none can, the process that answered knows it", async () => {
  const { down, takers, keysIn } = group();
  let acts = 0;
  const act = async (): Promise<Reply> => ({ status: 200, body: { act: ++acts }, servedBy: "x" });
  const ask = (keys: OperatorKeys, key: string) =>
    keys.once(
      {
        requestId: "r",
        caller: { tenant: "", principal: "p" },
        deadline: systemTime.monotonic() + 1_000,
        durability: "local",
        consistency: "local",
        idempotencyKey: key,
      },
      ["failover", true],
      act,
    );
  const east = keysIn("east");
  await ask(east, "a");
  down.add("east");
  await ask(east, "b");
  assert.deepEqual(takers, ["east", "west"]);
  assert.equal((await ask(keysIn("west"), "b")).replayed, true);
  down.add("west");
  await ask(east, "c");
  assert.equal((await ask(east, "c")).replayed, true);
  assert.equal(acts, 3);
});
