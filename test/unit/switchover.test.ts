import assert from "node:assert/strict";
import { test } from "node:test";
import { silentLogger } from "../../infra/logger.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import type { Followed } from "../../shards/followed-opens.js";
import type { OpenRequest, OpenResult } from "../../shards/ownership-log.js";
import { Switchover, type MoveRequest, type SwitchoverOptions } from "../../shards/switchover.js";
import { ManualTime } from "../harness/manual-time.js";

const shard = shardId(0);

/** Whoever sleeps finds that the time has passed. */
class Passing extends ManualTime {
  override async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    if (signal?.aborted !== true) this.set(this.monotonic() + ms);
  }
}

/** East owns a shard, with two processes; what happens at each step is up to the test. */
function owner(facts: Partial<Record<keyof typeof usual, unknown>> = {}) {
  const time = new Passing();
  const world = { ...usual, ...facts } as typeof usual;
  const steps: string[] = [];
  const put = (head: Partial<Head>): Head => (world.head = { ...world.head, ...head });
  const step = async (name: string): Promise<void> => {
    steps.push(name);
    await world.during(name, put);
  };
  const switchover = new Switchover({
    site: "east",
    node: "n1",
    goneMs: 4_100,
    time,
    log: silentLogger,
    map: { get: (asked: number) => (asked === shard ? world.head : undefined), adopt: put },
    store: {
      beginMove: async () => {
        await step("begin");
        return world.begins ? { head: put({ state: "moving" }), nodes: ["n2"] } : null;
      },
      endMove: async () => {
        await step("end");
        return put({ state: "owned" });
      },
    },
    ownership: {
      open: async (request: OpenRequest) => {
        await step("open");
        world.stated = request.closing;
        world.asked = request;
        time.set(time.monotonic() + 7);
        return world.result;
      },
    },
    active: () => world.active,
    leaseValid: () => world.lease,
    canOpen: () => world.able && time.monotonic() >= world.doubtUntil,
    hold: (node: string) => step(`hold ${node}`),
    published: () => position(6),
    followed: (...told: Parameters<Followed>) => void (world.followed = told),
    flush: async () => {
      await step("flush");
      return world.flushes;
    },
    carry: () => step("carry").then(() => world.closing),
    opened: async () => {
      await step("opened");
      time.set(time.monotonic() + 30);
      return true;
    },
  } as Partial<Record<keyof SwitchoverOptions, unknown>> as SwitchoverOptions);
  const move = (request: Partial<MoveRequest> = {}) =>
    switchover.move({ shard, to: "west", kind: "switchover", reason: "asked for", by: "test", ...request });
  return { world, steps, switchover, move, time };
}

const usual = {
  /** What closes the target's database, as it knows it. */
  closing: 0,
  /** What the open said of it. */
  stated: -1,
  asked: undefined as OpenRequest | undefined,
  followed: undefined as Parameters<Followed> | undefined,
  head: {
    shard,
    partition: partition(0),
    owner: "east",
    epoch: epoch(4),
    state: "owned",
    confirmed: true,
    position: position(9),
  } as Head,
  begins: true,
  active: true,
  lease: true,
  /** The target says that it can't open the shard until then. */
  doubtUntil: 0,
  able: true,
  flushes: true,
  result: { kind: "opened" } as OpenResult,
  during: async (_step: string, _put: (head: Partial<Head>) => Head): Promise<void> => undefined,
};
const headWith = (head: Partial<Head>): Head => ({ ...usual.head, ...head });

test("a shard is held, flushed, carried, and then opened for its target", async () => {
  const { steps, switchover, move } = owner();
  assert.deepEqual(await move(), { kind: "moved", epoch: 5, heldMs: 37 });
  assert.deepEqual(steps, ["begin", "hold n2", "carry", "flush", "open", "opened"]);
  assert.equal(switchover.isMoving(shard), false);
});

test("the open says what came before it, and how far the log was when the shard was held; what follows is told behind it", async () => {
  const { world, move, time } = owner({
    during: async (name: string) => time.set(time.monotonic() + (name === "hold n2" ? 3 : name === "flush" ? 5 : 0)),
  });
  assert.equal((await move()).kind, "moved");
  assert.deepEqual(world.asked?.phasesMs, { hold: 3, carry: 5, flush: 5 });
  assert.equal(world.asked?.since, 6);
  assert.deepEqual(world.followed, [shard, epoch(5), { open: 7, serve: 30 }]);
});

test("the open says which closing of the target's database it knows, so that this one does not fence the shard there", async () => {
  for (const closing of [0, 77]) {
    const { world, move } = owner({ closing });
    assert.equal((await move()).kind, "moved");
    assert.equal(world.stated, closing);
  }
});

