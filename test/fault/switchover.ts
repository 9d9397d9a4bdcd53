import assert from "node:assert/strict";
import type { Client, Database } from "../../infra/postgres/database.js";
import { databaseOf } from "../integration/database.js";
import { logLeaders } from "../harness/log-leaders.js";
import type { TestStack } from "../harness/stack.js";
import {
  allEqual,
  allServe,
  at,
  body,
  idsIn,
  pause,
  send,
  settleMs,
  shardMap,
  type ShardView,
} from "../integration/support.js";
import type { Roles, SwitchoverCase } from "./switchover-cases.js";

export interface CaseResult {
  readonly shard: number;
  readonly from: string;
  readonly to: string;
  /** Who owns the shard in the end, and in which epoch. */
  readonly owner: string;
  readonly epochs: number;
  /** Milliseconds from the fault until the shard was written again, through every live datacenter. */
  readonly ms: number;
}

/**
 * Runs one case on a stack whose links can be cut: starts a move, holds it at its step by a lock in a database, brings the
 * fault, lets go, and waits until exactly one datacenter owns the shard and writes it, without an operator.
 * @throws AssertionError when that does not come
 */
export async function runCase(stack: TestStack, one: SwitchoverCase, turn: number): Promise<CaseResult> {
  const [owner = "", target = "", third = ""] = stack.dcs.map((_, index) =>
    at(stack.dcs, (index + turn) % stack.dcs.length),
  );
  await spread(stack, third);
  const before = at(
    (await shardMap(stack, third)).filter((shard) => shard.owner === owner),
    0,
  );
  const { shard, epoch } = before;
  const [cluster = ""] = idsIn(shard, `case-${turn}`, 1);
  const write = (dc: string): ReturnType<typeof send> =>
    send(
      stack,
      dc,
      "PUT",
      `/v1/clusters/${cluster}`,
      { name: "n", spec: { dc } },
      { "hothot-durability": "replicated" },
    );
  body(await write(third), 201);
  const roles: Roles = {
    stack,
    owner,
    target,
    third,
    leader: await stack.until(
      async () => (await logLeaders(stack)).get(before.partition),
      settleMs,
      `partition ${before.partition} has a leader`,
    ),
    pause,
    suspects: (dc, other) =>
      stack
        .until(async () => (await stateOf(stack, dc, other)) !== "serving", settleMs, `${dc} misses ${other}`)
        .then(() => undefined),
  };
  const lock = await RowLock.take(stack, one.waitsAt === "owner" ? owner : target, shard);
  let began = performance.now();
  let id = "";
  try {
    id = body<{ id: string }>(await send(stack, third, "POST", "/v1/switchovers", { shard, to: target }), 202).id;
    await stack.until(() => lock.awaited(), settleMs, "the move waits at its step");
    began = performance.now();
    await one.fault(roles);
  } finally {
    await lock.release();
  }
  await one.then?.(roles);
  const dead = one.dead(roles);
  const live = stack.dcs.filter((dc) => !dead.includes(dc));
  const ended = await stack.until(() => agreed(stack, live, shard, dead), settleMs, "one datacenter owns the shard");
  for (const dc of live) {
    const answer = await stack.until(
      async () => {
        const got = await write(dc);
        return got.status === 200 && got;
      },
      settleMs,
      `a write through ${dc}`,
    );
    assert.equal(answer.headers.get("hothot-owner"), (await agreed(stack, live, shard, dead))?.owner);
  }
  const ms = performance.now() - began;
  if (one.expect === "stays") assert.deepEqual([ended.owner, ended.epoch], [owner, epoch]);
  if (one.expect === "moved") assert.deepEqual([ended.owner, ended.epoch], [target, epoch + 1]);
  assert.ok(ended.epoch >= epoch);
  for (const dc of stack.dcs) await stack.simulate("restart", dc);
  await allServe(stack);
  await allEqual(stack, third);
  await stack.until(
    async () => body(await send(stack, third, "GET", `/v1/switchovers/${id}`), 200)["status"] !== "running",
    settleMs,
    "the operation has ended",
  );
  return { shard, from: owner, to: target, owner: ended.owner ?? "", epochs: ended.epoch - epoch, ms };
}

/** All live datacenters name the same owner of the shard, which lives and serves it. */
async function agreed(
  stack: TestStack,
  live: readonly string[],
  shard: number,
  dead: readonly string[],
): Promise<ShardView | undefined> {
  const seen = await Promise.all(live.map(async (dc) => at(await shardMap(stack, dc), shard)));
  const first = at(seen, 0);
  const same = seen.every((each) => each.owner === first.owner && each.epoch === first.epoch && each.state === "owned");
  return same && first.owner !== null && !dead.includes(first.owner) ? first : undefined;
}

async function stateOf(stack: TestStack, seenFrom: string, dc: string): Promise<string> {
  const { datacenters } = body<{ datacenters: { name: string; state: string }[] }>(
    await send(stack, seenFrom, "GET", "/v1/topology"),
    200,
  );
  return datacenters.find(({ name }) => name === dc)?.state ?? "unknown";
}

/** Every datacenter owns its share. */
async function spread(stack: TestStack, from: string): Promise<void> {
  await stack.until(
    async () => {
      const { id } = body<{ id: string }>(await send(stack, from, "POST", "/v1/rebalances", {}), 202);
      return stack.until(
        async () => body(await send(stack, from, "GET", `/v1/rebalances/${id}`), 200)["status"] === "complete",
        5_000,
        "the rebalance ends",
      );
    },
    settleMs,
    "the shards are spread",
  );
  await allServe(stack);
}

/** A lock of a shard's row in a datacenter's database, by a connection of the test's own. */
class RowLock {
  private constructor(
    private readonly database: Database,
    private readonly client: Client,
  ) {}

  static async take(stack: TestStack, dc: string, shard: number): Promise<RowLock> {
    const database = databaseOf(stack, dc);
    const client = await database.connect();
    await client.query("BEGIN");
    await client.query("SELECT 1 FROM shard_head WHERE shard = $1 FOR UPDATE", [shard]);
    return new RowLock(database, client);
  }

  /** Somebody of the datacenter waits for it. */
  async awaited(): Promise<boolean> {
    const { rows } = await this.client.query<{ n: number }>(
      "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'hothot%'",
    );
    return (rows[0]?.n ?? 0) > 0;
  }

  /** Also when its server is gone, or stands still: the connection ends, and with it the lock. */
  async release(): Promise<void> {
    this.client.release(true);
    await Promise.race([this.database.close().catch(() => undefined), pause(500)]);
  }
}
