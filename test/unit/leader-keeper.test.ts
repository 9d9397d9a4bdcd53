import assert from "node:assert/strict";
import { test } from "node:test";
import { silentLogger } from "../../infra/logger.js";
import { epoch, partition, shardId } from "../../shards/ids.js";
import { LeaderKeeper, type LeaderKeeperOptions } from "../../shards/leader-keeper.js";
import type { Head } from "../../shards/map.js";
import type { SiteSet } from "../../shards/site-set.js";
import { ManualTime } from "../harness/manual-time.js";

const all = ["east", "central", "west"];

/** East owns one shard; what the others hear and where the log is led is up to the test. */
async function keeping(facts: {
  leader: string;
  hears?: Readonly<Record<string, readonly string[]>>;
  dead?: string;
  inDoubt?: string;
  state?: Head["state"];
  /** Of the shards of the partition; east alone. */
  owners?: readonly string[];
  /** Of a second partition, whose state nobody tells. */
  silent?: boolean;
}) {
  const time = new ManualTime();
  const moves: string[] = [];
  const head = { shard: shardId(0), partition: partition(0), owner: "east", epoch: epoch(1), state: "owned" } as Head;
  const hears = (dc: string): readonly string[] => facts.hears?.[dc] ?? all;
  const keeper = new LeaderKeeper({
    site: "east",
    time,
    log: silentLogger,
    map: {
      all: () => [
        ...(facts.silent === true ? [{ ...head, shard: shardId(63), partition: partition(1) }] : []),
        ...(facts.owners ?? ["east"]).map((owner, index) => ({
          ...head,
          shard: shardId(index),
          owner,
          state: facts.state ?? "owned",
        })),
      ],
      onChange: () => () => undefined,
    },
    peers: {
      state: (dc: string) => (dc === facts.dead ? "dead" : "serving"),
      inDoubt: (dc: string) => dc === facts.inDoubt,
      reports: (dc: string) => (dc === facts.dead ? [] : [{ hears: hears(dc) }]),
    },
    siteSet: () => ({ sites: all.map((name) => ({ name, witness: false })) }) as unknown as SiteSet,
    leaders: {
      leader: async (of: number) => {
        if (of === 0) return { leader: facts.leader, replicas: all };
        await time.sleep(1_000);
        throw new Error("nobody answers");
      },
      handOver: async (_partition: number, to: string) => {
        moves.push(to);
        facts.leader = to;
      },
    },
    active: () => true,
    hears: () => hears("east"),
  } as Partial<Record<keyof LeaderKeeperOptions, unknown>> as LeaderKeeperOptions);
  await keeper.start();
  await time.advance(3_000);
  const stopped = keeper.stop();
  await time.advance(1_000);
  await stopped;
  return moves;
}

test("the log of a partition is led away from its owner, and not moved again", async () => {
  assert.equal((await keeping({ leader: "east" })).length, 1);
  assert.deepEqual(await keeping({ leader: "west" }), []);
});

test("a leader at one end of a cut link is moved to the site that every live datacenter reaches", async () => {
  const hears = { east: ["east", "west"], central: ["central", "west"], west: all };
  assert.deepEqual(await keeping({ leader: "central", hears }), ["west"]);
  // From the owner's side central is heard, and west does not reach it.
  assert.deepEqual(
    await keeping({ leader: "central", hears: { east: all, central: ["central", "east"], west: ["west", "east"] } }),
    [],
    "nobody but the owner is reached by all: it stays",
  );
});

test("a partition of two owners is led by neither, and looked after by the one that owns more of it", async () => {
  assert.deepEqual(await keeping({ leader: "west", owners: ["east", "east", "west"] }), ["central"]);
  assert.deepEqual(await keeping({ leader: "central", owners: ["east", "east", "west"] }), []);
  assert.deepEqual(await keeping({ leader: "east", owners: ["east", "west", "west"] }), [], "west sees to it");
  const everybody = ["east", "east", "central", "west"];
  assert.deepEqual(await keeping({ leader: "central", owners: everybody }), [], "away from who owns most of it");
  assert.equal((await keeping({ leader: "east", owners: everybody })).length, 1);
});

test("a partition that has no leader holds up none of the others", async () => {
  assert.equal((await keeping({ leader: "east", silent: true })).length, 1);
});

test("what a dead datacenter heard last does not count", async () => {
  assert.deepEqual(await keeping({ leader: "east", dead: "central", hears: { east: ["east", "west"], central: [] } }), [
    "west",
  ]);
});

test("nothing moves while a site is in doubt, or a shard opens or moves", async () => {
  assert.deepEqual(await keeping({ leader: "east", inDoubt: "west" }), []);
  assert.deepEqual(await keeping({ leader: "east", state: "moving" }), []);
  assert.deepEqual(await keeping({ leader: "east", state: "suspended" }), []);
});
