import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Problem } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import type { CallClient } from "../../services/calls.js";
import type { DatacenterParts } from "../../services/datacenter.js";
import { Failback } from "../../services/failback.js";
import type { MoveKind, MoveRequest } from "../../services/http/index.js";
import { planDrain, planFailback, planRebalance, type PlannedMove } from "../../services/move-plan.js";
import { MovePlanner } from "../../services/move-planner.js";
import { Moves } from "../../services/moves.js";
import type { LongOperation, StoredOperation } from "../../services/operation-store.js";
import { partitionOf, shardId } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import type { MoveRequest as ShardMoveRequest } from "../../shards/switchover.js";
import { ManualTime } from "../harness/manual-time.js";

const dcs = ["east", "central", "west"] as const;
const partitions = 4;

/** Shards from 0 on, in four partitions in turn, by their owners' first letters; `-`: nobody. */
const headsOf = (owners: string, kind = "initial"): Head[] =>
  [...owners].map((letter, shard) => {
    const owner = dcs.find((dc) => dc.startsWith(letter)) ?? null;
    const partition = partitionOf(shardId(shard), partitions);
    return { shard: shardId(shard), partition, owner, epoch: 3, position: 9, published: 9, kind } as Head;
  });
const partsOf = (moves: readonly PlannedMove[]): number[] =>
  moves.map(({ shard }) => partitionOf(shardId(shard), partitions));
/** Who owns what after the moves. */
const after = (heads: readonly Head[], moves: readonly PlannedMove[]): string[] =>
  heads.map(({ shard, owner }) => moves.find((move) => move.shard === shard)?.to ?? owner ?? "-");
/** Nothing of one comes after something of another that came after it. */
const whole = (parts: readonly number[]): boolean =>
  parts.filter((part, n) => part !== parts[n - 1]).length === new Set(parts).size;

describe("plans", () => {
  it("go partition by partition, so that what is cancelled half-way leaves whole ones", () => {
    const heads = headsOf("eceweceweceweeee");
    const homes = new Map(heads.map(({ shard }) => [shard as number, "west"]));
    for (const moves of [
      planFailback(heads, "west", homes),
      planDrain(heads, "east", ["central", "west"]),
      planRebalance(headsOf("eeeeeeeeeeeeeeee"), dcs),
    ]) {
      assert.ok(moves.length >= 6);
      assert.ok(whole(partsOf(moves)), JSON.stringify(moves));
    }
  });

  it("of a rebalance join a partition that has several owners, where most of it is, and leave what can't be moved", () => {
    // Partition 0 is west's but for one shard; all else is even.
    const heads = headsOf("wcewecewwcew");
    const moves = planRebalance(heads, dcs);
    const owners = after(heads, moves);
    for (let partition = 0; partition < partitions; partition++)
      assert.equal(new Set(owners.filter((_owner, shard) => shard % partitions === partition)).size, 1);
    assert.deepEqual(moves.length, new Set(moves.map(({ shard }) => shard)).size);
    // A part of it is a dead one's, or nobody's.
    for (const owners of ["wcewdcewwcew", "wcew-cewwcew"])
      assert.ok(partsOf(planRebalance(headsOf(owners), dcs)).every((partition) => partition !== 0));
    assert.deepEqual(planRebalance(headsOf("ecweecweecwe"), dcs), [], "nothing that helps");
  });
});

/** East, with what it knows and what the others answer. */
function planner(facts: {
  readonly heads?: readonly Head[];
  readonly states?: Readonly<Record<string, string>>;
  /** By datacenter, by shard: position, and what the log has as far as known there. */
  readonly places?: Readonly<Record<string, readonly (readonly [position: number, published?: number])[]>>;
  readonly heard?: number;
  readonly history?: readonly { readonly shard: number; readonly to_dc: string }[];
}) {
  const heads = facts.heads ?? headsOf("ecwecwecw");
  const parts = {
    site: "east",
    shards: heads.length,
    partitions,
    config: { successors: [] },
    time: new ManualTime(),
    map: {
      get: (shard: number) => heads[shard],
      all: () => heads,
      ownedBy: (dc: string) => heads.filter(({ owner }) => owner === dc),
    },
    siteSets: { set: { sites: dcs.map((name) => ({ name, witness: false })) } },
    leases: { valid: true },
    peers: {
      state: (dc: string) => facts.states?.[dc] ?? "serving",
      head: () => (facts.heard === undefined ? undefined : { epoch: 3, position: facts.heard, at: 0 }),
    },
    refresh: async () => undefined,
    control: { pool: { query: async () => ({ rows: facts.history ?? [] }) } },
  } as unknown as DatacenterParts;
  const calls = {
    call: async (dc: string) => {
      const answer = facts.places?.[dc];
      if (facts.states?.[dc] === "dead") throw new Error("nobody is there");
      return heads.map(({ shard }) => [shard, 3, ...(answer?.[shard] ?? answer?.[0] ?? [9, 9])]);
    },
  } as unknown as CallClient;
  return new MovePlanner(parts, calls);
}
/** As it is asked over HTTP. */
type Asked = Omit<MoveRequest, "dryRun">;
const asked = (request: Asked): MoveRequest => ({ dryRun: false, ...request });
const refused = (code: string) => (error: Problem) => error.code === code;

