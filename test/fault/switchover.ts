import assert from "node:assert/strict";
import type { Client, Database } from "../../infra/postgres/database.js";
import { databaseOf } from "../integration/database.js";
import { logLeaders } from "../harness/log-leaders.js";
import type { TestStack } from "../harness/stack.js";
import { readLog } from "../integration/log-reader.js";
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
  const [owner = "", ...others] = stack.dcs.map((_, index) => at(stack.dcs, (index + turn) % stack.dcs.length));
  await spread(stack, at(others, 1));
  const before = at(
    (await shardMap(stack, at(others, 1))).filter((shard) => shard.owner === owner),
    0,
  );
  const { shard, epoch, partition } = before;
  const leads = (but?: string): Promise<string> =>
    stack.until(
      async () => {
        const leader = (await logLeaders(stack)).get(partition);
        return leader !== but && leader;
      },
      settleMs,
      `partition ${partition} has a leader`,
    );
  // The log is led away from the shard's owner, as a rule, and then by the datacenter that is not the target either.
  const third = one.waitsAt === "carry" ? await leads(owner) : at(others, 1);
  const target = at(
    others.filter((dc) => dc !== third),
    0,
  );
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
    leader: one.waitsAt === "carry" ? third : await leads(),
    asked: () => stack.until(() => says(asksTheLog) >= 0, settleMs, "the log is asked").then(() => undefined),
    unanswered: () => assert.equal(says(hasOpened), -1, "the log has answered"),
    pause,
    suspects: (dc, other) =>
      stack
        .until(async () => (await stateOf(stack, dc, other)) !== "serving", settleMs, `${dc} misses ${other}`)
        .then(() => undefined),
  };
  const since = stack.logs(owner).length;
  const told = (): LogLine[] => linesOf(stack.logs(owner).slice(since)).filter((line) => line.shard === shard);
  const says = (message: string): number =>
    told().findIndex((line) => line.message === message && line.epoch === epoch + 1 && line.owner === target);
  const lock = await Lock.take(stack, one.waitsAt === "owner" ? owner : target, {
    shard: one.waitsAt === "carry" ? null : shard,
  });
  let began = performance.now();
  let id = "";
  try {
    // By the owner itself where the third one is to fail.
    const by = one.waitsAt === "carry" ? owner : third;
    id = body<{ id: string }>(await send(stack, by, "POST", "/v1/switchovers", { shard, to: target }), 202).id;
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
  if (one.waitsAt !== "owner") await decidedOnce(stack, third, shard, epoch + 1);
  if (one.waitsAt === "carry") {
    const after = told().slice(says(asksTheLog));
    assert.ok(
      after.every((line) => line.message !== calledOff),
      `called off after its append was tried: ${JSON.stringify(after)}`,
    );
  }
  await stack.until(
    async () => body(await send(stack, third, "GET", `/v1/switchovers/${id}`), 200)["status"] !== "running",
    settleMs,
    "the operation has ended",
  );
  return { shard, from: owner, to: target, owner: ended.owner ?? "", epochs: ended.epoch - epoch, ms };
}

const asksTheLog = "asks the log to open";
const hasOpened = "opened in the log";
const calledOff = "a move is called off";
interface LogLine {
  readonly message: string;
  readonly shard?: number;
  readonly epoch?: number;
  readonly owner?: string;
}

/** The last line may be on its way. */
const linesOf = (text: string): LogLine[] =>
  text
    .split("\n")
    .slice(0, -1)
    .flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as LogLine] : []));

/** One `open` in the log began the epoch, however often its append was tried. */
async function decidedOnce(stack: TestStack, dc: string, shard: number, epoch: number): Promise<void> {
  const { batches } = await readLog(stack, dc);
  const opens = batches.filter(
    ({ header }) => header.kind === "open" && header.shard === shard && header.epoch === epoch,
  );
  assert.equal(opens.length, 1, JSON.stringify(opens.map(({ header, open }) => ({ header, open }))));
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

/** A lock in a datacenter's database, by a connection of the test's own: of a shard's row, or against what is carried there. */
class Lock {
  private constructor(
    private readonly database: Database,
    private readonly client: Client,
  ) {}

  static async take(stack: TestStack, dc: string, { shard }: { readonly shard: number | null }): Promise<Lock> {
    const database = databaseOf(stack, dc);
    const client = await database.connect();
    await client.query("BEGIN");
    if (shard === null) await client.query("LOCK TABLE carried_progress IN SHARE MODE");
    else await client.query("SELECT 1 FROM shard_head WHERE shard = $1 FOR UPDATE", [shard]);
    return new Lock(database, client);
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
