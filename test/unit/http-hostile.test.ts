import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { after, before, describe, it } from "node:test";
import { Problem } from "../../infra/errors.js";
import { assertProblem, faultPaths, rawBytes, startHttp, until, type HttpTest } from "./http-support.js";

describe("HTTP against hostile requests", () => {
  let t: HttpTest;
  before(async () => {
    t = await startHttp();
  });
  after(() => t.stop());
  const put = (raw: string | Buffer, headers: Record<string, string> = {}) =>
    t.ask("PUT", "/v1/clusters/c1", { raw, headers });

  it("names every fault at once", async () => {
    const got = await t.ask("PUT", "/v1/clusters/bad%20id", {
      body: { name: 3, labels: { a: 1, "x/y~z": 2 }, extra: 1, expiresAt: "yesterday" },
      headers: {
        "if-match": "7",
        "hothot-timeout-ms": "0",
        "hothot-durability": "maybe",
        "hothot-min-position": "1:2",
        "idempotency-key": "a b",
      },
    });
    assertProblem(got, 400, "invalid_request");
    assert.deepEqual(faultPaths(got), [
      "/expiresAt",
      "/extra",
      "/labels/a",
      "/labels/x~1y~0z",
      "/name",
      "/spec",
      "header/Hothot-Durability",
      "header/Hothot-Min-Position",
      "header/Hothot-Timeout-Ms",
      "header/Idempotency-Key",
      "header/If-Match",
      "path/id",
    ]);
    const errors = got.json["errors"] as { path: string; message: string }[];
    assert.equal(errors.find((fault) => fault.path === "/spec")?.message, "is missing; it must be an object");
  });

  it("refuses wrong queries", async () => {
    const got = await t.ask("GET", "/v1/clusters?limit=0&status=odd&shard=-1&label=x&nope=1&cursor=");
    assertProblem(got, 400, "invalid_request");
    assert.deepEqual(faultPaths(got), [
      "query/cursor",
      "query/label",
      "query/limit",
      "query/nope",
      "query/shard",
      "query/status",
    ]);
    assert.deepEqual(faultPaths(await t.ask("GET", "/v1/clusters?limit=1&limit=2")), ["query/limit"]);
    for (const limit of ["1001", "1e2", "%20", "0x10", "5.5"])
      assertProblem(await t.ask("GET", `/v1/jobs?limit=${limit}`), 400, "invalid_request");
    assertProblem(await t.ask("GET", "/v1/clusters?label=a:%00"), 400, "invalid_request");
    assertProblem(await t.ask("GET", "/v1/history?__proto__=1"), 400, "invalid_request");
  });

  it("refuses bodies that are no JSON object, and what the store can't keep", async () => {
    const deep = `{"name":"x","spec":{"a":${"[".repeat(40)}${"]".repeat(40)}}}`;
    const bodies: [string | Buffer, string[]][] = [
      ["{", [""]],
      ["[]", [""]],
      ["null", [""]],
      ['"text"', [""]],
      ["", [""]],
      ["{'name':1}", [""]],
      [Buffer.from([0x22, 0xff, 0xfe, 0x22]), [""]],
      ['{"name":"a\\u0000b","spec":{}}', ["/name"]],
      ['{"name":"a","spec":{"nodes":["ok\\ud800"]}}', ["/spec/nodes/0"]],
      ['{"name":"a","spec":{"k\\u0000":1}}', ["/spec"]],
      ['{"name":"a","spec":{"n":1e999}}', ["/spec/n"]],
      ['{"name":"a","spec":{"__proto__":{"polluted":true}}}', ["/spec/__proto__"]],
      ['{"__proto__":{"name":"a","spec":{}}}', ["/__proto__"]],
      ['{"name":"a","spec":{},"constructor":1}', ["/constructor"]],
    ];
    for (const [raw, paths] of bodies) {
      const got = await put(raw);
      assertProblem(got, 400, "invalid_request");
      assert.deepEqual(faultPaths(got), paths, String(raw));
    }
    assert.match(faultPaths(await put(deep))[0] ?? "", /^\/spec\/a\/0\/0/);
    assert.equal(({} as Record<string, unknown>)["polluted"], undefined);
    assert.equal(
      (await put('{"name":"\\ud83d\\ude00","spec":{"a":{"constructor":{"x":1}},"n":-0.5e-300}}')).status,
      201,
    );
    assertProblem(await put("[".repeat(9_000)), 400, "invalid_request");
    assertProblem(await put("[".repeat(4_000) + "]".repeat(4_000)), 400, "invalid_request");
  });

  it("says that a database is away, not that the request is at fault", async () => {
    const fails = (code: string) => () => Promise.reject(Object.assign(new Error("secret"), { code }));
    const { datacenter } = t;
    const [getCluster, listClusters] = [
      datacenter.getCluster.bind(datacenter),
      datacenter.listClusters.bind(datacenter),
    ];
    try {
      datacenter.getCluster = fails("ECONNREFUSED");
      datacenter.listClusters = fails("57P01");
      for (const path of ["/v1/clusters/c1", "/v1/clusters"]) {
        const got = await t.ask("GET", path);
        assertProblem(got, 503, "no_lease");
        assert.equal(got.json["retryable"], true);
        assert.ok(Number(got.headers["retry-after"]) >= 1);
        assert.doesNotMatch(got.text, /secret/);
      }
      // The database is there: it was this list that took too long.
      datacenter.listClusters = fails("57014");
      assertProblem(await t.ask("GET", "/v1/clusters?label=a:b"), 504, "deadline_exceeded");
      datacenter.getCluster = fails("42703");
      assertProblem(await t.ask("GET", "/v1/clusters/c1"), 500, "internal");
      // Who knows how far a write came.
      datacenter.before = fails("ECONNRESET");
      assertProblem(await put('{"name":"a","spec":{}}'), 504, "outcome_unknown");
    } finally {
      Object.assign(datacenter, { getCluster, listClusters, before: () => {} });
    }
  });

  it("refuses times that no store can hold", async () => {
    const at = (expiresAt: string) => put(JSON.stringify({ name: "a", spec: {}, expiresAt }));
    for (const time of ["9999-12-31T23:59:59-01:00", "9999-12-31T23:59:60Z", "0000-01-01T00:00:00Z"]) {
      const got = await at(time);
      assertProblem(got, 400, "invalid_request");
      assert.deepEqual(faultPaths(got), ["/expiresAt"], time);
    }
    assert.match((await at("9999-12-31T23:59:59.999Z")).text, /"9999-12-31T23:59:59.999Z"/);
  });

  it("refuses other media types, and too much", async () => {
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", ""])
      assertProblem(await put("{}", { "content-type": type }), 415, "unsupported_media_type");
    assertProblem(await put("{}", { "content-encoding": "gzip" }), 415, "unsupported_media_type");
    assert.equal(
      (await put('{"name":"a","spec":{}}', { "content-type": 'Application/JSON; charset="UTF-8"' })).status,
      200,
    );
    assertProblem(await put("x".repeat(10_001)), 413, "payload_too_large");
    assertProblem(await put("x".repeat(3_000_000)), 413, "payload_too_large");
    const chunk = "8000\r\n" + "y".repeat(0x8000) + "\r\n";
    const chunked = await rawBytes(
      t.port,
      `PUT /v1/clusters/c1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n${chunk}0\r\n\r\n`,
      /payload_too_large/,
    );
    assert.match(chunked, /^HTTP\/1.1 413 /);
    const endless = await rawBytes(
      t.port,
      `PUT /v1/clusters/c1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\nabc`,
    );
    assert.match(endless, /^HTTP\/1.1 413 /);
    const asked = await rawBytes(
      t.port,
      `PUT /v1/clusters/c1 HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n`,
      /payload_too_large/,
    );
    assert.doesNotMatch(asked, /100 Continue/);
  });

  it("tells unknown paths from unknown methods", async () => {
    for (const path of ["/nope", "/v1", "/v1/clusters/", "/V1/clusters", "/v1/clusters/a/b", "//v1/clusters"])
      assertProblem(await t.ask("GET", path), 404, "not_found");
    const patched = await t.ask("POST", "/v1/clusters/c1");
    assertProblem(patched, 405, "method_not_allowed");
    assert.equal(patched.headers["allow"], "PUT, GET, HEAD, PATCH, DELETE");
    assert.equal((await t.ask("PUT", "/v1/topology", { body: {} })).headers["allow"], "GET, HEAD");
    assert.equal((await t.ask("DELETE", "/")).headers["allow"], "GET, HEAD");
    const options = await t.ask("OPTIONS", "/v1/clusters");
    assertProblem(options, 405, "method_not_allowed");
    assert.equal(options.headers["allow"], "POST, GET, HEAD");
    assert.equal((await t.ask("HEAD", "/v1/events")).headers["allow"], "GET");
    assertProblem(await t.ask("GET", "/v1/clusters/%zz"), 400, "invalid_request");
    assertProblem(await t.ask("GET", "/v1/clusters/%00"), 400, "invalid_request");
    assertProblem(await t.ask("GET", `/v1/clusters/${"a".repeat(129)}`), 400, "invalid_request");
    assertProblem(await t.ask("GET", "/v1/clusters/..%2f..%2fetc"), 400, "invalid_request");
    assert.equal(
      (await t.ask("PUT", `/v1/clusters/${"A.z_9:-".repeat(18)}`, { body: { name: "", spec: {} } })).status,
      201,
    );
  });

  it("answers what is no HTTP, and survives half requests and clients that leave", async () => {
    assert.match(
      await rawBytes(t.port, "NONSENSE\r\n\r\n"),
      /^HTTP\/1.1 400 .*\r\ncontent-type: application\/problem\+json/is,
    );
    for (const [bytes, status, code] of [
      ["NONSENSE\r\n\r\n", 400, "invalid_request"],
      [`GET / HTTP/1.1\r\nx: ${"y".repeat(40_000)}\r\n\r\n`, 413, "payload_too_large"],
    ] as const) {
      const [head = "", body = ""] = (await rawBytes(t.port, bytes)).split("\r\n\r\n");
      assert.match(head, new RegExp(`^HTTP/1.1 ${status} `));
      assert.match(head, /\r\nhothot-served-by: east\/n1/i);
      const problem = JSON.parse(body) as Record<string, unknown>;
      assert.deepEqual([problem["status"], problem["code"]], [status, code]);
      assert.equal(problem["requestId"], /\r\nX-Request-Id: (\S+)/.exec(head)?.[1]);
    }
    // What comes too slowly, without the wait for it.
    const slow = net.connect(t.port, "127.0.0.1");
    const [served] = (await once(t.http.server, "connection")) as [net.Socket];
    t.http.server.emit("clientError", Object.assign(new Error("late"), { code: "ERR_HTTP_REQUEST_TIMEOUT" }), served);
    const [said] = (await once(slow, "data")) as [Buffer];
    assert.match(said.toString(), /^HTTP\/1.1 504 .*"code":"deadline_exceeded"/s);
    slow.destroy();
    const before = t.datacenter.asked.length;
    for (let i = 0; i < 20; i++) {
      const socket = net.connect(t.port, "127.0.0.1");
      socket.on("error", () => {});
      await once(socket, "connect");
      socket.write(
        'PUT /v1/clusters/half HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"name":',
      );
      if (i % 2 === 0) socket.resetAndDestroy();
      else socket.end();
    }
    await until(() => t.lines.filter((line) => line.event === "client went away").length >= 10);
    assert.equal(t.datacenter.asked.length, before);
    // One that leaves while its write is at work.
    let release = (): void => {};
    t.datacenter.before = () => new Promise<void>((resolve) => (release = resolve));
    const socket = net.connect(t.port, "127.0.0.1");
    const body = '{"name":"a","spec":{}}';
    socket.write(
      `PUT /v1/clusters/left HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await until(() => t.datacenter.asked.length === before + 1);
    socket.destroy();
    await once(socket, "close");
    release();
    t.datacenter.before = () => {};
    assert.equal((await t.ask("GET", "/livez")).status, 200);
  });

  it("gives up on a body that doesn't come, and on a datacenter that doesn't answer", async () => {
    const slow = await rawBytes(
      t.port,
      'PUT /v1/clusters/c1 HTTP/1.1\r\nhost: x\r\nhothot-timeout-ms: 50\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"na',
      /deadline_exceeded/,
    );
    assert.match(slow, /^HTTP\/1.1 504 /);
    const small = await startHttp({ limits: { graceMs: 20 } });
    try {
      small.datacenter.before = () => new Promise<void>(() => {});
      const got = await small.ask("PUT", "/v1/clusters/c1", {
        body: { name: "a", spec: {} },
        headers: { "hothot-timeout-ms": "30" },
      });
      assertProblem(got, 504, "outcome_unknown");
    } finally {
      await small.stop();
    }
  });

  it("says of a refusal who refused, and of what a copy lacks how far it is behind", async () => {
    const seen = { owner: "west", servedBy: "west/n2", lagMs: 12.6, stale: true };
    t.datacenter.before = () => {
      throw new Problem("not_found", "There is no cluster c9.", seen);
    };
    const missing = await t.ask("DELETE", "/v1/clusters/c9");
    assertProblem(missing, 404, "not_found");
    assert.deepEqual(
      ["hothot-owner", "hothot-served-by", "hothot-lag-ms", "hothot-stale"].map((name) => missing.headers[name]),
      ["west", "west/n2", "13", "true"],
    );
    // Nobody outside the group is told to route again.
    t.datacenter.before = () => {
      throw new Problem("not_owner", "the shard moved during the read", { owner: "west" });
    };
    const moved = await t.ask("DELETE", "/v1/clusters/c9");
    assertProblem(moved, 503, "shard_moving");
    assert.equal(moved.headers["hothot-served-by"], "east/n1");
    t.datacenter.before = () => {};
  });

  it("counts bodies until their requests are answered", async () => {
    const small = await startHttp({ limits: { bodyBytes: 3_000 } });
    try {
      const release: (() => void)[] = [];
      small.datacenter.before = () => new Promise<void>((resolve) => release.push(resolve));
      const put = (id: string, bytes: number) =>
        small.ask("PUT", `/v1/clusters/${id}`, { body: { name: "a".repeat(bytes), spec: {} } });
      const held = [1, 2].map((i) => put(`c${i}`, 1_000));
      await until(() => release.length === 2);
      assertProblem(await put("c3", 1_100), 503, "overloaded");
      const fits = put("c4", 500);
      await until(() => release.length === 3);
      small.datacenter.before = () => {};
      for (const go of release) go();
      for (const one of [...held, fits]) assert.equal((await one).status, 201);
      assert.equal((await put("c3", 2_500)).status, 201);
    } finally {
      await small.stop();
    }
  });

  it("refuses beyond the bound of a lane, and keeps probes and views answering", async () => {
    const small = await startHttp({ limits: { lanes: { work: 2, poll: 1, stream: 1, events: 1, admin: 1 } } });
    try {
      const release: (() => void)[] = [];
      small.datacenter.before = () => new Promise<void>((resolve) => release.push(resolve));
      const body = { name: "a", spec: {} };
      const held = [1, 2].map((i) => small.ask("PUT", `/v1/clusters/c${i}`, { body }));
      await until(() => release.length === 2);
      const refused = await small.ask("PUT", "/v1/clusters/c3", { body });
      assertProblem(refused, 503, "overloaded");
      assert.equal((await small.ask("GET", "/v1/topology")).status, 200);
      assert.equal((await small.ask("GET", "/readyz")).status, 200);
      small.datacenter.before = () => {};
      for (const go of release) go();
      for (const one of held) assert.equal((await one).status, 201);
      assert.equal((await small.ask("PUT", "/v1/clusters/c3", { body })).status, 201);
    } finally {
      await small.stop();
    }
  });
});
