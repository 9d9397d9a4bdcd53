import assert from "node:assert/strict";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { after as afterAll, before, describe, it } from "node:test";
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey } from "jose";
import { startStack, type TestStack } from "../harness/stack.js";
import { databaseOf } from "./database.js";
import { at, body, pause, problem, send, settleMs, type Answered, type Json } from "./support.js";

const admin = "the-administrators-own-token-of-this-test";
const issuer = "https://issuer.example";

/** A group that lets nobody in without a token. Its tests build on each other as little as they can. */
describe("access", () => {
  let stack: TestStack;
  let keys: Server;
  let signingKey: CryptoKey;
  let strangersKey: CryptoKey;

  const on = (
    dc: string,
    method: string,
    where: string,
    token: string | null,
    sent?: unknown,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Answered> =>
    send(stack, dc, method, where, sent, {
      ...(token === null ? {} : { authorization: `Bearer ${token}` }),
      ...headers,
    });
  const make = async (wanted: Json, dc = "east"): Promise<{ id: string; token: string }> =>
    body<{ id: string; token: string }>(await on(dc, "POST", "/v1/tokens", admin, wanted), 201);
  /** A token works everywhere soon after it was made anywhere. */
  const everywhere = async (token: string, status = 200, where = "/v1/clusters"): Promise<void> => {
    for (const dc of stack.dcs)
      await stack.until(
        async () => (await on(dc, "GET", where, token)).status === status,
        10_000,
        `${status} in ${dc}`,
      );
  };
  const jwt = (claims: Json, key = signingKey, from = issuer, seconds = 300): Promise<string> =>
    new SignJWT(claims)
      .setProtectedHeader({ alg: "ES256", kid: "one" })
      .setSubject("carol")
      .setIssuer(from)
      .setAudience("hothot")
      .setExpirationTime(Math.floor(Date.now() / 1000) + seconds)
      .sign(key);

  before(async () => {
    const pair = await generateKeyPair("ES256");
    signingKey = pair.privateKey;
    strangersKey = (await generateKeyPair("ES256")).privateKey;
    const jwk = { ...(await exportJWK(pair.publicKey)), kid: "one", alg: "ES256", use: "sig" };
    keys = createServer((_request, response) => {
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify({ keys: [jwk] }));
    });
    keys.listen(0, "127.0.0.1");
    await once(keys, "listening");
    stack = await startStack({
      steady: true,
      env: {
        HOTHOT_ADMIN_TOKEN: admin,
        HOTHOT_JWKS_URL: `http://127.0.0.1:${(keys.address() as AddressInfo).port}/keys`,
        HOTHOT_JWT_ISSUER: issuer,
        HOTHOT_JWT_AUDIENCE: "hothot",
      },
    });
  });
  afterAll(async () => {
    await stack.stop();
    keys.close();
    keys.closeAllConnections();
  });

  it("lets nobody in without a valid token, and shows probes to everybody", async () => {
    const document = body<{ paths: Record<string, Record<string, { security: unknown[] }>> }>(
      await on("east", "GET", "/openapi.json", null),
      200,
    );
    let guarded = 0;
    for (const [path, operations] of Object.entries(document.paths))
      for (const [method, { security }] of Object.entries(operations)) {
        const where = path.replaceAll(/\{\w+\}/g, "x");
        if (security.length === 0) {
          assert.ok((await on("east", method.toUpperCase(), where, null)).status < 400, where);
          continue;
        }
        guarded++;
        for (const token of [null, "nonsense", "hh_t-abcd_0", `hh_t-abcd_${"0".repeat(50)}`, `in_${"0".repeat(50)}`]) {
          const refused = await on("east", method.toUpperCase(), where, token);
          problem(refused, "unauthorized");
          assert.match(refused.headers.get("www-authenticate") ?? "", /^Bearer/);
        }
      }
    assert.ok(guarded > 40, `${guarded} operations are guarded`);
    problem(await on("east", "GET", "/v1/nothing", null), "not_found");
  });

  it("lets a token do what its scopes say, and names the scope that is missing", async () => {
    const tokens = {
      read: await make({ scopes: ["read"] }),
      write: await make({ scopes: ["write"] }),
      operate: await make({ scopes: ["operate"] }),
      admin: await make({ scopes: ["admin"] }),
    };
    const table: readonly (readonly [string, string, Json | undefined, string, readonly (keyof typeof tokens)[]])[] = [
      ["GET", "/v1/clusters", undefined, "read", ["read", "write", "operate", "admin"]],
      ["GET", "/v1/topology", undefined, "read", ["read", "write", "operate", "admin"]],
      ["PUT", "/v1/clusters/scoped", { name: "n", spec: {} }, "write", ["write", "admin"]],
      ["PUT", "/v1/workers/scoped", {}, "write", ["write", "admin"]],
      ["POST", "/v1/drains", { dc: "east", dryRun: true }, "operate", ["operate", "admin"]],
      ["GET", "/v1/divergent-operations", undefined, "operate", ["operate", "admin"]],
      ["GET", "/v1/audit", undefined, "operate", ["operate", "admin"]],
      ["GET", "/v1/tokens", undefined, "admin", ["admin"]],
    ];
    for (const [method, where, sent, needed, allowed] of table)
      for (const scope of Object.keys(tokens) as (keyof typeof tokens)[]) {
        const answer = await on("east", method, where, tokens[scope].token, sent);
        if (allowed.includes(scope)) assert.ok(answer.status < 300, `${scope}: ${method} ${where}: ${answer.text}`);
        else assert.match(String(problem(answer, "forbidden")["detail"]), new RegExp(`\\b${needed}\\b`));
      }
    problem(await on("east", "POST", "/v1/tokens", admin, { scopes: ["operate"], tenant: "a" }), "invalid_request");
    problem(await on("east", "POST", "/v1/tokens", admin, { scopes: [] }), "invalid_request");
    problem(await on("east", "POST", "/v1/tokens", admin, { scopes: ["fly"] }), "invalid_request");
  });

  it("knows a token in every datacenter at once, and none once it was removed, by the commands", async () => {
    const made = await stack.cli("token", "add", "--scopes", "read,write", "--name", "bob", "--json");
    assert.equal(made.code, 0, made.stderr);
    const { id, token } = JSON.parse(made.stdout) as { id: string; token: string };
    await everywhere(token);
    const listed = await stack.cli("token", "list");
    assert.match(listed.stdout, new RegExp(`${id} +bob +read,write +default`));
    assert.doesNotMatch(listed.stdout, /hh_/);
    const asBob = await stack.cli("clusters", "list", "--token", token);
    assert.equal(asBob.code, 0, asBob.stderr);
    const forbidden = await stack.cli("token", "list", "--token", token);
    assert.equal(forbidden.code, 1);
    assert.match(forbidden.stderr, /^hothot: forbidden: /m);
    assert.equal((await stack.cli("token", "remove", id)).code, 0);
    await everywhere(token, 401);
    assert.match((await stack.cli("token", "remove", id)).stderr, /^hothot: not_found: /m);
    const short = await make({ scopes: ["read"], expiresAt: new Date(Date.now() + 1_500).toISOString() });
    await stack.until(
      async () => (await on("east", "GET", "/v1/clusters", short.token)).status === 401,
      5_000,
      "it expires",
    );
  });

  it("keeps no token, only its hash", async () => {
    const { id, token } = await make({ scopes: ["read"] });
    await everywhere(token);
    const secret = token.split("_").at(-1) ?? "";
    for (const dc of stack.dcs) {
      const database = databaseOf(stack, dc);
      try {
        const { rows } = await database.pool.query<{ body: string }>(
          "SELECT body::text FROM documents WHERE kind = 'token' AND id = $1",
          [id],
        );
        assert.match(at(rows, 0).body, /"hash"/);
        const all = await database.pool.query(
          "SELECT 1 FROM documents WHERE body::text LIKE $1 UNION ALL SELECT 1 FROM idempotency_keys WHERE body::text LIKE $1 UNION ALL SELECT 1 FROM outbox WHERE position(convert_to($2, 'UTF8') in record) > 0",
          [`%${secret}%`, secret],
        );
        assert.equal(all.rows.length, 0);
      } finally {
        await database.close();
      }
      assert.ok(!stack.logs(dc).includes(secret), "the log");
      assert.ok(!stack.logs(dc).includes(admin), "the log");
      assert.ok(!(await on(dc, "GET", "/metrics", null)).text.includes(secret));
    }
  });

  it("keeps tenants apart", async () => {
    const [a, b, c] = [
      (await make({ scopes: ["read", "write"], tenant: "a" })).token,
      (await make({ scopes: ["read", "write"], tenant: "b" })).token,
      (await make({ scopes: ["read", "write"] })).token,
    ];
    for (const token of [a, b, c]) await everywhere(token);
    // One id, one idempotency key, one worker's name: three things each.
    const key = { "idempotency-key": "shared" };
    for (const [name, token] of Object.entries({ a, b, c })) {
      const fields = { name, spec: { nodes: [`${name}-1`] } };
      const first = await on("east", "PUT", "/v1/clusters/shared", token, fields, key);
      assert.equal(body(first, 201)["name"], name);
      const again = await on("west", "PUT", "/v1/clusters/shared", token, fields, key);
      assert.equal(again.headers.get("idempotency-replayed"), "true");
      assert.equal(body(again, 201)["name"], name);
      body(await on("central", "PUT", "/v1/clusters/only", token, fields), 201);
      assert.equal((await on("east", "DELETE", "/v1/clusters/only", token)).status, 204);
    }
    for (const dc of stack.dcs)
      for (const [name, token] of Object.entries({ a, b, c })) {
        const owner = { "hothot-consistency": "owner" };
        assert.equal(body(await on(dc, "GET", "/v1/clusters/shared", token, undefined, owner), 200)["name"], name);
        const list = await stack.until(
          async () => {
            const { items } = body<{ items: Json[] }>(await on(dc, "GET", "/v1/clusters?limit=1000", token), 200);
            return items.some((item) => item["id"] === "shared") ? items : undefined;
          },
          10_000,
          `the list of ${name} in ${dc}`,
        );
        for (const item of list) assert.ok(item["name"] === name || (name === "c" && item["id"] === "scoped"));
      }
    const mine = body<{ id: string }>(
      await on("east", "POST", "/v1/clusters/shared/operations", a, { type: "create" }),
      202,
    );
    for (const dc of stack.dcs) {
      const owner = { "hothot-consistency": "owner" };
      problem(await on(dc, "GET", `/v1/jobs/${mine.id}`, b, undefined, owner), "not_found");
      problem(await on(dc, "GET", `/v1/jobs/${mine.id}`, b), "not_found");
      problem(await on(dc, "GET", `/v1/jobs/${mine.id}/tasks`, b), "not_found");
      problem(await on(dc, "POST", `/v1/jobs/${mine.id}/cancel`, b), "not_found");
      assert.deepEqual(body<{ items: Json[] }>(await on(dc, "GET", "/v1/jobs", b), 200).items, []);
    }
    // The built-in worker serves every tenant.
    const done = await stack.until(
      async () => {
        const job = body(await on("west", "GET", `/v1/jobs/${mine.id}`, a), 200);
        return job["status"] === "complete" ? job : undefined;
      },
      20_000,
      "the tenant's job is complete",
    );
    assert.equal(done["clusterId"], "shared");
    const { items } = body<{ items: Json[] }>(await on("east", "GET", `/v1/jobs/${mine.id}/tasks`, a), 200);
    const task = at(items, 0);
    problem(
      await on("east", "POST", `/v1/tasks/${String(task["id"])}/heartbeat`, b, { token: "0:1:1", workerId: "w" }),
      "stale_token",
    );
    body(await on("east", "PUT", "/v1/workers/w", a, { capacity: 3 }), 200);
    problem(await on("east", "POST", "/v1/workers/w/heartbeat", b), "not_found");
    problem(await on("east", "POST", "/v1/tasks/take", b, { workerId: "w" }), "not_found");
  });

  it("exports what one tenant has so that another imports the same", async () => {
    const [from, to] = [
      (await make({ scopes: ["read", "write"], tenant: "from" })).token,
      (await make({ scopes: ["read", "write"], tenant: "to" })).token,
    ];
    for (const token of [from, to]) await everywhere(token);
    const clusters = [
      { name: 'a "quoted"\n line', spec: { deep: { list: [1, 2.5, null, { x: [] }] } }, labels: { "k/1": "ü" } },
      { name: "", spec: {}, state: { nodes: { n1: { up: true } } }, expiresAt: "2199-01-01T00:00:00.000Z" },
      { name: "plain", spec: { nodes: ["n1", "n2"] } },
    ];
    for (const [n, fields] of clusters.entries())
      body(
        await on("east", "PUT", `/v1/clusters/moved:${n}.x`, from, fields, { "hothot-durability": "replicated" }),
        201,
      );
    const exported = async (token: string): Promise<string> => {
      const { code, stdout, stderr } = await stack.cli("clusters", "export", "--token", token);
      assert.equal(code, 0, stderr);
      return stdout;
    };
    const lines = await stack.until(
      async () => {
        const text = await exported(from);
        return text.trimEnd().split("\n").length === clusters.length && text;
      },
      settleMs,
      "all of them are in the copy that is exported",
    );
    const file = path.join(stack.dir, "export.ndjson");
    writeFileSync(file, lines);
    const { code, stderr } = await stack.cli("clusters", "import", file, "--token", to);
    assert.equal(code, 0, stderr);
    await stack.until(async () => (await exported(to)) === lines, settleMs, "the same is exported again");
  });

  it("tells a tenant nothing of another's jobs in its events", async () => {
    const tokens = [
      (await make({ scopes: ["read", "write"], tenant: "e1" })).token,
      (await make({ scopes: ["read", "write"], tenant: "e2" })).token,
    ];
    const [one, two] = [at(tokens, 0), at(tokens, 1)];
    for (const token of tokens) await everywhere(token);
    const abort = new AbortController();
    let heard = "";
    const listening = fetch(`${stack.url("east")}/v1/events`, {
      headers: { authorization: `Bearer ${two}` },
      signal: abort.signal,
    }).then(async (answer) => {
      for await (const chunk of answer.body ?? []) heard += Buffer.from(chunk as Uint8Array).toString();
    });
    listening.catch(() => undefined);
    await stack.until(() => heard.includes("retry:"), 5_000, "events flow");
    // In another datacenter's shards, where the events are made.
    const start = async (token: string, name: string): Promise<void> => {
      const made = body(await on("west", "POST", "/v1/clusters", token, { name, spec: { nodes: ["n"] } }), 201);
      body(await on("west", "POST", `/v1/clusters/${String(made["id"])}/operations`, token, { type: "create" }), 202);
    };
    await start(one, "theirs");
    await start(two, "mine");
    await stack.until(() => heard.includes("event: job"), 10_000, "the own job's event");
    await pause(300);
    abort.abort();
    const own = body<{ items: Json[] }>(await on("east", "GET", "/v1/jobs", two), 200).items;
    const ids = [...heard.matchAll(/event: job\ndata: (.*)\n/g)].map(
      ([, data]) => (JSON.parse(data ?? "") as Json)["id"],
    );
    assert.deepEqual(new Set(ids), new Set(own.map((job) => job["id"])));
  });

  it("holds a tenant to its quotas, and a token to its rate", async () => {
    const limited = { maxClusters: 3, writesPerSecond: null };
    assert.equal(body(await on("east", "PUT", "/v1/tenants/small", admin, limited), 200)["maxClusters"], 3);
    const { token } = await make({ scopes: ["read", "write"], tenant: "small" }, "west");
    await everywhere(token);
    const put = (id: string, dc = "west"): Promise<Answered> =>
      on(dc, "PUT", `/v1/clusters/${id}`, token, { name: "n", spec: {} });
    // At once, so that they can't wait for the copy to follow.
    const answers = await Promise.all(Array.from({ length: 8 }, (_, i) => put(`q-${i}`)));
    assert.equal(answers.filter((answer) => answer.status === 201).length, 3, answers.map((a) => a.status).join(" "));
    for (const answer of answers)
      if (answer.status !== 201) {
        problem(answer, "quota_exceeded");
        assert.match(answer.headers.get("retry-after") ?? "", /^\d+$/);
      }
    problem(await on("west", "POST", "/v1/clusters", token, { name: "n", spec: {} }), "quota_exceeded");
    const kept = body<{ items: Json[] }>(await on("west", "GET", "/v1/clusters", token, undefined, {}), 200).items;
    await stack.until(
      async () => body<{ items: Json[] }>(await on("east", "GET", "/v1/clusters", token), 200).items.length === 3,
      10_000,
      "east's copy has them",
    );
    problem(await put("q-new", "east"), "quota_exceeded");
    // What is there may be changed, and what is removed makes room.
    const first = String(at(kept, 0)["id"]);
    body(await put(first), 200);
    assert.equal((await on("west", "DELETE", `/v1/clusters/${first}`, token)).status, 204);
    await stack.until(async () => (await put("q-room")).status === 201, 10_000, "there is room again");

    body(await on("east", "PUT", "/v1/tenants/slow", admin, { writesPerSecond: 2 }), 200);
    const slow = (await make({ scopes: ["read", "write"], tenant: "slow" })).token;
    const writes = await Promise.all(
      Array.from({ length: 12 }, (_, i) => on("east", "PUT", `/v1/clusters/s-${i}`, slow, { name: "n", spec: {} })),
    );
    const passed = writes.filter((answer) => answer.status === 201).length;
    assert.ok(passed >= 2 && passed <= 6, `${passed} writes passed`);
    for (const answer of writes) if (answer.status !== 201) problem(answer, "quota_exceeded");
    body(await on("east", "GET", "/v1/clusters", slow), 200);

    const rated = (await make({ scopes: ["read"], requestsPerSecond: 5 })).token;
    const reads = await Promise.all(Array.from({ length: 30 }, () => on("east", "GET", "/v1/topology", rated)));
    const read = reads.filter((answer) => answer.status === 200).length;
    assert.ok(read >= 5 && read <= 15, `${read} reads passed`);
    for (const answer of reads)
      if (answer.status !== 200) {
        problem(answer, "rate_limited");
        assert.match(answer.headers.get("retry-after") ?? "", /^[1-9]\d*$/);
      }
  });

  it("takes the tokens of an issuer that publishes its keys", async () => {
    const scope = "openid read hothot:write";
    const good = await jwt({ scope, tenant: "acme" });
    body(await on("east", "PUT", "/v1/clusters/of-acme", good, { name: "n", spec: {} }), 201);
    const acme = (await make({ scopes: ["read"], tenant: "acme" })).token;
    body(await on("east", "GET", "/v1/clusters/of-acme", acme, undefined, { "hothot-consistency": "owner" }), 200);
    problem(await on("east", "POST", "/v1/drains", good, { dc: "east", dryRun: true }), "forbidden");
    body(await on("west", "POST", "/v1/drains", await jwt({ scope: ["operate"] }), { dc: "east", dryRun: true }), 200);
    // A tenant's token is no operator's, whatever it says.
    problem(
      await on("west", "POST", "/v1/drains", await jwt({ scope: "operate", tenant: "acme" }), {
        dc: "east",
        dryRun: true,
      }),
      "forbidden",
    );
    const bad = [
      await jwt({ scope }, strangersKey),
      await jwt({ scope }, signingKey, "https://other.example"),
      await jwt({ scope }, signingKey, issuer, -10),
      await jwt({ scope, tenant: "a b" }),
      `${good.slice(0, -4)}AAAA`,
      `${Buffer.from('{"alg":"none"}').toString("base64url")}.${good.split(".")[1] ?? ""}.`,
    ];
    for (const token of bad) problem(await on("east", "GET", "/v1/clusters", token), "unauthorized");
    problem(await on("east", "GET", "/v1/clusters", await jwt({})), "forbidden");
  });

  it("keeps one audit trail of what operators did and were refused, in every datacenter, also when one is killed", async () => {
    const { token } = await make({ scopes: ["operate"], name: "oscar" });
    await everywhere(token);
    body(await on("west", "PUT", "/v1/failover", token, { paused: true }), 200);
    body(await on("central", "PUT", "/v1/failover", token, { paused: false }), 200);
    problem(await on("west", "POST", "/v1/tokens", token, { scopes: ["read"] }), "forbidden");
    problem(await on("east", "POST", "/v1/takeovers", token, { dc: "west" }), "owner_reachable");
    problem(await on("east", "POST", "/v1/divergent-operations/none/discard", token), "not_found");
    const moved = body<{ id: string }>(await on("west", "POST", "/v1/drains", token, { dc: "west" }), 202);
    await stack.until(
      async () => body(await on("west", "GET", `/v1/drains/${moved.id}`, token), 200)["status"] === "complete",
      30_000,
      "the drain is complete",
    );
    const entries = async (dc: string): Promise<Json[]> => {
      const items: Json[] = [];
      for (let cursor = ""; ;) {
        const page = body<{ items: Json[]; nextCursor: string | null }>(
          await on(dc, "GET", `/v1/audit?limit=7${cursor}`, token),
          200,
        );
        items.push(...page.items);
        if (page.nextCursor === null) return items;
        assert.equal(page.items.length, 7);
        cursor = `&cursor=${page.nextCursor}`;
      }
    };
    const wanted = [
      ["admin", "token add", "ok", "east"],
      ["token:oscar", "failover pause", "ok", "west"],
      ["token:oscar", "failover resume", "ok", "central"],
      ["token:oscar", "POST /v1/tokens", "forbidden", "west"],
      ["token:oscar", "takeover", "owner_reachable", "east"],
      ["token:oscar", "divergence discard", "not_found", "east"],
      ["token:oscar", "drain", "complete", "west"],
    ];
    const told = (items: readonly Json[]): unknown[][] =>
      items.slice(-wanted.length).map((item) => ["who", "action", "result", "dc"].map((name) => item[name]));
    const complete = async (dc: string): Promise<Json[]> =>
      stack.until(
        async () => {
          const items = await entries(dc);
          assert.deepEqual(told(items), wanted);
          return items;
        },
        settleMs,
        `the whole trail in ${dc}`,
      );
    const first = await complete("east");
    const drain = at(first, -1);
    assert.deepEqual(drain["target"], { dc: "west" });
    assert.match(String(drain["at"]), /^\d{4}-\d\d-\d\dT/);
    for (const dc of stack.dcs) assert.deepEqual(await complete(dc), first);
    await stack.simulate("crash", "west");
    for (const dc of ["east", "central"]) assert.deepEqual(await complete(dc), first);
    await stack.simulate("restart", "west");
    assert.deepEqual(await complete("west"), first);
    // Tokens are known there as before.
    await everywhere(token);
  });
});
