import assert from "node:assert/strict";
import { test } from "node:test";
import { pack } from "msgpackr";
import { Problem } from "../../infra/errors.js";
import type { Operation, Written } from "../../replication/work.js";
import type { Command } from "../../services/api.js";
import { CommandExecutor, shardOfCommand, type CommandContext, type ExecutorOptions } from "../../services/executor.js";
import { OwnerGate } from "../../services/engine/gate.js";
import type { ShardMap } from "../../shards/map.js";
import { epoch, position, shardId } from "../../shards/ids.js";
import type { Routed } from "../../routing/router.js";

const context: CommandContext = {
  caller: { tenant: "", principal: "anonymous" },
  durability: "local",
  requestId: "r",
  traceparent: null,
  key: null,
};
const request = (command: Command, durability: CommandContext["durability"] = "local"): Routed<Command> => ({
  shard: shardId(3),
  command,
  context: { ...context, durability },
  deadline: 1_000,
  repeatable: false,
  write: true,
});
const put: Command = { type: "cluster.put", id: "a", fields: { name: "a", spec: {} }, condition: {} };

const executorWith = (parts: Partial<Record<keyof ExecutorOptions, unknown>>): CommandExecutor =>
  new CommandExecutor({ site: "east", servedBy: "east/n1", shards: 8, ...parts } as ExecutorOptions);

test("a replayed answer names the owner in the epoch of its position, where that is known", async () => {
  const history = new Map([[2, "west"]]);
  const owner = async (replayed: boolean, at: number): Promise<string | undefined> => {
    const written: Written = {
      outcome: { status: 200, body: {} },
      epoch: epoch(at),
      position: position(9),
      replayed,
      openEpoch: epoch(4),
    };
    const executor = executorWith({
      writer: { write: () => Promise.resolve(written) },
      loads: { write: () => Promise.resolve(written) },
      ownerIn: (_shard: number, asked: number) =>
        asked === 3 ? Promise.reject(new Error("away")) : Promise.resolve(history.get(asked)),
    });
    const reply = await executor.execute(request(put));
    const loaded = await executor.execute(request({ type: "cluster.load", shard: shardId(3), rows: [] }));
    assert.equal(loaded.owner, reply.owner);
    return reply.owner;
  };
  assert.deepEqual(
    [await owner(false, 4), await owner(true, 4), await owner(true, 2), await owner(true, 1), await owner(true, 3)],
    ["east", "east", "west", undefined, undefined],
  );
});

test("what tasks printed is shortened to their ends where the answer travels in a message", async () => {
  const items = [
    { id: "a", stdout: "x".repeat(64_000), stderr: "" },
    { id: "b", stdout: "short", stderr: null },
    { id: "c", stdout: "😀".repeat(16_000), stderr: `${"y".repeat(63_999)}z` },
  ];
  const body = { items, nextCursor: null };
  const written = { outcome: { status: 200, body }, epoch: epoch(4), position: position(9), replayed: false };
  const executor = executorWith({
    writer: { write: () => Promise.resolve({ ...written, openEpoch: epoch(4) }) },
    tasks: { list: () => ({}) },
  });
  const listed = async (answerBytes?: number): Promise<typeof items> => {
    const asked = request({ type: "job.tasks", jobId: "j3-aaaaaaaaaaaaaaaa" });
    const reply = await executor.execute({ ...asked, ...(answerBytes === undefined ? {} : { answerBytes }) });
    return (reply.body as typeof body).items;
  };
  assert.deepEqual(await listed(), items);
  assert.deepEqual(await listed(900_000), items);
  const cut = await listed(30_000);
  const size = pack({ items: cut, nextCursor: null }).length;
  assert.ok(size <= 30_000 && size > 29_900, `${size} bytes`);
  assert.deepEqual([cut[1], cut[0]?.stderr], [items[1], ""]);
  assert.match(cut[2]?.stderr ?? "", /^y{9000,}z$/);
  assert.match(cut[2]?.stdout ?? "", /^(😀){2000,}$/u);
  // Where nothing is left for it, there is still the list.
  assert.deepEqual(
    (await listed(20)).map(({ id, stdout }) => [id, stdout]),
    [
      ["a", ""],
      ["b", ""],
      ["c", ""],
    ],
  );
});

