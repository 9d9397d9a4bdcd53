import assert from "node:assert/strict";
import { test } from "node:test";
import { route } from "../../routing/route.js";
import { hashText, partition, partitionOf, shardOf } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import { Peers, type NodeReport } from "../../shards/peers.js";
import { firstOwner, preferredLeader, successionOrder } from "../../shards/successor.js";
import { ManualTime } from "../harness/manual-time.js";

const head = (over: Partial<Head>): Head =>
  ({ owner: "east", state: "owned", confirmed: true, epoch: 4, ...over }) as Head;

test("route: every combination of owner, state, lease and peer", () => {
  const here = { self: "east", leaseValid: true, ownerState: "serving" as const };
  assert.deepEqual(route({ ...here, head: head({}) }), { kind: "here" });
  assert.deepEqual(route({ ...here, head: head({ owner: "west" }) }), { kind: "forward", to: "west" });
  const waits: [Partial<Head> | undefined, Partial<typeof here> | { ownerState: "dead" }, string][] = [
    [undefined, {}, "owner_unreachable"],
    [{ owner: null }, {}, "owner_unreachable"],
    [{}, { leaseValid: false }, "no_lease"],
    [{ state: "suspended" }, {}, "no_lease"],
    [{ confirmed: false }, {}, "no_lease"],
    [{ state: "moving" }, {}, "shard_moving"],
    [{ owner: "west" }, { ownerState: "dead" }, "owner_unreachable"],
  ];
  for (const [over, facts, code] of waits) {
    const where = route({ ...here, ...facts, head: over === undefined ? undefined : head(over) });
    assert.equal(where.kind === "wait" ? where.code : where.kind, code);
  }
  for (const state of ["serving", "suspect", "catching_up", "fenced"] as const)
    assert.equal(route({ ...here, ownerState: state, head: head({ owner: "west" }) }).kind, "forward");
});

test("processes of a datacenter that are heard while another one of it is not", () => {
  const time = new ManualTime();
  const peers = new Peers(time, 200, 1_500);
  const beat = (...nodes: string[]): void => {
    for (const node of nodes) peers.heard({ dc: "east", node, heads: [] } as unknown as NodeReport);
  };
  const heard = (): readonly string[] => peers.heardBesideSilent("east");
  assert.deepEqual(heard(), []);
  beat("n1", "n2", "n3");
  assert.deepEqual(heard(), []);
  time.set(time.monotonic() + 600);
  beat("n1", "n3");
  assert.deepEqual(heard(), ["n1", "n3"]);
  // However long: NATS may give it requests still.
  time.set(time.monotonic() + 600_000);
  assert.deepEqual(heard(), []);
  beat("n3");
  assert.deepEqual(heard(), ["n3"]);
  beat("n1", "n2");
  assert.deepEqual(heard(), []);
});

test("the hash is fixed for ever", () => {
  assert.deepEqual(["", "a", "cluster-1", "Ünïcode"].map(hashText), [2872998923, 444641715, 3010638770, 3302131466]);
});

test("shards spread evenly, and partitions over datacenters", () => {
  const counts = new Array<number>(64).fill(0);
  for (let i = 0; i < 64_000; i++) counts[shardOf(`cluster-${i}`, 64)]!++;
  assert.ok(Math.min(...counts) > 850 && Math.max(...counts) < 1150, `${Math.min(...counts)}..${Math.max(...counts)}`);
  const owners = new Map<string, number>();
  for (let s = 0; s < 64; s++) {
    const owner = firstOwner(partitionOf(s as never, 12), ["a", "b", "c"]);
    owners.set(owner, (owners.get(owner) ?? 0) + 1);
  }
  assert.deepEqual([...owners.values()], [22, 21, 21]);
});

test("succession: the same for all, a preference first, spread over survivors", () => {
  const survivors = ["central", "west", "north"];
  const firsts = new Set<string>();
  for (let p = 0; p < 32; p++) {
    const order = successionOrder(partition(p), survivors);
    assert.deepEqual(order, successionOrder(partition(p), [...survivors].reverse()));
    assert.deepEqual([...order].sort(), [...survivors].sort());
    firsts.add(order[0] ?? "");
    assert.equal(successionOrder(partition(p), survivors, ["west"])[0], "west");
    // A survivor less changes nothing between the others.
    assert.deepEqual(
      successionOrder(partition(p), ["central", "west"]),
      order.filter((dc) => dc !== "north"),
    );
  }
  assert.equal(firsts.size, 3);
});

test("log leaders: away from the owner, a witness first, and no move without need", () => {
  const site = (name: string, owned: number, leads = 0, witness = false) => ({ site: name, witness, owned, leads });
  const three = [site("east", 20), site("central", 30), site("west", 10)];
  assert.equal(preferredLeader({ owners: ["east"], leader: "east", candidates: three }), "west");
  assert.equal(preferredLeader({ owners: ["east"], leader: "central", candidates: three }), "central");
  assert.equal(
    preferredLeader({ owners: ["east"], leader: "west", candidates: [...three, site("w", 0, 9, true)] }),
    "w",
  );
  assert.equal(preferredLeader({ owners: ["east"], leader: "east", candidates: [site("east", 1)] }), undefined);
  assert.equal(
    preferredLeader({ owners: ["east"], leader: undefined, candidates: [site("central", 5, 6), site("west", 5, 0)] }),
    "west",
  );
  assert.equal(preferredLeader({ owners: ["east", "west"], leader: "west", candidates: three }), "central");
  assert.equal(preferredLeader({ owners: ["east", "west", "central"], leader: "west", candidates: three }), "west");
});