describe("the planner", () => {
  it("names each shard's way and what is not applied there yet; a planned move loses nothing", async () => {
    const places = { east: [[12, 10]], central: [[9, 9]], west: [[7, 7]] } as const;
    const history = headsOf("wwwwwwwww").map(({ shard }) => ({ shard, to_dc: "west" }));
    const ways: [MoveKind, Asked, number, string | null][] = [
      ["switchovers", { shard: 0, to: "west" }, 1, "west"],
      ["switchovers", { dc: "east", to: "central" }, 3, "central"],
      ["drains", { dc: "east" }, 3, null],
      ["failbacks", { dc: "west" }, 6, "west"],
    ];
    for (const [kind, request, count, target] of ways) {
      const shards = await planner({ places, history }).dryRun(kind, asked(request), 1e15);
      assert.equal(shards.length, count, kind);
      for (const { from, to, unapplied, lost } of shards) {
        if (target !== null) assert.equal(to, target);
        const [head = 0, there = 0] = [places[from as "east"][0][0], places[to as "west"][0][0]];
        assert.deepEqual([unapplied, lost], [Math.max(0, head - there), 0], kind);
      }
    }
    const uneven = { heads: headsOf("eeeeeeee"), places };
    const moves = await planner(uneven).dryRun("rebalances", asked({}), 1e15);
    assert.ok(moves.length >= 4);
    for (const { from, unapplied, lost } of moves) assert.ok(from === "east" && Number(unapplied) >= 3 && lost === 0);
  });

  it("counts as lost by a takeover only what the log does not have", async () => {
    const takeover = (facts: Parameters<typeof planner>[0]) =>
      planner(facts)
        .dryRun("takeovers", asked({ shard: 2, to: "east" }), 1e15)
        .then(([shard]) => [shard?.["unapplied"], shard?.["lost"]]);
    // Its owner is asked: at 15, of which the log has 13.
    assert.deepEqual(await takeover({ places: { west: [[15, 13]], east: [[11, 11]] } }), [4, 2]);
    // Another copy shows that the log has more than it says.
    assert.deepEqual(await takeover({ places: { west: [[15, 13]], east: [[11, 11]], central: [[14, 14]] } }), [4, 1]);
    assert.deepEqual(await takeover({ places: { west: [[15, 15]], east: [[11, 11]] } }), [4, 0]);
    // An earlier version does not say how far the log is.
    assert.deepEqual(await takeover({ places: { west: [[15]], east: [[11, 11]] } }), [4, 4]);
    // It is dead: its last heartbeat tells how far it was.
    const dead = { states: { west: "dead" }, places: { east: [[11, 11]], central: [[12, 12]] } } as const;
    assert.deepEqual(await takeover({ ...dead, heard: 15 }), [4, 3]);
    assert.deepEqual(await takeover({ ...dead, heard: 10 }), [0, 0]);
    assert.deepEqual(await takeover(dead), [0, 0]);
  });

  it("refuses a takeover of whoever may hold a lease, and of nothing, by codes of their own", async () => {
    const plan = (state: string, request: Asked = { dc: "west" }, heads?: readonly Head[]) =>
      planner({ states: { west: state }, ...(heads === undefined ? {} : { heads }) }).plan(
        "takeovers",
        asked(request),
        1e15,
      );
    for (const state of ["serving", "catching_up"]) await assert.rejects(plan(state), refused("owner_reachable"));
    for (const state of ["dead", "fenced", "suspect"]) assert.equal((await plan(state)).length, 3, state);
    assert.equal((await plan("serving", { dc: "west", force: true })).length, 3);
    // The same again, when it has been done.
    await assert.rejects(plan("dead", { dc: "west" }, headsOf("ecceccecc")), refused("already_moving"));
    await assert.rejects(plan("dead", { shard: 2, to: "east" }, headsOf("eceecceec")), refused("already_moving"));
    await assert.rejects(plan("dead", { dc: "nowhere" }), refused("invalid_request"));
    await assert.rejects(plan("dead", { shard: 99 }), refused("invalid_request"));
  });
});

