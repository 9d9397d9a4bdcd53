import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import jsonPatch from "fast-json-patch";
import { shardOf } from "../../shards/ids.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { readLog } from "./log-reader.js";
import {
  after,
  allEqual,
  allServe,
  at,
  body,
  idsOf,
  pause,
  placeOf,
  placeText,
  problem,
  sameHistory,
  send,
  settleMs,
  shardMap,
  shards,
  timed,
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

interface Divergent {
  readonly id: string;
  readonly dc: string;
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
  readonly clusterId: string;
  readonly type: string;
  readonly version: number | null;
  readonly value: Json;
  readonly idempotencyKey: string | null;
  readonly committedAt: string;
  readonly status: string;
}

const divergentFields = [
  "id",
  "dc",
  "shard",
  "epoch",
  "position",
  "clusterId",
  "type",
  "version",
  "value",
  "idempotencyKey",
  "committedAt",
  "status",
];

describe("a datacenter is cut off", { timeout: 300_000 }, () => {
  let stack: TestStack;
  let initial: ShardView[];
  before(async () => {
    // A lease of some seconds leaves time to write while it lasts.
    stack = await startStack({ rttMs: 0, env: { HOTHOT_LEASE_MS: "4000", HOTHOT_AUTOMATIC_FAILBACK: "false" } });
    initial = await shardMap(stack, "east");
  });
  afterAll(() => stack?.stop());

  const on = (
    dc: string,
    method: string,
    where: string,
    data?: unknown,
    headers?: Record<string, string>,
  ): Promise<Answered> => send(stack, dc, method, where, data, headers);
  const put = (dc: string, id: string, name: string, headers?: Record<string, string>): Promise<Answered> =>
    on(dc, "PUT", `/v1/clusters/${id}`, { name, spec: { by: name } }, headers);
  const get = (dc: string, id: string, headers?: Record<string, string>): Promise<Answered> =>
    on(dc, "GET", `/v1/clusters/${id}`, undefined, headers);
  /** Reads the clusters again and again until asked for what they showed: answers with `name` that are not marked stale. */
  const unmarked = (dc: string, ids: readonly string[], name: string): (() => Promise<string[]>) => {
    const shown: string[] = [];
    let reading = true;
    const reader = (async () => {
      while (reading) {
        const answers = await Promise.all(ids.map((id) => get(dc, id).catch(() => undefined)));
        for (const answer of answers)
          if (answer?.status === 200 && answer.headers.get("hothot-stale") === null)
            if ((JSON.parse(answer.text) as Json)["name"] === name)
              shown.push(`${answer.text} lag ${answer.headers.get("hothot-lag-ms")}`);
        await pause(1);
      }
    })();
    return async () => {
      reading = false;
      await reader;
      return [...new Set(shown)];
    };
  };
  const divergentOf = async (dc: string, query = "?limit=1000"): Promise<Divergent[]> =>
    body<{ items: Divergent[] }>(await on(dc, "GET", `/v1/divergent-operations${query}`), 200).items;
  const takenFrom = (dead: string, seenBy: string): Promise<ShardView[]> =>
    stack.until(
      async () => {
        const map = await shardMap(stack, seenBy);
        return map.every((shard) => shard.owner !== dead && shard.state === "owned") && map;
      },
      settleMs,
      `${seenBy} sees no shard of ${dead}`,
    );

  describe("and dies with a tail that the log never got", () => {
    let changed = "";
    let fresh = "";
    let deleted = "";
    let keyed = "";
    let both = "";
    let stored = "";
    let worked = "";
    let worker = "";
    const key = { "idempotency-key": "divergent-key" };
    const lost = new Map<string, Answered>();
    let job: Json = {};
    let newOwners: Answered;
    let newKeyed: Answered;

    before(async () => {
      [changed = "", fresh = "", deleted = "", keyed = "", both = "", stored = "", worked = "", worker = ""] = idsOf(
        initial,
        "central",
        "cut",
        8,
      );
      for (const id of [changed, deleted, worked])
        body(await put("central", id, "before", { "hothot-durability": "replicated" }), 201);
      await allEqual(stack, "east");

      const isolated = await timed(stack.simulate("isolate", "central"));
      assert.ok(isolated.ms < 2_500, `isolating took ${isolated.ms} ms`);
      // Within the lease that it still has, so that it commits and acknowledges what nobody else will see.
      const short = { "hothot-timeout-ms": "2500" };
      const [a, b, c, d, e, f, g, h] = await Promise.all([
        put("central", changed, "divergent", short),
        put("central", fresh, "divergent", short),
        on("central", "DELETE", `/v1/clusters/${deleted}`, undefined, short),
        put("central", keyed, "keyed", { ...short, ...key }),
        put("central", both, "divergent", short),
        put("central", stored, "divergent", { ...short, "hothot-durability": "replicated" }),
        on("central", "POST", `/v1/clusters/${worked}/operations`, { type: "stop" }, short),
        on("central", "PUT", `/v1/workers/${worker}`, { capacity: 3 }, short),
      ]);
      await stack.simulate("crash", "central");
      body(a, 200);
      body(b, 201);
      assert.equal(c.status, 204, c.text);
      body(d, 201);
      body(e, 201);
      problem(f, "outcome_unknown");
      job = body(g, 202);
      body(h, 200);
      for (const [id, answer] of [
        [changed, a],
        [fresh, b],
        [deleted, c],
        [keyed, d],
        [both, e],
        [worked, g],
        [worker, h],
      ] as const)
        lost.set(id, answer);
    });

    it("is taken over, and the others write the same clusters", async () => {
      for (const dc of ["east", "west"]) await takenFrom("central", dc);
      // Appends that were on their way arrive only now: the open behind which they come refuses them.
      await stack.simulate("heal", "central");
      newOwners = await put("east", changed, "new owner");
      assert.equal(body(newOwners, 200)["version"], 2);
      newKeyed = await put("west", keyed, "keyed", key);
      assert.equal(newKeyed.status, 201);
      assert.equal(newKeyed.headers.get("idempotency-replayed"), null, "the key died with the tail");
      body(await put("west", both, "new owner"), 201);
      assert.ok(placeOf(newOwners).epoch > placeOf(lost.get(changed) as Answered).epoch);
    });

    it("answers 410 for a position that its epoch ended without", async () => {
      for (const dc of ["east", "west"])
        for (const [id, answer] of lost) {
          if (id === worker) continue;
          problem(await get(dc, id, after(answer)), "position_lost");
          problem(await on(dc, "GET", "/v1/clusters", undefined, after(answer)), "position_lost");
        }
    });

    it("returns by itself, and lists the whole tail", async () => {
      const shown = unmarked("central", [changed, fresh, both], "divergent");
      await stack.simulate("restart", "central");
      await allServe(stack);
      assert.deepEqual(await shown(), [], "nothing of the tail is shown as if it were true");
      const items = await divergentOf("central");
      for (const item of items) {
        assert.deepEqual(Object.keys(item).sort(), [...divergentFields].sort());
        assert.equal(item.dc, "central");
        assert.equal(item.epoch, at(initial, item.shard).epoch);
        assert.equal(item.shard, shardOf(item.clusterId, shards));
        assert.ok(!Number.isNaN(Date.parse(item.committedAt)));
      }
      const of = (id: string): Divergent[] => items.filter((item) => item.clusterId === id);
      for (const id of [changed, fresh, deleted, keyed, both, stored]) assert.equal(of(id).length, 1, id);
      for (const [id, type, version, status, idempotencyKey] of [
        [changed, "cluster.put", 2, "open", null],
        [fresh, "cluster.put", 1, "open", null],
        [deleted, "cluster.delete", 2, "open", null],
        [keyed, "cluster.put", 1, "superseded", "divergent-key"],
        [both, "cluster.put", 1, "open", null],
        [stored, "cluster.put", 1, "open", null],
      ] as const) {
        const item = at(of(id), 0);
        const { type: wasType, version: wasVersion, status: wasStatus, idempotencyKey: wasKey } = item;
        assert.deepEqual([wasType, wasVersion, wasStatus, wasKey], [type, version, status, idempotencyKey], id);
        const answer = lost.get(id);
        if (answer !== undefined)
          assert.deepEqual([item.shard, item.epoch, item.position], Object.values(placeOf(answer)));
      }
      const jobs = of(worked);
      assert.equal(jobs.filter((item) => item.type === "job.start").length, 1);
      assert.ok(jobs.every((item) => item.type.startsWith("job.")));
      assert.deepEqual(
        of(worker).map((item) => item.type),
        ["worker.put"],
      );
      assert.equal(items.length, 6 + jobs.length + 1, "and nothing else");
      for (const dc of ["east", "west"]) assert.deepEqual(await divergentOf(dc), []);

      const aside = items.reduce((count, { shard }) => count.set(shard, (count.get(shard) ?? 0) + 1), new Map());
      const history = await sameHistory(stack, stack.dcs);
      for (const { shard, from, divergent } of history)
        assert.equal(divergent, from === "central" ? (aside.get(shard) ?? 0) : 0, `shard ${shard}`);
      assert.ok(history.some(({ divergent }) => divergent > 0));
      const told = await stack.cli("history", "--json");
      assert.deepEqual(JSON.parse(told.stdout), { items: history, nextCursor: null });

      const open = await divergentOf("central", "?status=open&limit=1000");
      assert.equal(open.length, items.length - 1);
      assert.deepEqual(
        (await divergentOf("central", "?status=superseded")).map((item) => item.clusterId),
        [keyed],
      );
      const paged: Divergent[] = [];
      let cursor: string | null = "";
      while (cursor !== null) {
        const more: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
        const page: { items: Divergent[]; nextCursor: string | null } = body(
          await on("central", "GET", `/v1/divergent-operations?limit=2${more}`),
          200,
        );
        paged.push(...page.items);
        cursor = page.nextCursor;
      }
      assert.deepEqual(paged, items);
    });

    it("shows by id what is there now, and the difference as RFC 6902", async () => {
      const items = await divergentOf("central");
      for (const id of [changed, fresh, deleted, both]) {
        const listed = items.find((item) => item.clusterId === id);
        assert.ok(listed);
        const shown = body<Divergent & { current: Json | null; diff: jsonPatch.Operation[] }>(
          await on("central", "GET", `/v1/divergent-operations/${listed.id}`),
          200,
        );
        const { current, diff, ...rest } = shown;
        assert.deepEqual(rest, listed);
        const now = await get("central", id, { "hothot-consistency": "owner" });
        if (id === fresh) {
          problem(now, "not_found");
          assert.equal(current, null);
        } else assert.deepEqual(current, body(now, 200));
        assert.ok(diff.length > 0);
        for (const step of diff) assert.ok(["add", "remove", "replace", "move", "copy", "test"].includes(step.op));
        if (id !== deleted) {
          const made = jsonPatch.applyPatch(structuredClone(current ?? {}), diff).newDocument;
          assert.equal(made["id"], id);
          assert.equal(made["name"], "divergent");
          assert.deepEqual(made["spec"], { by: "divergent" });
          assert.equal(made["version"], listed.version);
        }
      }
      problem(await on("central", "GET", "/v1/divergent-operations/central-0-1-999999"), "not_found");
    });

    it("holds the new owners' copies, as everybody does", async () => {
      const wanted = new Map<string, string | null>([
        [changed, "new owner"],
        [fresh, null],
        [deleted, "before"],
        [keyed, "keyed"],
        [both, "new owner"],
        [stored, null],
        [worked, "before"],
      ]);
      for (const [id, name] of wanted) {
        const answers = await Promise.all(
          stack.dcs.flatMap((dc) => [get(dc, id), get(dc, id, { "hothot-consistency": "owner" })]),
        );
        for (const answer of answers) {
          if (name === null) problem(answer, "not_found");
          else {
            assert.equal(body(answer, 200)["name"], name, id);
            assert.deepEqual(JSON.parse(answer.text), JSON.parse(answers[0]?.text ?? ""));
          }
        }
      }
      for (const dc of stack.dcs) {
        problem(await on(dc, "GET", `/v1/jobs/${String(job["id"])}`), "not_found");
        assert.equal(body(await get(dc, worked), 200)["status"], "active");
        problem(await on(dc, "POST", `/v1/workers/${worker}/heartbeat`, {}), "not_found");
        const again = await put(dc, keyed, "keyed", key);
        assert.equal(again.text, newKeyed.text);
        assert.equal(again.headers.get("idempotency-replayed"), "true");
        assert.equal(again.headers.get("hothot-position"), newKeyed.headers.get("hothot-position"));
        problem(await get(dc, changed, after(lost.get(changed) as Answered)), "position_lost");
        body(await get(dc, changed, after(newOwners)), 200);
      }
      await allEqual(stack, "central");
      const { entries } = await readLog(stack, "west");
      assert.deepEqual(
        entries.filter((entry) => entry.record.cluster?.name === "divergent"),
        [],
      );
    });

    it("is replayed where the cluster is still as it was, or discarded, once", async () => {
      const items = await divergentOf("central");
      const of = (id: string, type = "cluster"): Divergent =>
        at(
          items.filter((item) => item.clusterId === id && item.type.startsWith(type)),
          0,
        );
      const ask = (what: "replay" | "discard", { id }: Divergent): Promise<Answered> =>
        on("central", "POST", `/v1/divergent-operations/${id}/${what}`, {});
      const statusOf = async ({ id }: Divergent): Promise<string> =>
        body<Divergent>(await on("central", "GET", `/v1/divergent-operations/${id}`), 200).status;
      // The new owners have changed these: one was at another version, one was not there.
      for (const id of [changed, both]) {
        problem(await ask("replay", of(id)), "version_mismatch");
        assert.equal(await statusOf(of(id)), "open");
        assert.equal(body(await get("west", id, { "hothot-consistency": "owner" }), 200)["name"], "new owner");
      }
      assert.equal(body<Divergent>(await ask("discard", of(changed)), 200).status, "discarded");
      const refused = await stack.cli("divergence", "replay", of(both).id);
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /version_mismatch/);
      const discarded = await stack.cli("divergence", "discard", of(both).id, "--json");
      assert.deepEqual([discarded.code, (JSON.parse(discarded.stdout) as Json)["status"]], [0, "discarded"]);

      // As it was: one that was not there, and one that was removed.
      const dry = await stack.cli("divergence", "replay", of(fresh).id, "--dry-run", "--json");
      assert.deepEqual([dry.code, await statusOf(of(fresh))], [0, "open"]);
      const replayed = await stack.cli("divergence", "replay", of(fresh).id, "--json");
      assert.deepEqual([replayed.code, (JSON.parse(replayed.stdout) as Json)["status"]], [0, "replayed"]);
      const again = body(await get("east", fresh, { "hothot-consistency": "owner" }), 200);
      assert.deepEqual([again["name"], again["version"]], ["divergent", 1]);
      assert.equal(body<Divergent>(await ask("replay", of(deleted)), 200).status, "replayed");
      problem(await get("west", deleted, { "hothot-consistency": "owner" }), "not_found");

      // Each has one end; a job is started anew, not replayed; what took effect by its key is not there a second time.
      for (const what of ["replay", "discard"] as const)
        for (const id of [changed, both, fresh, deleted, keyed]) problem(await ask(what, of(id)), "invalid_transition");
      problem(await ask("replay", of(worked, "job.start")), "invalid_transition");
      assert.equal(body<Divergent>(await ask("discard", of(worked, "job.start")), 200).status, "discarded");
      assert.equal(body(await get("east", fresh, { "hothot-consistency": "owner" }), 200)["version"], 1);
      problem(await on("central", "POST", "/v1/divergent-operations/central-0-1-999999/discard", {}), "not_found");
      const open = (await divergentOf("central", "?status=open&limit=1000")).map(({ clusterId }) => clusterId);
      assert.ok([changed, both, fresh, deleted, keyed].every((id) => !open.includes(id)) && open.includes(stored));
      const listed = await stack.cli("divergence", "list", "--status", "discarded", "--json");
      assert.deepEqual(
        (JSON.parse(listed.stdout) as { items: Divergent[] }).items.map(({ clusterId }) => clusterId).sort(),
        [changed, both, worked].sort(),
      );
      const shown = await stack.cli("divergence", "show", of(fresh).id, "--json");
      assert.equal((JSON.parse(shown.stdout) as Json)["status"], "replayed");
    });

    it("lets the writes of those clusters go on from everywhere", async () => {
      for (const [index, id] of [changed, fresh, deleted, keyed, both, stored, worked].entries())
        assert.ok(
          (await put(at(stack.dcs, index % 3), id, "later", { "hothot-durability": "replicated" })).status < 300,
        );
      await allEqual(stack, "west");
    });
  });

  describe("and lives", () => {
    it("refuses writes with no_lease, reads its copy marked stale, is taken over, and heals on its own", async () => {
      await allServe(stack);
      const before = await shardMap(stack, "east");
      const [mine = "", other = ""] = [
        at(idsOf(before, "west", "alone", 1), 0),
        at(idsOf(before, "east", "alone", 1), 0),
      ];
      for (const id of [mine, other]) body(await put("west", id, "before", { "hothot-durability": "replicated" }), 201);
      for (const dc of stack.dcs)
        await stack.until(async () => (await get(dc, other)).status === 200, 10_000, `${dc} has ${other}`);

      await stack.simulate("isolate", "west");
      const [tail = "", keyed = ""] = idsOf(before, "west", "tail", 2);
      const short = { "hothot-timeout-ms": "2500" };
      const [written, alone] = await Promise.all([
        put("west", tail, "divergent", short),
        put("west", keyed, "alone", { ...short, "idempotency-key": "replayed-here" }),
      ]);
      body(written, 201);
      body(alone, 201);
      const stale = await stack.until(
        async () => {
          const answer = await get("west", mine);
          return answer.headers.get("hothot-stale") === "true" && answer;
        },
        10_000,
        "reads are marked stale",
      );
      assert.equal(body(stale, 200)["name"], "before");
      for (const where of [`/v1/clusters/${other}`, "/v1/clusters", "/v1/jobs"]) {
        const answer = await on("west", "GET", where);
        assert.equal(answer.status, 200);
        assert.equal(answer.headers.get("hothot-stale"), "true", where);
        // It can't know what it misses: how long it has heard nothing.
        if (where !== "/v1/jobs") assert.ok(Number(answer.headers.get("hothot-lag-ms")) > 1_000, where);
      }
      const { ms, value } = await timed(() => put("west", mine, "refused", { "hothot-timeout-ms": "1000" }));
      const found = problem(value, "no_lease");
      assert.equal(found["owner"], "west");
      assert.equal(value.headers.get("hothot-owner"), "west");
      assert.ok(ms >= 990 && ms < 6_000, `it waited ${ms} ms for a lease`);
      for (const durability of ["local", "replicated"])
        problem(
          await put("west", mine, "refused", { "hothot-timeout-ms": "300", "hothot-durability": durability }),
          "no_lease",
        );
      problem(await get("west", mine, { "hothot-consistency": "owner", "hothot-timeout-ms": "300" }), "no_lease");
      const unreachable = problem(
        await put("west", other, "refused", { "hothot-timeout-ms": "1000" }),
        "owner_unreachable",
      );
      assert.equal(unreachable["owner"], "east");
      const created = await on("west", "POST", "/v1/clusters", { name: "n", spec: {} }, { "hothot-timeout-ms": "300" });
      problem(created, "no_lease");
      const ready = await on("west", "GET", "/readyz");
      assert.equal(ready.status, 503);
      assert.match(String((JSON.parse(ready.text) as Json)["reason"]), /lease/);
      assert.equal((await on("west", "GET", "/livez")).status, 200);
      const topology = body<{ datacenters: Json[] }>(await on("west", "GET", "/v1/topology"), 200);
      const self = topology.datacenters.find((dc) => dc["name"] === "west");
      assert.equal(self?.["state"], "fenced");
      assert.equal(self?.["leaseMsLeft"], 0);

      await takenFrom("west", "east");
      for (const dc of ["east", "central"]) {
        const answer = await put(dc, mine, `by ${dc}`);
        assert.ok(answer.status === 200, answer.text);
        assert.notEqual(answer.headers.get("hothot-owner"), "west");
      }
      // Still nothing but its old copy, said to be stale.
      assert.equal((await get("west", mine)).headers.get("hothot-stale"), "true");

      body(await put("east", tail, "by east"), 201);
      assert.equal(body(await get("west", tail), 200)["name"], "divergent", "its own, said to be stale");

      const shown = unmarked("west", [tail], "divergent");
      await stack.simulate("heal", "west");
      await allServe(stack);
      assert.deepEqual(await shown(), [], "nothing of its tail is shown as if it were true");
      assert.equal(body(await get("west", tail), 200)["name"], "by east");
      problem(await get("west", tail, after(written)), "position_lost");
      const healed = await get("west", mine);
      assert.equal(body(healed, 200)["name"], "by central");
      assert.equal(healed.headers.get("hothot-stale"), null);
      const divergent = await divergentOf("west");
      assert.deepEqual(
        divergent.map((item) => [item.clusterId, item.status, placeText(item)]).sort(),
        [
          [tail, "open", placeText(placeOf(written))],
          [keyed, "open", placeText(placeOf(alone))],
        ].sort(),
        "what was refused is not there",
      );
      // By the very process that answered it first.
      const lost = divergent.find((item) => item.clusterId === keyed);
      const replay = (key?: string): Promise<Answered> =>
        on(
          "west",
          "POST",
          `/v1/divergent-operations/${lost?.id}/replay`,
          {},
          key === undefined ? {} : { "idempotency-key": key },
        );
      const replayed = await replay("operators-own");
      assert.equal(body(replayed, 200)["status"], "replayed");
      const repeated = await replay("operators-own");
      assert.deepEqual([repeated.status, repeated.text], [200, replayed.text]);
      problem(await replay(), "invalid_transition");
      assert.equal(body(await get("west", keyed, { "hothot-consistency": "owner" }), 200)["name"], "alone");
      // Who wrote it asks again, anywhere: it is the same request, and took effect once.
      await allEqual(stack, "west");
      for (const dc of stack.dcs) {
        const again = await put(dc, keyed, "alone", { "idempotency-key": "replayed-here" });
        assert.equal(body(again, 201)["version"], 1, `${dc}: ${again.text}`);
        assert.equal(again.headers.get("idempotency-replayed"), "true", dc);
        problem(await put(dc, keyed, "other", { "idempotency-key": "replayed-here" }), "idempotency_key_reused");
      }
      await allEqual(stack, "west");
      assert.equal(body(await get("west", other), 200)["version"], 1, "what was refused had no effect");
      assert.equal(body(await get("west", mine), 200)["version"], 3);
      body(await put("west", mine, "after"), 200);
    });

    it("waits with a write through the cut of one link, by way of the third datacenter", async () => {
      const map = await shardMap(stack, "east");
      const id = at(idsOf(map, "east", "relay", 1), 0);
      body(await put("central", id, "before"), 201);
      await stack.simulate("cut", "central:east");
      try {
        // Until the servers notice, a forward gets no answer; one with a key is sent again.
        const first = await put("central", id, "first", {
          "idempotency-key": "relay-1",
          "hothot-timeout-ms": "40000",
          "hothot-durability": "replicated",
        });
        assert.equal(first.status, 200, first.text);
        for (let round = 0; round < 10; round++) {
          const answer = await put("central", id, `round ${round}`, { "hothot-durability": "replicated" });
          assert.equal(answer.status, 200, answer.text);
          assert.equal(answer.headers.get("hothot-served-by"), `${answer.headers.get("hothot-owner")}/n1`);
          await pause(200);
        }
        const now = await shardMap(stack, "west");
        for (const shard of now) assert.equal(shard.owner, at(map, shard.shard).owner, "no takeover");
      } finally {
        await stack.simulate("heal", "central:east");
      }
      await allServe(stack);
      await allEqual(stack, "central");
      assert.equal(placeText(placeOf(await put("west", id, "end"))).split(":").length, 3);
    });

    it("answers 503 to every read where its PostgreSQL is gone, until others own its shards, and after that to local ones", async () => {
      const map = await shardMap(stack, "east");
      const gone = at(map, 0).owner ?? "";
      const heir = stack.dcs.find((dc) => dc !== gone) ?? "";
      const [mine = "", other = ""] = idsOf(map, gone, "gone", 2);
      for (const id of [mine, other]) body(await put("east", id, "before", { "hothot-durability": "replicated" }), 201);
      await stack.until(async () => (await get(gone, other)).status === 200, 10_000, `${gone} has ${other}`);
      const owner = { "hothot-consistency": "owner", "hothot-timeout-ms": "1000" };
      for (const pid of stack.pids(gone).postgres) process.kill(pid, "SIGKILL");
      await stack.until(async () => (await get(gone, other)).status !== 200, 10_000, "its PostgreSQL is gone");
      const answers = await Promise.all([
        get(gone, mine),
        on(gone, "GET", "/v1/clusters"),
        on(gone, "GET", "/v1/jobs"),
        on(gone, "POST", "/v1/workers/w1/heartbeat", {}),
        on(gone, "POST", "/v1/tasks/take", { workerId: "w1" }),
      ]);
      for (const answer of answers) problem(answer, "no_lease");
      // It is asked as the owner, by itself and by others, and then no owner any more.
      for (const dc of [gone, heir]) {
        const answer = await get(dc, mine, owner);
        assert.ok(answer.status === 200 || answer.status === 503, `${dc}: ${answer.text}`);
      }
      await takenFrom(gone, heir);
      body(await get(heir, mine, { "hothot-consistency": "owner" }), 200);
      problem(await get(gone, other), "no_lease");
      await stack.simulate("restart", gone);
      await allServe(stack);
      body(await get(gone, other), 200);
      await allEqual(stack, heir);
    });
  });
});
