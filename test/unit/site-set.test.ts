import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  automaticTakeover,
  promisesSuffice,
  replicasDue,
  settledAt,
  settledSet,
  votersOf,
  votesSuffice,
  withDatacenter,
  withoutSite,
  type SiteSet,
} from "../../shards/site-set.js";

const set: SiteSet = {
  number: 4,
  sites: ["east", "central", "west"].map((name) => ({ name, witness: false })),
  removed: [],
  failoverPaused: false,
  shards: 64,
  partitions: 12,
};
const names = (...list: string[]): ReadonlySet<string> => new Set(list);

describe("whether a datacenter that dies can be taken over", () => {
  const witnessed: SiteSet = { ...set, sites: ["a", "b", "w"].map((name) => ({ name, witness: name === "w" })) };
  const five: SiteSet = { ...set, sites: ["a", "b", "c", "d", "e"].map((name) => ({ name, witness: false })) };

  it("depends on who is alive to vote, and says who is missed", () => {
    for (const [group, heard, why] of [
      [set, names("east", "central", "west"), null],
      [set, names("east", "central"), /^west is not heard/],
      [set, names("east"), /^central and west are not heard/],
      [witnessed, names("a", "b", "w"), null],
      [witnessed, names("a", "b"), /^w is not heard/],
      [witnessed, names("a", "w"), /^b is not heard/],
      [five, names("a", "b", "c", "d"), null],
      [five, names("a", "b", "c"), /^d and e are not heard/],
      // One who is no member counts for nothing.
      [set, names("east", "central", "north"), /^west is not heard/],
      [withDatacenter(set, "north"), names("east", "central", "west", "north"), null],
      [withDatacenter(set, "north"), names("east", "central", "west"), /^north is not heard/],
      [
        withDatacenter({ ...set, sites: set.sites.slice(0, 2) }, "west"),
        names("east", "central", "west"),
        /being changed/,
      ],
    ] as const) {
      const found = automaticTakeover(group, heard);
      assert.equal(found.possible, why === null, `${[...heard].join()}: ${found.why}`);
      if (why !== null) assert.match(found.why ?? "", why);
    }
    assert.match(automaticTakeover({ ...set, failoverPaused: true }, names("east")).why ?? "", /paused/);
    // Whether votes are asked for at all does not hang on who is heard: the votes themselves decide.
    assert.equal(automaticTakeover(set).possible, true);
  });
});

/** Every subset of the names. */
const subsets = (list: readonly string[]): ReadonlySet<string>[] =>
  Array.from({ length: 2 ** list.length }, (_, bits) => new Set(list.filter((_name, i) => (bits >> i) & 1)));

describe("a change of the members", () => {
  const grown = withDatacenter(set, "north");
  const shrunk = withoutSite(set, "west");

  it("needs a majority of both sets while it is not acknowledged", () => {
    assert.equal(promisesSuffice(set, names("east", "west")), true);
    assert.equal(promisesSuffice(grown, names("east", "central")), false);
    assert.equal(promisesSuffice(grown, names("east", "central", "north")), true);
    assert.equal(votesSuffice(shrunk, names("east", "west")), false);
    assert.equal(votesSuffice(shrunk, names("east", "central")), true);
    assert.deepEqual(votersOf(shrunk), ["east", "central", "west"]);
    assert.deepEqual(shrunk.removed, ["west"]);
  });

  it("never lets a lease of one step stand beside a takeover by the next or the last", () => {
    for (const steps of [
      [set, grown, settledSet(grown)],
      [set, shrunk, settledSet(shrunk)],
    ])
      for (let at = 0; at + 1 < steps.length; at++) {
        const [a, b] = [steps[at], steps[at + 1]];
        assert.ok(a !== undefined && b !== undefined);
        const orders: readonly (readonly [SiteSet, SiteSet])[] = [
          [a, b],
          [b, a],
        ];
        for (const [lease, vote] of orders) {
          // Only those whose word counts under a set are heard under it.
          for (const promises of subsets(votersOf(lease)))
            for (const votes of subsets(votersOf(vote))) {
              // A site that promised does not vote, and the holder of a lease always has its own promise.
              if (!promises.has("east") || [...promises].some((name) => votes.has(name))) continue;
              const both = promisesSuffice(lease, promises) && votesSuffice(vote, votes);
              assert.equal(both, false, `${[...promises].join()} promise, ${[...votes].join()} vote`);
            }
        }
      }
  });

  it("is settled two leases after a majority of both sets was heard under its number", () => {
    assert.equal(settledAt(grown, new Map([["east", 100]]), 1500), undefined);
    const heard = new Map([
      ["east", 100],
      ["central", 300],
    ]);
    assert.equal(settledAt(grown, heard, 1500), undefined, "two of four are no majority");
    assert.equal(settledAt(grown, new Map([...heard, ["north", 900]]), 1500), 3900);
    assert.equal(settledAt(shrunk, heard, 1500), 3300);
    assert.equal(
      settledAt(
        shrunk,
        new Map([
          ["east", 1],
          ["west", 2],
        ]),
        1500,
      ),
      undefined,
    );
    assert.equal(settledSet(grown).changing, undefined);
  });

  it("gives streams three replicas from three sites on, and five from five on", () => {
    assert.deepEqual([1, 2, 3, 4, 5, 9].map(replicasDue), [1, 2, 3, 3, 5, 5]);
  });
});