describe("a long operation that is cancelled", () => {
  /** East carries out what is asked; `during` runs while the first shard of each call is on its way. */
  async function run(kind: MoveKind, request: Asked, heads: readonly Head[], cancelAt: number) {
    const stored = new Map<string, StoredOperation>();
    const ended: LongOperation[] = [];
    const query = async (statement: string | { text: string; values: unknown[] }, given: unknown[] = []) => {
      const [text, values] = typeof statement === "string" ? [statement, given] : [statement.text, statement.values];
      const id = String(values[0]);
      const put = (): void =>
        void stored.set(id, { body: JSON.parse(String(values[1])) as LongOperation, fingerprint: null });
      if (text.startsWith("INSERT")) return (put(), { rows: [], rowCount: 1 });
      if (text.startsWith("UPDATE operations SET body")) return (put(), { rows: [{ cancelled: false }], rowCount: 1 });
      if (text.startsWith("SELECT body, fingerprint")) return { rows: stored.has(id) ? [stored.get(id)] : [] };
      return { rows: [], rowCount: 0 };
    };
    const cancelled: unknown[] = [];
    let moved = 0;
    const parts = {
      site: "east",
      servedBy: "east/n1",
      partitions,
      config: { node: "n1", dbDeadMs: 1, leaseMs: 1, marginMs: 1 },
      time: new ManualTime(),
      random: { token: () => "abcdefghijkl" },
      log: silentLogger,
      map: { get: () => ({ owner: "west" }) },
      siteSets: { set: { sites: dcs.map((name) => ({ name, witness: false })) } },
      control: { pool: { query } },
    } as unknown as DatacenterParts;
    const calls = {
      call: async (_dc: string, name: string) => {
        await new Promise((resolve) => setImmediate(resolve));
        if (++moved === cancelAt) {
          const id = [...stored.keys()][0] ?? "";
          cancelled.push(await moves.local(id, true).catch((error: Problem) => error.code));
        }
        return name === "takeover" ? heads.map(({ shard }) => shard) : { kind: "moved", epoch: 4, heldMs: 1 };
      },
    } as unknown as CallClient;
    const plan = heads.map(({ shard, owner }) => ({ shard, from: owner, to: "west" }));
    const moves = new Moves(parts, calls, { plan: async () => plan } as unknown as MovePlanner);
    const end = new Promise<void>((resolve) => {
      moves.onEnd = (operation) => (ended.push(operation), resolve());
    });
    const context = { deadline: 1e15, caller: { tenant: "", principal: "me" } };
    await moves.startMove(context as never, kind, asked(request));
    await end;
    const [operation] = ended;
    assert.ok(operation !== undefined);
    return { operation, cancelled };
  }

  it("ends between two partitions", async () => {
    // Twelve shards of partition 0, then twelve of 1: eight are on their way when it is cancelled.
    const heads = headsOf("e".repeat(48))
      .filter(({ partition }) => partition < 2)
      .sort((a, b) => a.partition - b.partition);
    const { operation, cancelled } = await run("drains", { dc: "east" }, heads, 3);
    assert.equal(cancelled.length, 1);
    const done = (partition: number): string[] =>
      operation.shards.filter(({ shard }) => shard % partitions === partition).map(({ status }) => status);
    assert.deepEqual(new Set(done(0)), new Set(["complete"]));
    assert.deepEqual(new Set(done(1)), new Set(["cancelled"]));
    assert.equal(operation.status, "cancelled");
    assert.deepEqual(operation.progress, { done: 24, total: 24 });
  });

  it("is refused as a takeover, which opens all at once", async () => {
    const { operation, cancelled } = await run("takeovers", { dc: "east", force: true }, headsOf("eee"), 1);
    assert.deepEqual(cancelled, ["invalid_transition"]);
    assert.equal(operation.status, "complete");
  });
});

