import assert from "node:assert/strict";
import { test } from "node:test";
import { pack, unpack } from "msgpackr";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { NoResponders } from "../../infra/nats/messaging.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";
import { voteSubject } from "../../shards/lease-keeper.js";
import type { Head } from "../../shards/map.js";
import type { VoteRequest } from "../../shards/site-word.js";
import type { OpenRequest } from "../../shards/ownership-log.js";
import { TakeoverWatch, type TakeoverOptions } from "../../shards/takeover.js";

/** East takes shard 3 of west over, asked by an operator; who votes is up to the test. */
async function takenOver(o: {
  speaks: boolean;
  voters: readonly string[];
}): Promise<{ opened: number[]; asked: string[] }> {
  const asked: string[] = [];
  const head = { shard: shardId(3), partition: partition(3), owner: "west", epoch: epoch(4) } as Head;
  const sites = ["east", "central", "west"];
  const vote = async (site: string, request: VoteRequest): Promise<unknown> => {
    asked.push(site);
    assert.deepEqual([request.target, request.candidate, request.epochs], ["west", "east", { "3": 4 }]);
    return o.voters.includes(site) ? { number: 1, epochs: {} } : undefined;
  };
  const watch = new TakeoverWatch({
    group: "g",
    site: "east",
    time: systemTime,
    log: silentLogger,
    messenger: {
      request: async (subject: string, data: Uint8Array) => {
        const site = sites.find((name) => subject === voteSubject("g", name)) ?? "";
        if ((await vote(site, unpack(data) as VoteRequest)) === undefined) throw new NoResponders(subject);
        return pack({ site, number: 1 });
      },
    },
    map: { get: () => head },
    reached: () => position(8),
    word: {
      speaks: o.speaks,
      deny: () => 0,
      promisedMs: () => 0,
      vote: (request: VoteRequest) => {
        assert.ok(o.speaks, "a process that does not give the site's word votes by itself");
        return vote("east", request);
      },
    },
    ownership: {
      open: async ({ since, phasesMs }: OpenRequest) => {
        assert.deepEqual([since, Object.keys(phasesMs)], [8, ["votes", "wait"]]);
        return { kind: "opened" };
      },
    },
    siteSet: () => ({ number: 1, sites: sites.map((name) => ({ name, witness: false })), removed: [] }),
    leaseValid: () => true,
  } as Partial<Record<keyof TakeoverOptions, unknown>> as TakeoverOptions);
  const opened = await watch.takeOver("west", [head], { by: "me", reason: "asked for", forced: true });
  return { opened: [...opened], asked };
}

test("an operator's takeover gets the own site's vote from whichever process gives its word", async () => {
  for (const speaks of [true, false]) {
    const { opened, asked } = await takenOver({ speaks, voters: ["east", "central"] });
    assert.deepEqual([opened, [...asked].sort()], [[3], ["central", "east"]], `speaks: ${speaks}`);
    assert.deepEqual((await takenOver({ speaks, voters: ["east"] })).opened, [], "no majority");
    assert.deepEqual((await takenOver({ speaks, voters: ["central"] })).opened, [], "the own site does not vote");
  }
});
