import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import { pack } from "msgpackr";
import { silentLogger } from "../../infra/logger.js";
import { ProvisionerKeeper, type ProvisionerKeeperOptions } from "../../services/coopr/keeper.js";
import type { Registered } from "../../services/coopr/registry.js";
import { ManualTime } from "../harness/manual-time.js";

const silentMs = 120_000;

async function keeping(context: TestContext, ids: readonly string[]) {
  const time = new ManualTime();
  const seen = {
    leases: [] as string[],
    removed: [] as string[],
    withdrawn: [] as string[],
    refused: new Set<string>(),
  };
  const known = new Set(ids);
  const handlers: ((message: { data: Uint8Array }) => void)[] = [];
  const deliver = (data: Uint8Array): void => handlers.forEach((handler) => handler({ data }));
  const options = {
    group: "g",
    messenger: {
      publish: (_subject: string, data: Uint8Array) => deliver(data),
      subscribe: (_subject: string, handler: (message: { data: Uint8Array }) => void) => {
        handlers.push(handler);
        return () => undefined;
      },
    },
    registry: {
      all: async () => [...known].map((id) => ({ id, shard: 0, capacity: 1, host: "h", port: 1, deleted: false })),
    },
    calls: { withdraw: async ({ id }: Registered) => void seen.withdrawn.push(id) },
    time,
    log: silentLogger,
    silentMs,
    active: () => true,
    owns: () => true,
    lease: async (registration: string, leaseMs: number) => {
      seen.leases.push(`${registration} ${leaseMs}`);
      return 1;
    },
    remove: async ({ id }: Registered) => {
      if (seen.refused.has(id)) throw new Error("its owner can't be reached");
      known.delete(id);
      seen.removed.push(id);
    },
  } as Partial<Record<keyof ProvisionerKeeperOptions, unknown>> as ProvisionerKeeperOptions;
  const keeper = new ProvisionerKeeper(options);
  await keeper.start();
  context.after(() => keeper.stop());
  return { time, keeper, seen, deliver };
}

test("who is silent for 120 s is removed and its tasks are free; a sign of life from any datacenter counts", async (context) => {
  const { time, keeper, seen, deliver } = await keeping(context, ["here", "there", "silent"]);
  for (let at = 0; at < silentMs + 20_000; at += 10_000) {
    keeper.alive("here");
    deliver(pack({ id: "there", alive: true }));
    await time.advance(10_000);
    if (at < silentMs - 20_000) assert.deepEqual(seen.removed, []);
  }
  assert.deepEqual(seen.removed, ["silent"]);
  assert.deepEqual(seen.withdrawn, ["silent"]);
  assert.ok(seen.leases.includes("coopr:silent 0"), "its tasks are offered again");
  assert.ok(seen.leases.includes(`coopr:here ${silentMs}`) && seen.leases.includes(`coopr:there ${silentMs}`));
});

test("one that can't be removed now keeps no other, and is removed later", async (context) => {
  const { time, seen } = await keeping(context, ["a", "b"]);
  seen.refused.add("a");
  await time.advance(silentMs + 15_000);
  assert.deepEqual(seen.removed, ["b"]);
  seen.refused.clear();
  await time.advance(10_000);
  assert.deepEqual(seen.removed, ["b", "a"]);
});

test("signs are sent now and then only, however busy a provisioner is", async (context) => {
  const { time, keeper, seen } = await keeping(context, ["busy"]);
  for (let call = 0; call < 1_000; call++) {
    keeper.alive("busy");
    await time.advance(10);
  }
  assert.ok(seen.leases.length >= 4 && seen.leases.length <= 6, `${seen.leases.length} signs in 10 s`);
});
