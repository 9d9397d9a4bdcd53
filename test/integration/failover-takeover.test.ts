import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { LocalStack } from "../../infra/local/stack.js";
import { shardOf } from "../../shards/ids.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { readLog } from "./log-reader.js";
import {
  after,
  allEqual,
  allServe,
  at,
  body,
  followed,
  idsOf,
  pause,
  placeOf,
  problem,
  sameHistory,
  send,
  settleMs,
  shardMap,
  shards,
  type Answered,
  type Json,
  type Place,
  type ShardView,
} from "./support.js";

describe("a datacenter dies, stands still, and comes back", { timeout: 300_000 }, () => {
  let stack: TestStack;
  let initial: ShardView[];
  before(async () => {
    stack = await startStack({ env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
    initial = await shardMap(stack, "east");
  });
  afterAll(() => stack?.stop());

  const put = (dc: string, id: string, headers?: Record<string, string>, name = "n"): Promise<Answered> =>
    send(stack, dc, "PUT", `/v1/clusters/${id}`, { name, spec: {} }, headers);
  const get = (dc: string, id: string, headers?: Record<string, string>): Promise<Answered> =>
    send(stack, dc, "GET", `/v1/clusters/${id}`, undefined, headers);
  const same = (again: Answered, first: Answered): void => {
    assert.equal(again.status, first.status, again.text);
    assert.equal(again.text, first.text);
    assert.equal(again.headers.get("idempotency-replayed"), "true");
    for (const name of ["hothot-position", "etag"])
      assert.equal(again.headers.get(name), first.headers.get(name), name);
  };
  const owned = (map: readonly ShardView[], dc: string): ShardView[] => map.filter((shard) => shard.owner === dc);

  /** Waits until `dc` sees that others own what `dead` owned, and gives its map. */
  const takenOver = (dc: string, dead: string): Promise<ShardView[]> =>
    stack.until(
      async () => {
        const map = await shardMap(stack, dc);
        return owned(map, dead).length === 0 && map.every((shard) => shard.state === "owned") && map;
      },
      settleMs,
      `${dc} sees no shard of ${dead}`,
    );

  it("has its shards owned by the others within seconds of a kill -9, in larger epochs, and writes go on", async () => {
    const before = await shardMap(stack, "east");
    const mine = owned(before, "west");
    assert.ok(mine.length >= 20);
    const kept = idsOf(before, "west", "kept", 30);
    for (const id of kept) body(await put("west", id, { "hothot-durability": "replicated" }), 201);
    const key = { "idempotency-key": "before-the-kill", "hothot-durability": "replicated" };
    const keyed = at(idsOf(before, "west", "keyed", 1), 0);
    const first = await put("west", keyed, key, "first");
    body(first, 201);

    // On their way while it dies, with a key: none fails.
    const underWay = idsOf(before, "west", "under-way", 24).map((id, number) =>
      put(number % 2 === 0 ? "east" : "central", id, { "idempotency-key": id, "hothot-timeout-ms": "20000" }),
    );
    const abort = new AbortController();
    let heard = "";
    const listening = fetch(`${stack.url("east")}/v1/events`, { signal: abort.signal }).then(async (answer) => {
      for await (const chunk of answer.body ?? []) heard += Buffer.from(chunk as Uint8Array).toString();
    });
    listening.catch(() => undefined);
    await stack.until(() => heard.includes("retry:"), 5_000, "events flow");
    const killedAt = performance.now();
    await stack.simulate("crash", "west");
    // Requests that wait for an owner get one, within their deadline, without a try of the caller's.
    const probes = await Promise.all(
      mine.map(({ shard }, number) => {
        const id = at(kept.filter((each) => shardOf(each, shards) === shard).concat(`probe-${shard}-${number}`), 0);
        return put(number % 2 === 0 ? "east" : "central", id, { "hothot-timeout-ms": "20000" });
      }),
    );
    const answeredMs = Math.max(...probes.map((probe) => probe.at)) - killedAt;
    for (const probe of probes) assert.ok(probe.status === 200 || probe.status === 201, probe.text);
    for (const answer of await Promise.all(underWay)) body(answer, 201);
    assert.ok(answeredMs < 15_000, `the last one after ${answeredMs} ms`);
    for (const dc of ["east", "central"]) {
      const now = await takenOver(dc, "west");
      for (const shard of mine) {
        const taken = at(now, shard.shard);
        assert.ok(taken.owner === "east" || taken.owner === "central");
        assert.ok(taken.epoch > shard.epoch, `shard ${shard.shard}: epoch ${shard.epoch} -> ${taken.epoch}`);
      }
      for (const shard of before)
        if (shard.owner !== "west") {
          assert.equal(at(now, shard.shard).owner, shard.owner, "what the living own stays theirs");
          assert.equal(at(now, shard.shard).epoch, shard.epoch);
        }
      assert.ok(owned(now, "east").length > owned(before, "east").length, "both take a part");
      assert.ok(owned(now, "central").length > owned(before, "central").length);
    }
    for (const probe of probes) {
      const now = at(await shardMap(stack, "east"), placeOf(probe).shard);
      assert.equal(placeOf(probe).epoch, now.epoch);
      assert.equal(probe.headers.get("hothot-owner"), now.owner);
    }
    for (const id of kept) body(await get("central", id, { "hothot-consistency": "owner" }), 200);
    await stack.until(() => /event: health\ndata: .*"dc":"west","state":"dead"/.test(heard), 5_000, "east tells of it");
    abort.abort();
    await listening.catch(() => undefined);

    // The key is known to the new owner too.
    for (const dc of ["east", "central"]) {
      const again = await put(dc, keyed, { "idempotency-key": "before-the-kill" }, "first");
      same(again, first);
      problem(await put(dc, keyed, key, "other"), "idempotency_key_reused");
    }
    // A position of the ended epoch that the log has is known everywhere.
    body(await get("east", keyed, after(first)), 200);
    body(await get("central", keyed, after(first)), 200);
  });

  it("gives the first answer to a key of the former owner also where it asks for `replicated`", async () => {
    const key = { "idempotency-key": "before-the-kill", "hothot-timeout-ms": "3000" };
    const keyed = at(idsOf(initial, "west", "keyed", 1), 0);
    const first = await put("central", keyed, key, "first");
    assert.equal(first.headers.get("idempotency-replayed"), "true");
    assert.equal(first.headers.get("hothot-owner"), "west", "the owner in the epoch of the position");
    for (const dc of ["east", "central"])
      same(await put(dc, keyed, { ...key, "hothot-durability": "replicated" }, "first"), first);
  });

  it("is told in the history: who took over what, from whom, when", async () => {
    const map = await shardMap(stack, "east");
    const items = await sameHistory(stack, ["east", "central"]);
    const times = items.map(({ at }) => Date.parse(at));
    assert.deepEqual(
      times,
      [...times].sort((a, b) => a - b),
    );
    assert.equal(items.filter((item) => item.kind === "initial").length, shards);
    const takeovers = items.filter((item) => item.kind === "takeover" && item.from === "west");
    for (const shard of map) {
      const last = items.filter((item) => item.shard === shard.shard).at(-1);
      assert.deepEqual([last?.to, last?.epoch, last?.id], [shard.owner, shard.epoch, `${shard.shard}-${shard.epoch}`]);
    }
    assert.ok(takeovers.length >= 20);
    // One that took very long may lack what came after it.
    assert.ok(takeovers.filter(followed).length > takeovers.length / 2, JSON.stringify(takeovers));
    for (const { by, to, reason, divergent } of takeovers)
      assert.deepEqual([by, reason, divergent], [to, "west was silent", 0]);
    const topology = body<{ datacenters: Json[] }>(await send(stack, "east", "GET", "/v1/topology"), 200);
    assert.equal(topology.datacenters.find((dc) => dc["name"] === "west")?.["state"], "dead");
  });

  it("returns by itself as a replica of what it lost, with equal copies", async () => {
    const before = await shardMap(stack, "east");
    await stack.simulate("restart", "west");
    await allServe(stack);
    await allEqual(stack, "west");
    const { items } = body<{ items: Json[] }>(await send(stack, "west", "GET", "/v1/divergent-operations"), 200);
    // What was on its way while it died may have been committed there; it was told nobody, and took effect at the next owner.
    for (const item of items) {
      assert.match(String(item["idempotencyKey"]), /^under-way-/, JSON.stringify(item));
      assert.equal(item["status"], "superseded", JSON.stringify(item));
    }
    // Only it knew how many.
    const aside = new Map<number, number>();
    for (const { shard } of items as unknown as Place[]) aside.set(shard, (aside.get(shard) ?? 0) + 1);
    for (const { from, kind, shard, divergent } of await sameHistory(stack, stack.dcs))
      assert.equal(divergent, from === "west" && kind === "takeover" ? (aside.get(shard) ?? 0) : 0, `shard ${shard}`);
    for (const shard of await shardMap(stack, "west")) assert.ok(shard.epoch >= at(before, shard.shard).epoch);
    const id = at(idsOf(before, "east", "kept-on", 1), 0);
    const written = await put("west", id);
    body(written, 201);
    assert.equal(written.headers.get("hothot-served-by"), "east/n1");
  });

  it("never acknowledges in its old epoch after another owner has answered, when it stood still for 5 s", async () => {
    const before = await shardMap(stack, "central");
    const target = "east";
    const mine = owned(before, target).map((shard) => shard.shard);
    assert.ok(mine.length > 0);
    const ids = idsOf(before, target, "still", 12);
    interface Ack extends Place {
      readonly at: number;
      readonly dc: string;
      readonly id: string;
      readonly version: number;
    }
    const acks: Ack[] = [];
    const refusals: { dc: string; at: number; code: string }[] = [];
    let writing = true;
    const write = async (dc: string, id: string, timeoutMs: string): Promise<void> => {
      try {
        const answer = await put(dc, id, { "hothot-timeout-ms": timeoutMs }, `${dc}-${Math.random()}`);
        if (answer.status < 300) {
          const { version } = JSON.parse(answer.text) as { version: number };
          acks.push({ ...placeOf(answer), at: answer.at, dc, id, version });
        } else {
          const { code } = JSON.parse(answer.text) as { code: string };
          assert.ok(answer.status === 503 || answer.status === 504, answer.text);
          refusals.push({ dc, at: answer.at, code });
        }
      } catch (error) {
        if (error instanceof assert.AssertionError) throw error;
      }
    };
    // Several writers for each datacenter, so that some of the target's requests are under way whenever it stops.
    const writers = stack.dcs.flatMap((dc) =>
      ids.map(async (id) => {
        while (writing) {
          await write(dc, id, "15000");
          await pause(5);
        }
      }),
    );
    await pause(700);
    await stack.simulate("pause", target);
    const pausedAt = performance.now();
    const taken = await takenOver("central", target);
    for (const shard of mine) assert.ok(at(taken, shard).epoch > at(before, shard).epoch);
    // Sent to it while it stands still: it finds them when it wakes up.
    const late = Array.from({ length: 20 }, (_, number) => write(target, at(ids, number % ids.length), "15000"));
    await pause(Math.max(0, 5_000 - (performance.now() - pausedAt)));
    const resumedAt = performance.now();
    await stack.simulate("resume", target);
    await Promise.all(late);
    await allServe(stack);
    await pause(300);
    writing = false;
    await Promise.all(writers);

    // Of each shard: no acknowledgement in an epoch after one of a larger epoch. One that was read later had been sent before.
    let checked = 0;
    for (const shard of mine) {
      const seen = acks.filter((ack) => ack.shard === shard).sort((a, b) => a.at - b.at);
      const newer = seen.find((ack) => ack.epoch > at(before, shard).epoch);
      if (newer === undefined) continue;
      checked++;
      const stale = seen.filter((ack) => ack.epoch === at(before, shard).epoch && ack.at > newer.at);
      const times = `paused ${pausedAt}, resumed ${resumedAt}, first of the new epoch ${newer.at}`;
      assert.deepEqual(stale, [], `shard ${shard}: ${times}`);
    }
    assert.ok(checked > 0);
    assert.deepEqual(
      acks.filter((ack) => ack.at > resumedAt && ack.epoch <= at(before, ack.shard).epoch),
      [],
      "in the old epoch after it woke up",
    );
    assert.ok(
      acks.some((ack) => ack.dc === target && ack.at > resumedAt),
      "it serves again",
    );
    assert.ok(acks.some((ack) => ack.dc === target && ack.at < pausedAt && ack.epoch === at(before, ack.shard).epoch));
    // No position was given twice, and no version.
    const places = acks.map((ack) => `${ack.shard}:${ack.epoch}:${ack.position}`);
    assert.equal(new Set(places).size, places.length);
    await allEqual(stack, target);
    const { items } = body<{ items: { epoch: number; shard: number; position: number }[] }>(
      await send(stack, target, "GET", "/v1/divergent-operations?limit=1000"),
      200,
    );
    const aside = new Set(items.map((item) => `${item.shard}:${item.epoch}:${item.position}`));
    // Invariant 3: what was acknowledged is in the log, or set aside at the datacenter that had acknowledged it.
    const { entries } = await readLog(stack, "west");
    const logged = new Set(entries.map((entry) => `${entry.shard}:${entry.epoch}:${entry.position}`));
    assert.deepEqual(
      places.filter((place) => !logged.has(place) && !aside.has(place)),
      [],
    );
  });

  it("keeps epochs that only grow and positions without gaps in the log", async () => {
    const { batches } = await readLog(stack, "central");
    const heads = new Map<number, { epoch: number; owner: string; last: number }>();
    for (const { header } of batches) {
      const head = heads.get(header.shard);
      const last = header.first + header.count - 1;
      if (head === undefined) assert.equal(header.kind, "open");
      else if (header.kind === "open") assert.ok(header.epoch > head.epoch, "an open begins a larger epoch");
      else {
        assert.equal(header.epoch, head.epoch);
        assert.equal(header.owner, head.owner);
      }
      if (head !== undefined) assert.equal(header.first, head.last + 1, `shard ${header.shard}, ${header.kind}`);
      heads.set(header.shard, { epoch: header.epoch, owner: header.owner, last });
    }
    assert.equal(heads.size, shards);
    for (const shard of await shardMap(stack, "east")) {
      assert.equal(heads.get(shard.shard)?.epoch, shard.epoch);
      assert.equal(heads.get(shard.shard)?.owner, shard.owner);
    }
  });

  it("comes back with all its data when every datacenter was killed and started again", async () => {
    const before = await shardMap(stack, "east");
    const ids = Array.from({ length: 15 }, (_, number) => `all-${number}`);
    const written = await Promise.all(ids.map((id) => put("central", id, {}, "before")));
    for (const answer of written) body(answer, 201);
    // With a majority of the sites gone, the last one refuses every write with a reason, and reads on.
    await Promise.all(["east", "west"].map((dc) => stack.simulate("crash", dc)));
    await stack.until(
      async () => (await get("central", at(ids, 0))).headers.get("hothot-stale") === "true",
      settleMs,
      "reads are marked stale",
    );
    const refusals = await Promise.all(ids.map((id) => put("central", id, { "hothot-timeout-ms": "500" }, "refused")));
    for (const answer of refusals) {
      const code = (JSON.parse(answer.text) as { code: "no_lease" | "owner_unreachable" | "no_majority" }).code;
      assert.ok(["no_lease", "owner_unreachable", "no_majority"].includes(code), answer.text);
      problem(answer, code);
    }
    await stack.simulate("crash", "central");
    for (const dc of stack.dcs) assert.deepEqual(stack.pids(dc), { node: [], postgres: [], nats: [] });
    // As `hothot up` does it.
    await LocalStack.up(stack.dir, {});
    await allServe(stack, 60_000);
    await allEqual(stack, "east");
    for (const shard of await shardMap(stack, "east")) assert.ok(shard.epoch >= at(before, shard.shard).epoch);
    const set = new Set<string>();
    for (const dc of stack.dcs) {
      const { items } = body<{ items: Json[] }>(
        await send(stack, dc, "GET", "/v1/divergent-operations?limit=1000"),
        200,
      );
      for (const item of items) set.add(String(item["clusterId"]));
    }
    for (const id of ids)
      for (const dc of stack.dcs) {
        const answer = await get(dc, id);
        if (!set.has(id)) assert.equal(body(answer, 200)["name"], "before", `${id} in ${dc}`);
      }
    for (const id of ids)
      assert.ok((await put("west", id, { "hothot-durability": "replicated" }, "after")).status < 300);
  });
});
