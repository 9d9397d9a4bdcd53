import assert from "node:assert/strict";
import { test } from "node:test";
import { silentLogger } from "../../infra/logger.js";
import { GiveAway, patienceMs, type GiveAwayOptions } from "../../replication/give-away.js";
import type { BatchHeader } from "../../replication/record.js";
import { epoch, partition, position, shardId, type Epoch } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import type { OpenRequest } from "../../shards/ownership-log.js";
import { ManualTime } from "../harness/manual-time.js";

const shard = shardId(0);

async function owner() {
  const time = new ManualTime();
  const world = {
    tail: { owner: "east", epoch: epoch(5) } as BatchHeader,
    head: {
      shard,
      owner: "west",
      epoch: epoch(4),
      state: "replica",
      confirmed: true,
      published: 7,
      position: 7,
    } as Head,
    able: ["central"] as string[],
    active: true,
    moving: false,
    waits: false,
    done: [] as string[],
    opened: [] as OpenRequest[],
  };
  const giveAway = new GiveAway({
    site: "east",
    shards: 1,
    time,
    log: silentLogger,
    map: { get: () => world.head, adopt: (head: Head) => (world.head = head) },
    store: {
      renounce: async (_shard: number, at: Epoch) => {
        world.done.push(`renounce ${at}`);
        return world.head;
      },
    },
    shardLog: {
      known: () => ({ sequence: 1, header: world.tail }),
      partitionOf: () => partition(0),
    },
    ownership: {
      open: async (request: OpenRequest) => {
        world.done.push(`open ${request.to}`);
        world.opened.push(request);
        return { kind: "opened" };
      },
    },
    active: () => world.active,
    moving: () => world.moving,
    waits: () => world.waits,
    successors: () => world.able,
  } as Partial<Record<keyof GiveAwayOptions, unknown>> as GiveAwayOptions);
  await giveAway.start();
  return { world, time, stop: async () => (await Promise.all([giveAway.stop(), time.advance(1_000)]))[0] };
}

test("what the log gave and is not served is renounced, then given to who can open it, and not before its time", async () => {
  const { world, time, stop } = await owner();
  await time.advance(patienceMs);
  assert.deepEqual(world.done, []);
  await time.advance(1_000);
  assert.deepEqual(world.done, ["renounce 5", "open central"]);
  const [request] = world.opened;
  assert.equal(request?.against, 5);
  assert.equal(request?.from, "east");
  assert.equal(request?.sameTenure, false);
  assert.equal(request?.kind, "takeover", "failback still knows where the shard was at home");
  await stop();
});

test("a shard that is served, or moved by somebody, or of another owner, stays", async () => {
  const { world, time, stop } = await owner();
  world.head = { ...world.head, owner: "east", epoch: epoch(5), state: "owned", confirmed: true };
  await time.advance(20_000);
  world.head = { ...world.head, confirmed: false };
  world.moving = true;
  await time.advance(20_000);
  world.moving = false;
  world.tail = { ...world.tail, owner: "west" };
  await time.advance(20_000);
  assert.deepEqual(world.done, []);
  await stop();
});

test("rows that wait to be restored count as not served; what is not in the log yet is never left behind", async () => {
  const { world, time, stop } = await owner();
  world.head = { ...world.head, owner: "east", epoch: epoch(5), state: "owned", position: position(9) };
  world.waits = true;
  await time.advance(patienceMs + 1_000);
  assert.deepEqual(world.done, ["renounce 5"], "its records are published first");
  world.head = { ...world.head, published: position(9) };
  await time.advance(patienceMs + 1_000);
  assert.deepEqual(world.done.slice(-1), ["open central"]);
  await stop();
});

test("without anybody who could open it nothing is renounced; without a lease nothing is done, and time counts anew", async () => {
  const { world, time, stop } = await owner();
  world.able = [];
  await time.advance(20_000);
  assert.deepEqual(world.done, []);
  world.able = ["central"];
  world.active = false;
  await time.advance(20_000);
  world.active = true;
  await time.advance(patienceMs);
  assert.deepEqual(world.done, []);
  await time.advance(1_000);
  assert.deepEqual(world.done, ["renounce 5", "open central"]);
  await stop();
});