describe("automatic failback", () => {
  /** Central holds two shards of west, which a takeover brought; `flaps` of west are in the history. */
  async function central(facts: { flaps?: number; off?: boolean; homes?: string; paused?: boolean } = {}) {
    const time = new ManualTime();
    const world = { west: "serving", lease: true, refuses: false, tries: 0, moved: [] as ShardMoveRequest[] };
    const heads = headsOf("ccc", "takeover").map((head) => (head.shard === 2 ? { ...head, kind: "switchover" } : head));
    const homes = new Map(heads.map(({ shard }) => [shard as number, facts.homes ?? "west"]));
    const parts = {
      site: "central",
      time,
      log: silentLogger,
      config: { automaticFailback: facts.off !== true, failbackAfterMs: 20_000 },
      peers: { state: (dc: string) => (dc === "west" ? world.west : "serving") },
      map: { ownedBy: () => heads.filter(({ shard }) => !world.moved.some((move) => move.shard === shard)) },
      siteSets: {
        set: { sites: dcs.map((name) => ({ name, witness: false })), failoverPaused: facts.paused === true },
      },
      replicator: { holding: true },
      leases: {
        get valid() {
          return world.lease;
        },
      },
      control: { pool: { query: async () => ({ rows: [{ n: facts.flaps ?? 1 }] }) } },
      switchover: {
        move: async (request: ShardMoveRequest) => {
          world.tries++;
          if (world.refuses) return { kind: "called_off", why: "not now" };
          world.moved.push(request);
          return { kind: "moved", epoch: 4, heldMs: 1 };
        },
      },
    } as unknown as DatacenterParts;
    const failback = new Failback(parts, { homes: async () => homes } as unknown as MovePlanner);
    await failback.start();
    const pass = async (ms: number): Promise<number> => {
      // Step by step: a round's answers come between two of its looks.
      for (let left = ms; left > 0; left -= 1_000) await time.advance(Math.min(1_000, left));
      return world.moved.length;
    };
    const stop = async (): Promise<void> => void (await Promise.all([failback.stop(), time.advance(1_000)]));
    return { world, pass, stop };
  }

  it("waits 20, 60, then 120 s after the return, by how often the datacenter went away", async () => {
    for (const [flaps, ms] of [
      [0, 20_000],
      [1, 20_000],
      [2, 60_000],
      [3, 120_000],
      [9, 120_000],
    ] as const) {
      const { world, pass, stop } = await central({ flaps });
      assert.equal(await pass(ms - 2_000), 0, `${flaps} flaps`);
      assert.equal(await pass(4_000), 2, `${flaps} flaps`);
      // Only what a takeover brought.
      assert.deepEqual(
        world.moved.map(({ shard, to, kind, by }) => [shard, to, kind, by]),
        [
          [0, "west", "failback", "central"],
          [1, "west", "failback", "central"],
        ],
      );
      await stop();
    }
  });

  it("counts anew after each silence, and while the datacenter is not caught up", async () => {
    for (const state of ["suspect", "dead", "fenced", "catching_up"]) {
      const { world, pass, stop } = await central();
      await pass(15_000);
      world.west = state;
      await pass(2_000);
      world.west = "serving";
      assert.equal(await pass(18_000), 0, state);
      assert.equal(await pass(4_000), 2, state);
      await stop();
    }
  });

  it("does nothing when it is turned off, paused, without a lease, or where the shards are not at home elsewhere", async () => {
    for (const facts of [{ off: true }, { paused: true }, { homes: "central" }, { homes: "east-was-removed" }]) {
      const { pass, stop } = await central(facts);
      assert.equal(await pass(60_000), 0, JSON.stringify(facts));
      await stop();
    }
    const { world, pass, stop } = await central();
    world.lease = false;
    assert.equal(await pass(60_000), 0);
    world.lease = true;
    assert.equal(await pass(2_000), 2);
    await stop();
  });

  it("tries what could not go less and less often", async () => {
    const { world, pass, stop } = await central();
    world.refuses = true;
    // After 20 s, then 5, 10 and 20 s later.
    await pass(60_000);
    assert.equal(world.tries, 2 * 4);
    world.refuses = false;
    assert.equal(await pass(30_000), 0);
    assert.equal(await pass(10_000), 2);
    await stop();
  });
});