test("what can't be moved is refused before anything is touched, with the reason", async () => {
  const cases: [string, Parameters<typeof owner>[0], Partial<MoveRequest>, RegExp][] = [
    ["another owner", { head: headWith({ owner: "central" }) }, {}, /east does not own shard 0/],
    ["no owner", { head: headWith({ owner: null }) }, {}, /east does not own shard 0/],
    ["a shard that is not there", {}, { shard: shardId(7) }, /east does not own shard 7/],
    ["to itself", {}, { to: "east" }, /east owns shard 0 already/],
    ["under way", { head: headWith({ state: "moving" }) }, {}, /being moved already/],
    ["a process that does not act for its datacenter", { active: false }, {}, /east\/n1 does not act for east/],
    ["no lease", { lease: false }, {}, /east has no lease/],
    ["a target that can't", { able: false }, {}, /west can't open the shard now/],
  ];
  for (const [what, facts, request, why] of cases) {
    const { steps, move } = owner(facts);
    const result = await move(request);
    assert.ok(result.kind === "called_off" && why.test(result.why), `${what}: ${JSON.stringify(result)}`);
    assert.deepEqual(steps, [], what);
  }
});

test("a target that is in doubt for a moment is waited for, before the shard is held and then for less long", async () => {
  for (const [at, ms, moved] of [
    ["before", 900, true],
    ["before", 1_100, false],
    ["carry", 300, true],
    ["carry", 500, false],
  ] as const) {
    const { world, steps, move, time } = owner({
      during: async (name: string) => {
        if (name === at) world.doubtUntil = time.monotonic() + ms;
      },
    });
    if (at === "before") world.doubtUntil = time.monotonic() + ms;
    assert.equal((await move()).kind, moved ? "moved" : "called_off", `${at} ${ms}`);
    assert.equal(steps.includes("begin"), at !== "before" || moved);
    assert.equal(steps.includes("open"), moved);
  }
});

test("a target that dies while the shard is held gives it back soon, whatever it was asked for", async () => {
  const { world, steps, move, time } = owner({
    during: (name: string) => {
      if (name !== "carry") return Promise.resolve();
      world.doubtUntil = Infinity;
      return new Promise<void>(() => undefined);
    },
  });
  const began = time.monotonic();
  const result = await move();
  assert.ok(
    result.kind === "called_off" && /west can't open the shard any more/.test(result.why),
    JSON.stringify(result),
  );
  assert.equal(steps.at(-1), "end");
  assert.ok(time.monotonic() - began <= 500, `held for ${time.monotonic() - began} ms`);
});

test("a shard that the target owns already has moved: nothing was held", async () => {
  const { steps, move } = owner({ head: headWith({ owner: "west", epoch: epoch(6) }) });
  assert.deepEqual(await move(), { kind: "moved", epoch: 6, heldMs: 0 });
  assert.deepEqual(steps, []);
});

test("a second move of a shard is refused while the first is under way", async () => {
  let second: unknown;
  const { move } = owner({
    during: async (name: string) => {
      if (name === "carry") second = await move();
    },
  });
  assert.equal((await move()).kind, "moved");
  assert.deepEqual(second, { kind: "called_off", why: "the shard is being moved already" });
});

test("a shard that is not owned any more where the move begins stays untouched", async () => {
  const { steps, move } = owner({ begins: false });
  assert.equal((await move()).kind, "called_off");
  assert.deepEqual(steps, ["begin"]);
});

test("whatever fails before the append gives the shard back, with the reason", async () => {
  const failing = (at: string) => async (name: string) => {
    if (name === at) throw new Error(`${at} failed`);
  };
  const cases: [Parameters<typeof owner>[0], string, RegExp][] = [
    [{ during: failing("hold n2") }, "hold n2", /east\/n2 did not confirm that it holds the shard: hold n2 failed/],
    [{ flushes: false }, "flush", /did not take the shard's last writes in time/],
    [{ during: failing("carry") }, "carry", /carry failed/],
  ];
  for (const [facts, last, why] of cases) {
    const { world, steps, move } = owner(facts);
    const result = await move();
    assert.ok(result.kind === "called_off" && why.test(result.why), JSON.stringify(result));
    assert.ok(steps.includes(last) && !steps.includes("open"));
    assert.equal(steps.at(-1), "end");
    assert.deepEqual([world.head.state, world.head.epoch], ["owned", 4]);
  }
});

test("a lease or a target that is lost while the shard is held calls the move off", async () => {
  for (const [fact, why] of [
    ["lease", /the lease ran out/],
    ["able", /west can't open the shard any more/],
  ] as const) {
    const made = owner({
      during: async (name: string) => {
        if (name === "carry") made.world[fact] = false;
      },
    });
    const result = await made.move();
    assert.ok(result.kind === "called_off" && why.test(result.why), JSON.stringify(result));
    assert.ok(!made.steps.includes("open"));
    assert.equal(made.world.head.state, "owned");
  }
});

test("a fence that comes meanwhile, or an append without a known outcome, is left to an own append", async () => {
  const fenced = owner({
    during: async (name: string, put: (head: Partial<Head>) => Head) => {
      if (name === "carry") put({ state: "suspended" });
    },
  });
  assert.equal((await fenced.move()).kind, "unsettled");
  assert.ok(!fenced.steps.includes("open") && !fenced.steps.includes("end"));
  const silent = owner({ result: { kind: "unknown" } });
  assert.equal((await silent.move()).kind, "unsettled");
  const taken = owner({ result: { kind: "moved", epoch: epoch(5), owner: "central" } });
  assert.equal((await taken.move()).kind, "unsettled");
  for (const { steps } of [silent, taken]) assert.equal(steps.at(-1), "open", "nothing gives it back");
});

test("an append that was stored by an earlier try counts: the target owns the shard", async () => {
  const { move } = owner({ result: { kind: "moved", epoch: epoch(5), owner: "west" } });
  assert.deepEqual(await move(), { kind: "moved", epoch: 5, heldMs: 37 });
});
