import assert from "node:assert/strict";
import { test } from "node:test";
import type { Timers } from "../../infra/clock.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";
import { Lease, majority, promisesNeeded } from "../../shards/lease.js";
import { ShardMap, type Head } from "../../shards/map.js";
import { castVote, SiteWord, type Heartbeat } from "../../shards/site-word.js";
import { addVote } from "../../shards/postgres-store.js";
import type { Vote } from "../../shards/store.js";

const rules = { leaseMs: 1500, marginMs: 100 };

test("a lease lasts from the send time of a beat that a majority promised", () => {
  const lease = new Lease(rules);
  lease.sent(1, 1000, 50_000);
  assert.equal(lease.promised(1, "east", 2), false);
  assert.equal(lease.valid(1001, 50_001), false);
  assert.equal(lease.promised(1, "west", 2), true);
  assert.equal(lease.valid(2399, 51_399), true);
  assert.equal(lease.valid(2400, 51_400), false);
});

test("promises to different beats don't add up, and one site counts once", () => {
  const lease = new Lease(rules);
  lease.sent(1, 0, 0);
  lease.sent(2, 200, 200);
  lease.promised(1, "east", 2);
  lease.promised(1, "east", 2);
  lease.promised(2, "west", 2);
  assert.equal(lease.valid(300, 300), false);
});

test("a late answer to an older beat never shortens the lease", () => {
  const lease = new Lease(rules);
  lease.sent(1, 0, 0);
  lease.sent(2, 200, 200);
  for (const site of ["east", "west"]) lease.promised(2, site, 2);
  for (const site of ["east", "west"]) lease.promised(1, site, 2);
  assert.equal(lease.valid(1599, 1599), true);
});

test("after a drop, beats that were under way count for nothing", () => {
  const lease = new Lease(rules);
  lease.sent(1, 0, 0);
  lease.promised(1, "east", 2);
  lease.drop();
  assert.equal(lease.promised(1, "west", 2), false);
  assert.equal(lease.valid(10, 10), false);
});

test("a wall clock that ran ahead of the monotonic one ends the lease: the machine slept", () => {
  const lease = new Lease(rules);
  lease.sent(1, 1000, 50_000);
  for (const site of ["east", "west"]) lease.promised(1, site, 2);
  assert.equal(lease.valid(1100, 50_150), true);
  assert.equal(lease.valid(1100, 50_201), false);
});

test("majorities; a group without a third vote needs only the own site's answer", () => {
  assert.deepEqual([1, 2, 3, 4, 5].map(majority), [1, 2, 2, 3, 3]);
  assert.deepEqual([1, 2, 3, 5].map(promisesNeeded), [1, 1, 2, 3]);
});

class Clock {
  now = 0;
  monotonic = (): number => this.now;
  /** By how much the wall clock is ahead. */
  ahead = 0;
  wall = (): number => this.now + this.ahead;
}

const at = (clock: Clock): { at: number; wallAt: number } => ({ at: clock.now, wallAt: clock.wall() });

async function speaking(): Promise<{
  word: SiteWord;
  clock: Clock;
  stored: Map<string, Vote>;
  hold: () => Promise<void>;
}> {
  const clock = new Clock();
  const stored = new Map<string, Vote>();
  const word = new SiteWord({
    site: "west",
    leaseMs: 1500,
    termMs: 900,
    marginMs: 100,
    clock,
    setNumber: () => 1,
    incarnation: () => 5,
    votes: {
      load: async () => new Map(stored),
      vote: async (target, epochs) => {
        const vote = addVote(stored.get(target), epochs);
        stored.set(target, vote);
        return vote;
      },
    },
  });
  const hold = (): Promise<void> => word.lockHeld(at(clock), false);
  await word.lockHeld(at(clock), true);
  clock.now = word.silenceMs;
  await hold();
  return { word, clock, stored, hold };
}

const beat = (over: Partial<Heartbeat> = {}): Heartbeat => ({
  set: 1,
  dc: "east",
  node: "n1",
  beat: 1,
  incarnation: 3,
  acks: { west: [5, 0] },
  ...over,
});
const request = { set: 1, candidate: "west", target: "east", epochs: { "3": 7 } };

test("a site is silent after it took the lock, and when the lock ran out (rules b, c)", async () => {
  const { word, clock, hold } = await speaking();
  assert.equal(word.heartbeat(beat())?.kind, "promise");
  clock.now += 801;
  assert.equal(word.heartbeat(beat()), undefined);
  await hold();
  assert.equal(word.heartbeat(beat())?.kind, "promise");
  await word.lockHeld(at(clock), true);
  assert.equal(word.heartbeat(beat()), undefined);
  word.lockLost();
  await hold();
  assert.equal(word.speaks, false, "who lost the lock keeps the silence again");
});

test("a machine that was suspended does not speak on the lock that it had: another process may hold it (rule c)", async () => {
  const { word, clock, hold } = await speaking();
  clock.now += 200;
  clock.ahead = 99;
  assert.equal(word.speaks, true, "a clock that was set a little");
  clock.ahead = 5_000;
  assert.equal(word.speaks, false);
  assert.equal(word.heartbeat(beat()), undefined);
  assert.equal(await word.vote(request), undefined);
  await hold();
  assert.equal(word.speaks, true, "the database says that it still holds the lock");
});

test("no vote while a promise holds, also when a heartbeat comes during the write of the vote (rule a)", async () => {
  const { word, clock, hold, stored } = await speaking();
  word.heartbeat(beat());
  assert.equal(await word.vote(request), undefined);
  assert.equal(stored.size, 0);
  clock.now += 1500;
  await hold();
  const voting = word.vote(request);
  assert.equal(word.heartbeat(beat())?.kind, "promise");
  assert.equal(await voting, undefined, "stored, but not given");
});

