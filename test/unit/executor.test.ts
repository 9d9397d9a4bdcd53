import assert from "node:assert/strict";
import { test } from "node:test";
import { Problem } from "../../infra/errors.js";
import type { Written } from "../../replication/work.js";
import type { Command } from "../../services/api.js";
import { CommandExecutor, type CommandContext, type ExecutorOptions } from "../../services/executor.js";
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
