import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { problems, type ProblemCode } from "../../infra/errors.js";
import { shardOf } from "../../shards/ids.js";
import { FakeCollector } from "../harness/collector.js";
import { startStack, type TestStack } from "../harness/stack.js";
import {
  after,
  at,
  body,
  idsOf,
  placeOf,
  problem,
  send,
  shardMap,
  shards,
  timed,
  type Answered,
  type Json,
  type ShardView,
} from "./support.js";

const fields = [
  "id",
  "shard",
  "owner",
  "status",
  "name",
  "spec",
  "state",
  "labels",
  "expiresAt",
  "version",
  "createdAt",
  "updatedAt",
];
const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

describe("clusters over HTTP", { timeout: 240_000 }, () => {
  let stack: TestStack;
  let map: ShardView[];
  let collector: FakeCollector;
  before(async () => {
    collector = await FakeCollector.start();
    stack = await startStack({
      steady: true,
      env: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_BSP_SCHEDULE_DELAY: "200" },
    });
    map = await shardMap(stack, "east");
  });
  afterAll(async () => {
    await stack?.stop();
    collector.stop();
  });

  const on = (
    dc: string,
    method: string,
    where: string,
    data?: unknown,
    headers?: Record<string, string>,
  ): Promise<Answered> => send(stack, dc, method, where, data, headers);
  const ownerOf = (id: string): string => at(map, shardOf(id, shards)).owner ?? "";

  /** Headers of every write that took effect. */
  function written(answer: Answered, id: string, version: number | null): void {
    const shard = shardOf(id, shards);
    const place = placeOf(answer);
    assert.equal(place.shard, shard);
    assert.equal(place.epoch, at(map, shard).epoch);
    assert.ok(place.position >= 1);
    assert.equal(answer.headers.get("hothot-owner"), ownerOf(id));
    assert.equal(answer.headers.get("hothot-served-by"), `${ownerOf(id)}/n1`);
    assert.equal(answer.headers.get("etag"), version === null ? null : `"${version}"`);
    for (const name of ["idempotency-replayed", "hothot-lag-ms", "hothot-stale"])
      assert.equal(answer.headers.get(name), null, name);
    assert.ok((answer.headers.get("x-request-id") ?? "") !== "");
  }

  it("starts with shards spread evenly, each with an owner, an epoch and a reason", async () => {
    assert.equal(map.length, shards);
    const counts = stack.dcs.map((dc) => map.filter((shard) => shard.owner === dc).length);
    assert.ok(Math.max(...counts) - Math.min(...counts) <= Math.ceil(shards / 12), counts.join(", "));
    for (const dc of stack.dcs) {
      const seen = await shardMap(stack, dc);
      for (const shard of seen) {
        for (const name of ["shard", "partition", "owner", "epoch", "state", "position", "since", "reason"])
          assert.ok(name in shard, name);
        assert.equal(shard.state, "owned");
        assert.equal(shard.owner, at(map, shard.shard).owner);
      }
    }
  });

  it("creates with an id: 201, the whole cluster, and the headers of a write", async () => {
    for (const owner of stack.dcs) {
      const id = at(idsOf(map, owner, "made", 1), 0);
      const answer = await on("east", "POST", "/v1/clusters", { id, name: "first", spec: { nodes: ["a"] } });
      const cluster = body(answer, 201);
      assert.deepEqual(Object.keys(cluster).sort(), [...fields].sort());
      const { createdAt, updatedAt, ...rest } = cluster;
      assert.deepEqual(rest, {
        id,
        shard: shardOf(id, shards),
        owner,
        status: "active",
        name: "first",
        spec: { nodes: ["a"] },
        state: {},
        labels: {},
        expiresAt: null,
        version: 1,
      });
      assert.match(String(createdAt), rfc3339);
      assert.equal(updatedAt, createdAt);
      assert.match(answer.headers.get("content-type") ?? "", /^application\/json\b/);
      written(answer, id, 1);
      const again = await on("west", "POST", "/v1/clusters", { id, name: "second", spec: {} });
      problem(again, "already_exists");
      assert.equal(body(await on("east", "GET", `/v1/clusters/${id}`, undefined, after(answer)), 200)["name"], "first");
    }
  });

  it("picks an id of a shard that it owns when none is given", async () => {
    for (const dc of stack.dcs) {
      const made = await Promise.all(
        Array.from({ length: 8 }, () => on(dc, "POST", "/v1/clusters", { name: "any", spec: {} })),
      );
      const ids = made.map((answer) => {
        const cluster = body(answer, 201);
        const id = String(cluster["id"]);
        assert.match(id, /^[A-Za-z0-9._:-]{1,128}$/);
        assert.equal(ownerOf(id), dc);
        written(answer, id, 1);
        return id;
      });
      assert.equal(new Set(ids).size, 8);
    }
  });

  it("lets the id follow from the key when only a key is given", async () => {
    const data = { name: "keyed", spec: {} };
    const first = await on("east", "POST", "/v1/clusters", data, { "idempotency-key": "id-from-key" });
    const { id } = body<{ id: string }>(first, 201);
    for (const dc of stack.dcs) {
      const again = await on(dc, "POST", "/v1/clusters", data, { "idempotency-key": "id-from-key" });
      assert.equal(again.text, first.text);
      assert.equal(again.status, 201);
      assert.equal(again.headers.get("idempotency-replayed"), "true");
    }
    const other = await on("west", "POST", "/v1/clusters", data, { "idempotency-key": "id-from-another-key" });
    assert.notEqual(body(other, 201)["id"], id);
    problem(
      await on("west", "POST", "/v1/clusters", { ...data, name: "x" }, { "idempotency-key": "id-from-key" }),
      "idempotency_key_reused",
    );
  });

  it("puts: 201 for a new one, 200 for a replacement, of which nothing old is left but its birth", async () => {
    const id = at(idsOf(map, "central", "put", 1), 0);
    const first = await on("west", "PUT", `/v1/clusters/${id}`, {
      name: "one",
      spec: { size: 1, text: "größer", list: [1, { a: null }] },
      state: { up: true },
      labels: { team: "blue" },
      expiresAt: "2090-01-31T14:00:00+02:00",
    });
    const created = body(first, 201);
    written(first, id, 1);
    assert.deepEqual(created["spec"], { size: 1, text: "größer", list: [1, { a: null }] });
    assert.deepEqual(created["state"], { up: true });
    assert.deepEqual(created["labels"], { team: "blue" });
    assert.equal(Date.parse(String(created["expiresAt"])), Date.parse("2090-01-31T12:00:00Z"));
    assert.equal(created["status"], "active");
    const second = await on("east", "PUT", `/v1/clusters/${id}`, { name: "two", spec: {} });
    const replaced = body(second, 200);
    written(second, id, 2);
    assert.equal(placeOf(second).position, placeOf(first).position + 1);
    assert.deepEqual(
      { ...replaced, updatedAt: null },
      {
        ...created,
        name: "two",
        spec: {},
        state: {},
        labels: {},
        expiresAt: null,
        version: 2,
        updatedAt: null,
      },
    );
    assert.ok(String(replaced["updatedAt"]) >= String(created["updatedAt"]));
  });

  it("gets the same cluster everywhere, with a lag from replicas only", async () => {
    const id = at(idsOf(map, "west", "get", 1), 0);
    const put = await on("east", "PUT", `/v1/clusters/${id}`, {
      name: "same",
      spec: { z: 1, a: 2, m: { y: 1, b: 2 } },
    });
    const cluster = body(put, 201);
    for (const dc of stack.dcs) {
      const answer = await on(dc, "GET", `/v1/clusters/${id}`, undefined, after(put));
      assert.equal(answer.status, 200);
      assert.deepEqual(JSON.parse(answer.text), cluster);
      assert.equal(answer.headers.get("etag"), '"1"');
      assert.equal(answer.headers.get("hothot-owner"), "west");
      assert.equal(answer.headers.get("hothot-served-by"), `${dc}/n1`);
      assert.equal(answer.headers.get("hothot-position"), null);
      assert.equal(answer.headers.get("hothot-stale"), null);
      if (dc === "west") assert.equal(answer.headers.get("hothot-lag-ms"), null);
      else assert.match(answer.headers.get("hothot-lag-ms") ?? "none", /^\d+$/);
      const owned = await on(dc, "GET", `/v1/clusters/${id}`, undefined, { "hothot-consistency": "owner" });
      assert.equal(owned.status, 200);
      assert.deepEqual(JSON.parse(owned.text), cluster);
      assert.equal(owned.headers.get("etag"), '"1"');
      assert.equal(owned.headers.get("hothot-owner"), "west");
      assert.equal(owned.headers.get("hothot-served-by"), "west/n1");
      assert.equal(owned.headers.get("hothot-lag-ms"), null);
      const stored = await on(dc, "GET", `/v1/clusters/${id}`, undefined, {
        "hothot-consistency": "owner",
        "hothot-durability": "replicated",
      });
      assert.deepEqual(body(stored, 200), cluster);
    }
  });

  it("keeps If-Match and If-None-Match", async () => {
    const id = at(idsOf(map, "east", "match", 1), 0);
    const where = `/v1/clusters/${id}`;
    const data = { name: "m", spec: {} };
    const refused = async (method: string, headers: Record<string, string>): Promise<void> => {
      for (const dc of stack.dcs)
        problem(await on(dc, method, where, method === "PUT" ? data : undefined, headers), "version_mismatch");
    };
    await refused("PUT", { "if-match": '"1"' });
    written(await on("west", "PUT", where, data, { "if-none-match": "*" }), id, 1);
    await refused("PUT", { "if-none-match": "*" });
    written(await on("central", "PUT", where, data, { "if-match": '"1"' }), id, 2);
    await refused("PUT", { "if-match": '"1"' });
    await refused("PUT", { "if-match": '"3"' });
    await refused("DELETE", { "if-match": '"1"' });
    for (const [name, value] of [
      ["if-match", "2"],
      ["if-match", 'W/"2"'],
      ["if-match", '"x"'],
      ["if-none-match", '"2"'],
    ] as const) {
      const found = problem(await on("east", "PUT", where, data, { [name]: value }), "invalid_request");
      assert.match(String(at(found["errors"] as Json[], 0)["path"]), new RegExp(`^header/${name}$`, "i"));
    }
    assert.equal(body(await on("east", "GET", where), 200)["version"], 2);
    const gone = await on("central", "DELETE", where, undefined, { "if-match": '"2"' });
    assert.equal(gone.status, 204);
  });

  it("deletes with a tombstone that no datacenter shows, and lets the id be taken again", async () => {
    const id = at(idsOf(map, "central", "gone", 1), 0);
    const where = `/v1/clusters/${id}`;
    const put = await on("east", "PUT", where, { name: "g", spec: {}, labels: { gone: "yes" } });
    body(put, 201);
    const deleted = await on("west", "DELETE", where);
    assert.equal(deleted.status, 204);
    assert.equal(deleted.text, "");
    assert.equal(placeOf(deleted).position, placeOf(put).position + 1);
    assert.equal(deleted.headers.get("hothot-owner"), "central");
    assert.equal(deleted.headers.get("hothot-served-by"), "central/n1");
    for (const dc of stack.dcs) {
      const found = problem(await on(dc, "GET", where, undefined, after(deleted)), "not_found");
      assert.equal(found["owner"], "central");
      problem(await on(dc, "GET", where, undefined, { "hothot-consistency": "owner" }), "not_found");
      problem(await on(dc, "DELETE", where), "not_found");
      const { items } = body<{ items: Json[] }>(await on(dc, "GET", "/v1/clusters?label=gone:yes"), 200);
      assert.deepEqual(items, []);
    }
    const again = body(await on("west", "POST", "/v1/clusters", { id, name: "again", spec: {} }), 201);
    assert.equal(again["version"], 1);
    assert.equal(again["status"], "active");
  });

  it("lists in id order, page by page, filtered by label, shard, owner and status", async () => {
    const ids = ["b", "B", "a.1", "a-1", "a:1", "a_1", "A", "0", "Z", "zz"].map((id) => `list-${id}`);
    const many = Array.from({ length: 115 }, (_, number) => `list-n${String(number).padStart(3, "0")}`);
    const all = [...ids, ...many];
    const answers = await Promise.all(
      all.map((id, number) =>
        on(stack.dcs[number % 3] ?? "", "PUT", `/v1/clusters/${id}`, {
          name: id,
          spec: {},
          labels: { set: "list", "a:b": "c", parity: number % 2 === 0 ? "even" : "odd" },
        }),
      ),
    );
    for (const answer of answers) assert.equal(answer.status, 201, answer.text);
    for (const dc of stack.dcs)
      await Promise.all(
        answers.map(async (answer) => {
          const { id } = JSON.parse(answer.text) as { id: string };
          body(await on(dc, "GET", `/v1/clusters/${id}`, undefined, after(answer)), 200);
        }),
      );
    const wanted = [...all].sort((a, b) => (a < b ? -1 : 1));

    const read = async (query: string, limit: number, dcs = stack.dcs): Promise<Json[]> => {
      const items: Json[] = [];
      let cursor: string | null = "";
      for (let page = 0; cursor !== null; page++) {
        assert.ok(page < 300, "the pages come to an end");
        const more: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
        // Another datacenter for each page: a cursor holds everywhere.
        const answer = await on(at(dcs, page % dcs.length), "GET", `/v1/clusters?${query}&limit=${limit}${more}`);
        const list: { items: Json[]; nextCursor: string | null } = body(answer, 200);
        assert.deepEqual(Object.keys(list).sort(), ["items", "nextCursor"]);
        assert.ok(list.items.length <= limit);
        if (list.nextCursor !== null) assert.equal(list.items.length, limit);
        assert.match(answer.headers.get("hothot-lag-ms") ?? "none", /^\d+$/);
        items.push(...list.items);
        cursor = list.nextCursor;
      }
      return items;
    };
    const idsOfAll = (items: Json[]): unknown[] => items.map((item) => item["id"]);

    assert.deepEqual(idsOfAll(await read("label=set:list", 1000)), wanted);
    assert.deepEqual(idsOfAll(await read("label=set:list", 7)), wanted);
    assert.deepEqual(idsOfAll(await read("label=set:list", 25, ["central"])), wanted);
    const first = body<{ items: Json[]; nextCursor: string | null }>(
      await on("east", "GET", "/v1/clusters?label=set:list"),
      200,
    );
    assert.equal(first.items.length, 100, "100 by default");
    assert.ok(first.nextCursor !== null);
    for (const item of first.items) assert.deepEqual(Object.keys(item).sort(), [...fields].sort());

    assert.deepEqual(
      idsOfAll(await read("label=parity:even", 50)),
      idsOfAll(await read("label=set:list", 200)).filter((id) => all.indexOf(String(id)) % 2 === 0),
    );
    const shard = shardOf(at(many, 0), shards);
    assert.deepEqual(
      idsOfAll(await read(`label=set:list&shard=${shard}`, 100)),
      wanted.filter((id) => shardOf(id, shards) === shard),
    );
    for (const owner of stack.dcs) {
      const owned = await read(`label=set:list&owner=${owner}`, 20);
      assert.deepEqual(
        idsOfAll(owned),
        wanted.filter((id) => ownerOf(id) === owner),
      );
      assert.ok(owned.every((item) => item["owner"] === owner));
    }
    assert.deepEqual(idsOfAll(await read("label=set:list&status=active", 100)), wanted);
    assert.deepEqual(await read("label=set:list&status=pending", 100), []);
    assert.deepEqual(await read("label=set:nothing", 100), []);
  });

  it("gives each cluster once, in order, to whoever pages while others are written and removed", async () => {
    const number = (n: number): string => `paged-${String(n).padStart(3, "0")}`;
    const put = (id: string, name = "n"): Promise<Answered> =>
      on(at(stack.dcs, id.length % 3), "PUT", `/v1/clusters/${id}`, { name, spec: {}, labels: { paged: "yes" } });
    const staying = Array.from({ length: 60 }, (_, n) => number(2 * n));
    const answers = await Promise.all(staying.map((id) => put(id)));
    await Promise.all(answers.map((answer) => on("west", "GET", "/v1/clusters?limit=1", undefined, after(answer))));
    let going = true;
    const passing = Array.from({ length: 4 }, async (_, writer) => {
      for (let round = 0; going; round++) {
        const between = number(2 * ((round * 4 + writer * 17) % 60) + 1);
        await put(between);
        await put(at(staying, (round * 7 + writer) % 60), `round-${round}`);
        await on("east", "DELETE", `/v1/clusters/${between}`);
      }
    });
    try {
      for (let times = 0; times < 3; times++) {
        const seen: string[] = [];
        for (let cursor: string | null = ""; cursor !== null;) {
          const more: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
          const page: { items: Json[]; nextCursor: string | null } = body(
            await on("west", "GET", `/v1/clusters?label=paged:yes&limit=7${more}`),
            200,
          );
          seen.push(...page.items.map((item) => String(item["id"])));
          cursor = page.nextCursor;
        }
        assert.deepEqual(seen, [...new Set(seen)].sort(), "once each, in order");
        assert.deepEqual(
          seen.filter((id) => staying.includes(id)),
          staying,
        );
      }
    } finally {
      going = false;
      await Promise.all(passing);
    }
  });

  it("keeps the status rules of a plain put", async () => {
    const id = at(idsOf(map, "east", "status", 1), 0);
    assert.equal(body(await on("east", "PUT", `/v1/clusters/${id}`, { name: "s", spec: {} }), 201)["status"], "active");
    assert.equal(body(await on("east", "PUT", `/v1/clusters/${id}`, { name: "t", spec: {} }), 200)["status"], "active");
  });

  it("shows a forwarded write and its copies as one trace, over all datacenters", async () => {
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
    const id = at(idsOf(map, "west", "traced", 1), 0);
    const answer = await on(
      "east",
      "PUT",
      `/v1/clusters/${id}`,
      { name: "n", spec: {} },
      { traceparent: `00-${traceId}-00f067aa0ba902b7-01`, "x-request-id": "traced-request" },
    );
    body(answer, 201);
    // Who did what, below what.
    const wanted = {
      "PUT /v1/clusters/{id} by east/n1": "the caller",
      "forward by east/n1": "PUT /v1/clusters/{id} by east/n1",
      "serve by west/n1": "forward by east/n1",
      "owner transaction by west/n1": "serve by west/n1",
      "publish by west/n1": "serve by west/n1",
      "apply by central/n1": "serve by west/n1",
      "apply by east/n1": "serve by west/n1",
    };
    await stack.until(
      () => {
        const spans = collector.spans.filter((span) => span.traceId === traceId);
        const named = new Map(spans.map((span) => [span.spanId, `${span.name} by ${span.from}`]));
        const above = (span: { parentSpanId: string | undefined }): string =>
          span.parentSpanId === "00f067aa0ba902b7" ? "the caller" : (named.get(span.parentSpanId ?? "") ?? "nothing");
        assert.deepEqual(Object.fromEntries(spans.map((span) => [named.get(span.spanId), above(span)])), wanted);
        assert.equal(spans.length, Object.keys(wanted).length);
        return true;
      },
      15_000,
      "the whole trace is there",
    );
    const spans = collector.spans.filter((span) => span.traceId === traceId);
    const attributes = Object.assign({}, ...spans.map((span) => span.attributes)) as Json;
    const { shard, epoch, position } = placeOf(answer);
    assert.deepEqual(
      ["shard", "epoch", "position", "request_id"].map((name) => attributes[`hothot.${name}`]),
      [shard, epoch, position, "traced-request"],
    );
    assert.equal(attributes["http.response.status_code"], 201);
  });

  describe("problems", () => {
    const known = "known-1";
    before(async () => {
      body(await on("east", "PUT", `/v1/clusters/${known}`, { name: "k", spec: {} }), 201);
    });

    it("are told with the path of each fault", async () => {
      const put = `/v1/clusters/${known}`;
      const good = { name: "n", spec: {} };
      const cases: readonly [string, string, string, unknown, Record<string, string>, readonly string[]][] = [
        ["no object", "PUT", put, "[]", {}, [""]],
        ["malformed JSON", "PUT", put, '{"name": "a", ', {}, [""]],
        ["nothing", "PUT", put, undefined, {}, [""]],
        ["missing fields", "PUT", put, {}, {}, ["/name", "/spec"]],
        [
          "wrong types",
          "PUT",
          put,
          { name: 1, spec: [], labels: { a: 1 }, state: 3, expiresAt: "soon" },
          {},
          ["/name", "/spec", "/labels/a", "/state", "/expiresAt"],
        ],
        ["unknown field", "PUT", put, { ...good, colour: "red" }, {}, ["/colour"]],
        ["id in a put", "PUT", put, { ...good, id: known }, {}, ["/id"]],
        ["status in a put", "PUT", put, { ...good, status: "active" }, {}, ["/status"]],
        ["wrong id", "POST", "/v1/clusters", { ...good, id: "a/b" }, {}, ["/id"]],
        ["empty id", "POST", "/v1/clusters", { ...good, id: "" }, {}, ["/id"]],
        ["long id", "POST", "/v1/clusters", { ...good, id: "x".repeat(129) }, {}, ["/id"]],
        ["wrong id in the path", "PUT", "/v1/clusters/a%20b", good, {}, ["path/id"]],
        ["long id in the path", "GET", `/v1/clusters/${"x".repeat(129)}`, undefined, {}, ["path/id"]],
        ["a NUL", "PUT", put, '{"name":"a\\u0000","spec":{}}', {}, ["/name"]],
        ["limit 0", "GET", "/v1/clusters?limit=0", undefined, {}, ["query/limit"]],
        ["limit 1001", "GET", "/v1/clusters?limit=1001", undefined, {}, ["query/limit"]],
        ["no status", "GET", "/v1/clusters?status=happy", undefined, {}, ["query/status"]],
        ["no label", "GET", "/v1/clusters?label=x", undefined, {}, ["query/label"]],
        ["unknown parameter", "GET", "/v1/clusters?colour=red", undefined, {}, ["query/colour"]],
        ["durability", "PUT", put, good, { "hothot-durability": "maybe" }, ["header/Hothot-Durability"]],
        ["consistency", "GET", put, undefined, { "hothot-consistency": "weak" }, ["header/Hothot-Consistency"]],
        ["time-out", "GET", put, undefined, { "hothot-timeout-ms": "soon" }, ["header/Hothot-Timeout-Ms"]],
        ["position", "GET", put, undefined, { "hothot-min-position": "1:2" }, ["header/Hothot-Min-Position"]],
        [
          "position of no shard",
          "GET",
          put,
          undefined,
          { "hothot-min-position": "64:1:1" },
          ["header/Hothot-Min-Position"],
        ],
        ["key", "PUT", put, good, { "idempotency-key": "a b" }, ["header/Idempotency-Key"]],
        [
          "two faults in two places",
          "PUT",
          put,
          { ...good, a: 1 },
          { "idempotency-key": "a b" },
          ["header/Idempotency-Key", "/a"],
        ],
      ];
      for (const [what, method, where, data, headers, paths] of cases) {
        const answer = await on("central", method, where, data, { "content-type": "application/json", ...headers });
        const found = problem(answer, "invalid_request");
        const told = (found["errors"] as Json[]).map((error) => String(error["path"]).toLowerCase());
        assert.deepEqual(told.sort(), paths.map((path) => path.toLowerCase()).sort(), `${what}: ${answer.text}`);
      }
      assert.equal(
        body(await on("central", "GET", put, undefined, { "hothot-consistency": "owner" }), 200)["version"],
        1,
      );
    });

    it("have the status and code of the contract", async () => {
      const put = `/v1/clusters/${known}`;
      const good = { name: "n", spec: {} };
      const table: readonly [ProblemCode, string, string, unknown?, Record<string, string>?][] = [
        ["not_found", "GET", "/v1/nothing"],
        ["not_found", "GET", "/v1/clusters/unknown-1"],
        ["not_found", "DELETE", "/v1/clusters/unknown-1"],
        ["not_found", "GET", "/v1/jobs/j1-0123456789abcdef"],
        ["not_found", "GET", "/v1/jobs/unknown"],
        ["not_found", "POST", "/v1/jobs/j1-0123456789abcdef/cancel"],
        ["not_found", "GET", "/v1/jobs/j999-0123456789abcdef/tasks"],
        ["not_found", "POST", "/v1/clusters/unknown-1/operations", { type: "create" }],
        ["not_found", "POST", "/v1/workers/unknown-1/heartbeat", {}],
        ["not_found", "POST", "/v1/tasks/take", { workerId: "unknown-1" }],
        ["not_found", "GET", "/v1/divergent-operations/unknown-1"],
        ["invalid_request", "POST", `${put}/operations`, { type: "dance" }],
        ["method_not_allowed", "POST", put, good],
        ["method_not_allowed", "DELETE", "/v1/clusters"],
        ["already_exists", "POST", "/v1/clusters", { id: known, ...good }],
        [
          "stale_token",
          "POST",
          "/v1/tasks/j1-0123456789abcdef.1.1/finish",
          { token: "1.1.1", workerId: "w", status: "ok" },
        ],
        ["stale_token", "POST", "/v1/tasks/j1-0123456789abcdef.1.1/heartbeat", { token: "1.1.1", workerId: "w" }],
        ["version_mismatch", "PUT", put, good, { "if-match": '"9"' }],
        ["payload_too_large", "PUT", put, { name: "big", spec: { text: "x".repeat(600_000) } }],
        ["unsupported_media_type", "PUT", put, "name=a", { "content-type": "application/x-www-form-urlencoded" }],
        ["unsupported_media_type", "PUT", put, JSON.stringify(good), { "content-type": "text/plain" }],
      ];
      for (const dc of stack.dcs)
        for (const [code, method, where, data, headers] of table) {
          const answer = await on(dc, method, where, data, headers);
          assert.equal(answer.status, problems[code].status, `${method} ${where}: ${answer.text}`);
          problem(answer, code);
          if (code === "method_not_allowed") assert.match(answer.headers.get("allow") ?? "", /GET/);
        }
    });

    it("name the owner where it is known", async () => {
      const put = `/v1/clusters/${known}`;
      const data = { name: "n", spec: {} };
      const owner = ownerOf(known);
      for (const dc of stack.dcs) {
        const answers = [
          problem(await on(dc, "POST", "/v1/clusters", { id: known, ...data }), "already_exists"),
          problem(await on(dc, "PUT", put, data, { "if-match": '"9"' }), "version_mismatch"),
          problem(await on(dc, "GET", "/v1/clusters/unknown-2"), "not_found"),
        ];
        assert.deepEqual(
          answers.map((found) => found["owner"]),
          [owner, owner, ownerOf("unknown-2")],
        );
      }
    });

    it("carry the caller's request id, and one of the service's when it gave none", async () => {
      const mine = await on("east", "GET", "/v1/clusters/unknown-3", undefined, { "x-request-id": "mine-1" });
      assert.equal(problem(mine, "not_found")["requestId"], "mine-1");
      const first = problem(await on("east", "GET", "/v1/clusters/unknown-3"), "not_found")["requestId"];
      const second = problem(await on("east", "GET", "/v1/clusters/unknown-3"), "not_found")["requestId"];
      assert.notEqual(first, second);
    });

    it("come at the deadline when a position does not", async () => {
      const shard = at(map, 5);
      const { ms, value } = await timed(() =>
        on("west", "GET", `/v1/clusters/${known}`, undefined, {
          "hothot-min-position": `5:${shard.epoch}:1000000`,
          "hothot-timeout-ms": "400",
        }),
      );
      problem(value, "deadline_exceeded");
      assert.ok(ms >= 395 && ms < 5_000, `${ms} ms`);
    });

    it("never end the process", async () => {
      for (const dc of stack.dcs) {
        assert.equal((await on(dc, "GET", "/livez")).status, 200);
        assert.equal((await on(dc, "GET", "/readyz")).status, 200);
        assert.equal(stack.pids(dc).node.length, 1);
        assert.doesNotMatch(stack.logs(dc), /"level":"error"/);
      }
    });
  });
});