test("a site that is asked a little early votes when its promise has run out, unless it hears something meanwhile", async () => {
  const { word, clock, hold } = await speaking();
  const slept: number[] = [];
  const timers = (heard: boolean): Timers =>
    ({
      sleep: async (ms: number) => {
        slept.push(ms);
        clock.now += ms;
        await hold();
        if (heard) word.heartbeat(beat());
      },
    }) as Partial<Timers> as Timers;
  word.heartbeat(beat());
  clock.now += 1_000;
  await hold();
  assert.equal(await castVote(word, request, timers(false)), undefined, "half a second is not a little");
  clock.now += 200;
  await hold();
  assert.equal(await castVote(word, request, timers(true)), undefined, "it was heard");
  clock.now += 1_200;
  await hold();
  assert.equal((await castVote(word, request, timers(false)))?.number, 1);
  assert.deepEqual(slept, [301, 301]);
});

test("after a vote nothing is promised to a node that does not acknowledge it, under this incarnation (rules a, i)", async () => {
  const { word, clock, hold } = await speaking();
  clock.now += 1500;
  await hold();
  assert.deepEqual(await word.vote(request), { number: 1, epochs: { "3": 7 } });
  const refusal = word.heartbeat(beat());
  assert.ok(refusal?.kind === "refusal");
  assert.deepEqual(refusal.vote.epochs, { "3": 7 });
  assert.equal(word.heartbeat(beat({ acks: { west: [4, 1] } }))?.kind, "refusal");
  assert.equal(word.heartbeat(beat({ acks: { west: [5, 1] } }))?.kind, "promise");
});

test("another site set's heartbeats and votes count for nothing", async () => {
  const { word, clock, hold } = await speaking();
  clock.now += 1500;
  await hold();
  assert.equal(word.heartbeat(beat({ set: 2 })), undefined);
  assert.equal(await word.vote({ ...request, set: 2 }), undefined);
});

test("a site never votes against itself, and promises to its own datacenter without acknowledgements", async () => {
  const { word } = await speaking();
  assert.equal(await word.vote({ ...request, target: "west" }), undefined);
  assert.equal(word.heartbeat(beat({ dc: "west", acks: {} }))?.kind, "promise");
});

test("votes count up and keep the largest epoch of each shard", () => {
  const first = addVote(undefined, { "1": 5, "2": 9 });
  assert.deepEqual(addVote(first, { "1": 7, "2": 3, "4": 1 }), { number: 2, epochs: { "1": 7, "2": 9, "4": 1 } });
});

const head = (revision: number, over: Partial<Head> = {}): Head => ({
  shard: shardId(0),
  partition: partition(0),
  owner: "east",
  epoch: epoch(1),
  state: "owned",
  position: position(0),
  published: position(0),
  tenure: epoch(1),
  closing: 0,
  confirmed: true,
  since: "",
  kind: "initial",
  reason: "",
  stopped: null,
  revision,
  ...over,
});

test("a view only moves forward (rule h), and forgets what it holds after a new incarnation", () => {
  const map = new ShardMap(1);
  assert.equal(map.adopt(head(5)), true);
  assert.equal(map.adopt(head(5, { state: "moving" })), false);
  assert.equal(map.adopt(head(4, { state: "moving" })), false);
  assert.equal(map.adopt(head(6, { state: "moving" })), true);
  map.reset();
  assert.equal(map.get(shardId(0))?.state, "suspended");
  assert.equal(map.adopt(head(2)), true);
});

test("a node of a newer database is promised nothing while another's promise under the older one holds (rule i)", async () => {
  const { word, clock, hold } = await speaking();
  assert.equal(word.heartbeat(beat({ node: "n1" }))?.kind, "promise");
  assert.equal(word.heartbeat(beat({ node: "n2" }))?.kind, "promise");
  clock.now += 300;
  await hold();
  // n2 has met the newer one; n1 may serve from the older.
  const newer = beat({ node: "n2", incarnation: 4 });
  assert.equal(word.heartbeat(newer), undefined);
  assert.equal(word.heartbeat(beat({ node: "n1" })), undefined, "its lease is not renewed");
  clock.now += 600;
  await hold();
  assert.equal(word.heartbeat(newer), undefined);
  clock.now += 600;
  await hold();
  assert.equal(word.heartbeat(newer)?.kind, "promise", "1.5 s after the last promise to n1");
  // Where all have met it nobody waits.
  assert.equal(
    word.heartbeat(beat({ node: "n2", incarnation: 5 }))?.kind,
    "promise",
    "alone, its own last promise is no other's",
  );
  assert.equal(word.heartbeat(beat({ node: "n1", incarnation: 5 }))?.kind, "promise");
});

test("a silent site remembers the newest database that it hears of (rule i)", async () => {
  const { word, clock, hold } = await speaking();
  await word.lockHeld(at(clock), true);
  assert.equal(word.heartbeat(beat({ node: "n2", incarnation: 4 })), undefined);
  for (let passed = 0; passed < word.silenceMs; passed += 400) {
    clock.now += 400;
    await hold();
  }
  assert.equal(word.speaks, true);
  assert.equal(word.heartbeat(beat({ node: "n1", incarnation: 3 })), undefined);
  assert.equal(word.heartbeat(beat({ node: "n2", incarnation: 4 }))?.kind, "promise");
});
