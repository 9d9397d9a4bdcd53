import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Problem } from "../../infra/errors.js";
import { assertProblem, startHttp, type HttpTest } from "./http-support.js";

describe("HTTP routes", () => {
  let t: HttpTest;
  before(async () => {
    t = await startHttp();
  });
  after(() => t.stop());
  const fields = { name: "web", spec: { nodes: ["a", "b"] } };

  it("creates, replaces, reads, lists and deletes clusters with the contract's headers", async () => {
    const made = await t.ask("POST", "/v1/clusters", { body: fields });
    assert.equal(made.status, 201);
    assert.equal(made.headers["location"], "/v1/clusters/made-1");
    assert.equal(made.headers["etag"], '"1"');
    assert.equal(made.headers["hothot-owner"], "east");
    assert.equal(made.headers["hothot-served-by"], "east/n1");
    assert.match(String(made.headers["hothot-position"]), /^7:2:\d+$/);
    assert.equal(
      (await t.ask("PUT", "/v1/clusters/c1", { body: { ...fields, labels: { a: "b" }, expiresAt: null } })).status,
      201,
    );
    const again = await t.ask("PUT", "/v1/clusters/c1", { body: fields, headers: { "if-match": '"1"' } });
    assert.equal(again.status, 200);
    assert.equal(again.headers["etag"], '"2"');
    const read = await t.ask("GET", "/v1/clusters/c1");
    assert.equal(read.json["version"], 2);
    assert.equal(read.headers["hothot-lag-ms"], "12");
    assert.equal(read.headers["hothot-stale"], "true");
    const list = await t.ask("GET", "/v1/clusters?status=active&owner=east&shard=3&label=k:v:w&limit=7&cursor=abc");
    assert.equal((list.json["items"] as unknown[]).length, 2);
    assert.deepEqual(t.datacenter.last?.what, {
      limit: 7,
      cursor: "abc",
      status: "active",
      owner: "east",
      shard: 3,
      label: { name: "k", value: "v:w" },
    });
    await t.ask("GET", "/v1/clusters");
    assert.deepEqual(t.datacenter.last?.what, { limit: 100 });
    const gone = await t.ask("DELETE", "/v1/clusters/c1");
    assert.equal(gone.status, 204);
    assert.equal(gone.text, "");
    const missing = await t.ask("GET", "/v1/clusters/c1");
    assertProblem(missing, 404, "not_found");
    assert.equal(missing.json["owner"], "west");
    assert.equal(missing.headers["hothot-owner"], "west");
  });

  it("names who answered in every answer", async () => {
    const headers = { "content-type": "application/x-ndjson" };
    for (const [method, path, status] of [
      ["GET", "/v1/clusters/none", 404],
      ["PUT", "/v1/clusters/a%20b", 400],
      ["GET", "/nowhere", 404],
      ["DELETE", "/v1/topology", 405],
      ["GET", "/v1/verify", 200],
      ["POST", "/v1/clusters/bulk", 404],
      ["GET", "/metrics", 200],
      ["GET", "/livez", 200],
      ["GET", "/", 200],
    ] as const) {
      const got =
        path === "/"
          ? await fetch(t.url)
          : await t.ask(method, path, path.endsWith("bulk") ? { raw: "{}", headers } : {});
      assert.equal(got.status, status, path);
      const served =
        got.headers instanceof Headers ? got.headers.get("hothot-served-by") : got.headers["hothot-served-by"];
      assert.equal(served, "east/n1", path);
    }
  });

  it("answers what an answer says of itself in the moment in which it is sent", async () => {
    t.datacenter.confirm = () => {
      throw new Problem("outcome_unknown", "the lease ran out before the answer was sent");
    };
    const late = await t.ask("PUT", "/v1/clusters/late", { body: fields });
    t.datacenter.confirm = undefined;
    assertProblem(late, 504, "outcome_unknown");
    assert.equal(late.headers["hothot-position"], undefined);
  });

  it("passes conditions on, and refuses what is none", async () => {
    await t.ask("PUT", "/v1/clusters/c2", { body: fields });
    assertProblem(
      await t.ask("PUT", "/v1/clusters/c2", { body: fields, headers: { "if-none-match": "*" } }),
      412,
      "version_mismatch",
    );
    assertProblem(
      await t.ask("PUT", "/v1/clusters/c2", { body: fields, headers: { "if-match": '"9"' } }),
      412,
      "version_mismatch",
    );
    for (const headers of [
      { "if-match": "1" },
      { "if-match": '"x"' },
      { "if-none-match": '"1"' },
      { "if-match": '"1"', "if-none-match": "*" },
    ])
      assertProblem(await t.ask("PUT", "/v1/clusters/c2", { body: fields, headers }), 400, "invalid_request");
  });

  it("carries the request's headers into the context", async () => {
    const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;
    const headers = {
      "Idempotency-Key": "k1!",
      "Hothot-Durability": "replicated",
      "Hothot-Consistency": "owner",
      "Hothot-Min-Position": "3:2:900",
      "Hothot-Timeout-Ms": "1234",
      "X-Request-Id": "mine-1",
      traceparent,
      tracestate: "vendor=1, b@c=x y ,",
    };
    const start = performance.now();
    const got = await t.ask("PUT", "/v1/clusters/c3", { body: fields, headers });
    const context = t.datacenter.last?.context;
    assert.equal(got.headers["x-request-id"], "mine-1");
    assert.equal(context?.requestId, "mine-1");
    assert.equal(context?.durability, "replicated");
    assert.equal(context?.consistency, "owner");
    assert.deepEqual(context?.minPosition, { shard: 3, epoch: 2, position: 900 });
    assert.equal(context?.idempotencyKey, "k1!");
    assert.equal(context?.traceparent, `${traceparent} vendor=1,b@c=x y`);
    for (const tracestate of ["no member", "a=1,B=2", `a=${"x".repeat(600)}`, "a=\u00e9"]) {
      await t.ask("PUT", "/v1/clusters/c3", { body: fields, headers: { traceparent, tracestate } });
      assert.equal(t.datacenter.last?.context.traceparent, traceparent, tracestate);
    }
    assert.deepEqual(context?.caller, { tenant: "", principal: "anonymous" });
    assert.ok(context !== undefined && context.deadline - start >= 1234 && context.deadline - start < 2500);
    const replay = await t.ask("PUT", "/v1/clusters/c3", { body: fields, headers });
    assert.equal(replay.status, 201);
    assert.equal(replay.headers["idempotency-replayed"], "true");
    const plain = await t.ask("PUT", "/v1/clusters/c3", {
      body: fields,
      headers: { "X-Request-Id": "not sane\t", traceparent: "x" },
    });
    assert.notEqual(plain.headers["x-request-id"], "not sane");
    assert.equal(t.datacenter.last?.context.durability, "local");
    assert.equal(t.datacenter.last?.context.traceparent, undefined);
  });

  it("starts operations and changes jobs", async () => {
    const started = await t.ask("POST", "/v1/clusters/c9/operations", {
      body: { type: "create", input: { a: 1 }, notBefore: "2030-01-01T01:00:00+01:00" },
    });
    assert.equal(started.status, 202);
    assert.equal(started.headers["location"], "/v1/jobs/j7-abc");
    assert.deepEqual(t.datacenter.last?.what, {
      type: "job.start",
      clusterId: "c9",
      operation: "create",
      input: { a: 1 },
      notBefore: "2030-01-01T00:00:00.000Z",
    });
    assert.equal((await t.ask("GET", "/v1/jobs/j7-abc")).json["status"], "running");
    assertProblem(await t.ask("GET", "/v1/jobs/nope"), 404, "not_found");
    assert.equal((await t.ask("GET", "/v1/jobs?cluster=c9&status=running")).json["nextCursor"], "more");
    assert.equal((await t.ask("GET", "/v1/jobs/j7-abc/tasks")).status, 200);
    for (const verb of ["cancel", "retry", "pause", "resume"]) {
      const status = verb === "retry" ? 202 : 200;
      assert.equal((await t.ask("POST", `/v1/jobs/j7-abc/${verb}`)).status, status);
      assert.deepEqual(t.datacenter.last?.what, { type: `job.${verb}`, jobId: "j7-abc" });
      assert.equal((await t.ask("POST", `/v1/jobs/j7-abc/${verb}`, { body: {} })).status, status);
    }
  });

  it("serves workers and their tasks", async () => {
    assert.equal((await t.ask("PUT", "/v1/workers/w1", { body: { capacity: 5, labels: { zone: "a" } } })).status, 200);
    assert.deepEqual(t.datacenter.last?.what, {
      type: "worker.put",
      workerId: "w1",
      capacity: 5,
      labels: { zone: "a" },
    });
    assert.equal((await t.ask("PUT", "/v1/workers/w1", { body: {} })).status, 200);
    assert.equal((await t.ask("POST", "/v1/workers/w1/heartbeat", { body: {} })).status, 200);
    const taken = await t.ask("POST", "/v1/tasks/take", {
      body: { workerId: "w1", max: 3, names: ["CREATE"], labels: { a: "b" } },
    });
    assert.equal((taken.json["tasks"] as unknown[]).length, 1);
    assert.deepEqual(t.datacenter.last?.what, {
      workerId: "w1",
      waitMs: 0,
      max: 3,
      names: ["CREATE"],
      labels: { a: "b" },
    });
    assertProblem(await t.ask("POST", "/v1/tasks/take", { body: { workerId: "stranger" } }), 404, "not_found");
    const by = { token: "good", workerId: "w1" };
    assert.deepEqual((await t.ask("POST", "/v1/tasks/j7-abc.1.1/heartbeat", { body: by })).json, {
      leaseMs: 30000,
      stop: false,
    });
    const finish = { ...by, status: "ok", result: { ip: "10.0.0.1" }, stdout: "done", stderr: "" };
    assert.equal((await t.ask("POST", "/v1/tasks/j7-abc.1.1/finish", { body: finish })).status, 200);
    assert.deepEqual(t.datacenter.last?.what, { type: "task.finish", taskId: "j7-abc.1.1", ...finish });
    assertProblem(
      await t.ask("POST", "/v1/tasks/j7-abc.1.1/finish", { body: { ...finish, token: "old" } }),
      409,
      "stale_token",
    );
  });

  it("shows topology, shards in pages, history, lag and divergent operations", async () => {
    assert.equal((await t.ask("GET", "/v1/topology")).json["shards"], 150);
    const first = await t.ask("GET", "/v1/shards");
    assert.equal((first.json["items"] as unknown[]).length, 100);
    const rest = await t.ask("GET", `/v1/shards?cursor=${String(first.json["nextCursor"])}`);
    assert.equal((rest.json["items"] as unknown[]).length, 50);
    assert.equal(rest.json["nextCursor"], null);
    assertProblem(await t.ask("GET", "/v1/shards?cursor=zzz"), 400, "invalid_request");
    assert.equal(((await t.ask("GET", "/v1/shards?limit=1000")).json["items"] as unknown[]).length, 150);
    await t.ask("GET", "/v1/history?limit=5&cursor=x");
    assert.deepEqual(t.datacenter.last?.what, { limit: 5, cursor: "x" });
    assert.equal((await t.ask("GET", "/v1/lag")).status, 200);
    await t.ask("GET", "/v1/divergent-operations?status=open");
    assert.deepEqual(t.datacenter.last?.what, { limit: 100, status: "open" });
    assert.equal((await t.ask("GET", "/v1/divergent-operations/d1")).json["id"], "d1");
    assertProblem(await t.ask("GET", "/v1/divergent-operations/d2"), 404, "not_found");
  });

  it("answers probes, metrics, the document and the page", async () => {
    assert.equal((await t.ask("GET", "/livez")).status, 200);
    assert.deepEqual((await t.ask("GET", "/readyz")).json, { ready: true, reason: null, lagMs: 3 });
    assert.equal((await t.ask("GET", "/readyz?lagMs=3")).status, 200);
    const behind = await t.ask("GET", "/readyz?lagMs=2");
    assert.equal(behind.status, 503);
    assert.match(String(behind.json["reason"]), /lag/);
    assertProblem(await t.ask("GET", "/readyz?lagMs=x"), 400, "invalid_request");
    t.datacenter.ready = { ready: false, reason: "no lease", lagMs: 0 };
    assert.equal((await t.ask("GET", "/readyz")).json["reason"], "no lease");
    t.datacenter.ready = { ready: true, reason: null, lagMs: 3 };
    assert.match((await t.ask("GET", "/metrics")).text, /hothot_owned_shards 3/);
    assert.equal((await t.ask("HEAD", "/livez")).status, 200);
    const page = await t.ask("GET", "/");
    assert.match(page.headers["content-type"] ?? "", /^text\/html/);
    assert.match(String(page.headers["content-security-policy"]), /default-src 'none'.*script-src 'sha256-/);
  });

  it("answers not_found for what this version has not, after checking the request", async () => {
    const absent: [string, string, unknown?][] = [
      ["POST", "/v1/switchovers", { shard: 3, to: "west" }],
      ["POST", "/v1/drains", { dc: "east", dryRun: true }],
      ["POST", "/v1/failbacks", { dc: "east" }],
      ["POST", "/v1/rebalances"],
      ["POST", "/v1/takeovers", { dc: "east", force: true }],
      ["GET", "/v1/drains/x"],
      ["POST", "/v1/drains/x/cancel"],
      ["PUT", "/v1/failover", { paused: true }],
      ["POST", "/v1/repair", { clusterId: "c1" }],
      ["POST", "/v1/divergent-operations/d1/replay"],
      ["POST", "/v1/divergent-operations/d1/discard", {}],
      ["GET", "/v1/audit"],
    ];
    for (const [method, path, body] of absent) {
      const got = await t.ask(method, path, { body });
      assertProblem(got, 404, "not_found");
      assert.equal(got.json["detail"], "not available in this version", path);
    }
    for (const body of [{ to: "west" }, { dc: "a", shard: 1, to: "b" }, { shard: -1, to: "b" }, { dc: "a" }])
      assertProblem(await t.ask("POST", "/v1/switchovers", { body }), 400, "invalid_request");
    assertProblem(await t.ask("POST", "/v1/repair", { body: {} }), 400, "invalid_request");
  });

  it("logs each request with its id, a fault of ours as an error without telling it", async () => {
    t.datacenter.before = () => {
      throw new Error("password=hunter2");
    };
    const got = await t.ask("PUT", "/v1/clusters/c4", { body: fields, headers: { "x-request-id": "find-me" } });
    t.datacenter.before = () => {};
    assertProblem(got, 500, "internal");
    assert.doesNotMatch(got.text, /hunter2/);
    const line = t.lines.find((one) => one.fields["requestId"] === "find-me");
    assert.equal(line?.level, "error");
    assert.equal((line?.fields["error"] as Error).message, "password=hunter2");
  });
});

describe("HTTP extensions", () => {
  it("are called with what was asked, once they are given", async () => {
    const calls: unknown[] = [];
    const operation = {
      id: "m1",
      kind: "drain",
      status: "running",
      progress: { done: 0, total: 2 },
      shards: [],
      error: null,
      by: "ops",
      startedAt: "2030-01-01T00:00:00Z",
      finishedAt: null,
    };
    const t = await startHttp({
      extensions: {
        async startMove(_context, kind, request) {
          calls.push([kind, request]);
          return request.dryRun
            ? { status: 200, body: { shards: [] }, servedBy: "e/1" }
            : { status: 202, body: operation, servedBy: "e/1" };
        },
        async getMove(_context, kind, id) {
          calls.push([kind, id]);
          return { status: 200, body: operation, servedBy: "e/1" };
        },
        async setFailover(_context, paused) {
          return { status: 200, body: { paused }, servedBy: "e/1" };
        },
      },
    });
    try {
      assert.equal((await t.ask("POST", "/v1/drains", { body: { dc: "east" } })).headers["location"], "/v1/drains/m1");
      assert.equal((await t.ask("POST", "/v1/rebalances", { body: { dryRun: true } })).status, 200);
      assert.equal((await t.ask("GET", "/v1/drains/m1")).json["id"], "m1");
      assert.deepEqual((await t.ask("PUT", "/v1/failover", { body: { paused: true } })).json, { paused: true });
      assert.deepEqual(calls, [
        ["drains", { dc: "east", dryRun: false }],
        ["rebalances", { dryRun: true }],
        ["drains", "m1"],
      ]);
    } finally {
      await t.stop();
    }
  });
});