test("an answer of the owner is asked again when it is sent, and holds only while the shard may be answered for (rule f)", async () => {
  const lease = { valid: true };
  let waits = false;
  const written: Written = {
    outcome: { status: 201, body: {} },
    epoch: epoch(4),
    position: position(9),
    replayed: false,
    openEpoch: epoch(4),
  };
  const executor = new CommandExecutor({
    site: "east",
    servedBy: "east/n1",
    shards: 8,
    writer: { write: () => Promise.resolve(written) },
    queries: { cluster: () => Promise.resolve({ deleted: false, labels: {}, version: 1 }) },
    gate: new OwnerGate({
      site: "east",
      map: {
        get: () => ({ shard: shardId(3), owner: "east", epoch: epoch(4), state: "owned", confirmed: true }),
      } as unknown as ShardMap,
      leases: lease,
      restorer: { shardWaits: () => waits },
      room: () => undefined,
    }),
  } as Partial<Record<keyof ExecutorOptions, unknown>> as ExecutorOptions);
  const unknown = (error: unknown): boolean => error instanceof Problem && error.code === "outcome_unknown";
  const local = await executor.execute(request(put));
  const replicated = await executor.execute(request(put, "replicated"));
  const read = await executor.execute(request({ type: "cluster.get", id: "a" }));
  for (const answer of [local, replicated, read]) answer.confirm?.();
  // Rows of the shard that are being restored are not missing.
  waits = true;
  await assert.rejects(
    executor.execute(request({ type: "cluster.get", id: "a" })),
    (error) => error instanceof Problem && error.code === "no_lease",
  );
  waits = false;
  lease.valid = false;
  assert.throws(() => local.confirm?.(), unknown);
  assert.throws(
    () => read.confirm?.(),
    (error) => error instanceof Problem && error.code === "no_lease",
  );
  // The append is the proof: no lease is needed.
  replicated.confirm?.();
});

test("what carries a request out anew is that request: its key goes with the first one's fingerprint", async () => {
  const prints: (string | undefined)[] = [];
  const written: Written = {
    outcome: { status: 201, body: {} },
    epoch: epoch(4),
    position: position(9),
    replayed: false,
    openEpoch: epoch(4),
  };
  const executor = executorWith({
    writer: { write: async (operation: Operation) => (prints.push(operation.key?.fingerprint), written) },
    gate: { mayAcknowledge: () => true },
  });
  const keyed = (command: Command, more: Partial<CommandContext> = {}) => {
    const asked = request(command);
    return executor.execute({ ...asked, context: { ...(asked.context as CommandContext), key: "k", ...more } });
  };
  await keyed(put);
  await keyed({ ...put, condition: { absent: true } });
  const [first, replay] = prints;
  assert.notEqual(first, replay);
  await keyed({ ...put, condition: { absent: true } }, { fingerprint: first ?? "" });
  assert.equal(prints[2], first);
});

test("an owner read during which the shard moves, away or away and back, is no answer (rule f)", async () => {
  let held = 4;
  let row: unknown;
  const read = async (): Promise<unknown> => {
    held = 5;
    return row;
  };
  const executor = executorWith({
    queries: { cluster: read, job: read },
    gate: { held: () => epoch(held), mayAcknowledge: () => true },
  });
  for (const found of [undefined, { deleted: false, labels: {}, version: 1 }])
    for (const command of [
      { type: "cluster.get", id: "a" },
      { type: "job.get", jobId: "j3-aaaaaaaaaaaaaaaa" },
    ] as const) {
      row = found;
      held = 4;
      await assert.rejects(executor.execute(request(command)), { code: "not_owner" });
    }
  // In an epoch that stays the same it is one.
  assert.equal((await executor.execute(request({ type: "cluster.get", id: "a" }))).status, 200);
});

test("a finish or heartbeat of a task that can't exist has a stale token, whatever its id", () => {
  for (const taskId of ["no-such-task", "j99999-abcdefgh.1.1", "j3-abcdefgh"])
    for (const type of ["task.finish", "task.heartbeat"] as const)
      assert.throws(
        () => shardOfCommand({ type, taskId, token: "x".repeat(300), workerId: "w", status: "ok" } as Command, 64),
        { code: "stale_token" },
      );
  assert.throws(() => shardOfCommand({ type: "job.get", jobId: "no-such-job" }, 64), { code: "not_found" });
});
