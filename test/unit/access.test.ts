import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWK } from "jose";
import { systemTime } from "../../infra/clock.js";
import type { Config } from "../../infra/config.js";
import { Problem, type ProblemCode } from "../../infra/errors.js";
import { silentLogger, type Logger } from "../../infra/logger.js";
import { systemRandom } from "../../infra/random.js";
import { Access } from "../../services/access/access.js";
import { JwtVerifier } from "../../services/access/jwt.js";
import { hashOf, tokenText, type KeptToken } from "../../services/access/tokens.js";
import { WriteRates } from "../../services/access/write-rates.js";
import type { Reply, RequestContext } from "../../services/api.js";
import { ManualTime } from "../harness/manual-time.js";
import { startHttp } from "./http-support.js";

const is =
  (code: ProblemCode) =>
  (error: unknown): boolean =>
    error instanceof Problem && error.code === code;

function accessOf(options: { config?: Partial<Config>; tokens?: readonly KeptToken[]; log?: Logger } = {}) {
  const { tokens = [] } = options;
  const book = {
    tokens,
    tenants: [],
    token: (id: string) => tokens.find((token) => token.id === id),
    newToken: async () => undefined,
    limits: () => ({ id: "", maxClusters: null, writesPerSecond: 1 }),
  };
  return new Access({
    config: { host: "127.0.0.1", tokenRequestsPerSecond: 0, ...options.config } as Config,
    book: book as never,
    writes: new WriteRates(book, systemTime),
    time: systemTime,
    random: systemRandom,
    log: options.log ?? silentLogger,
  });
}

const token = (id: string, name: string | null, secret: string): KeptToken => ({
  id,
  name,
  scopes: ["operate", "write"],
  tenant: "",
  hash: hashOf(secret),
  createdAt: "2026-01-01T00:00:00.000Z",
  createdBy: "admin",
  expiresAt: null,
  requestsPerSecond: null,
});

test("a tenant that writes more than it may keeps no operator from his work", async () => {
  const access = accessOf();
  const act = async (): Promise<Reply> => ({ status: 200, body: {}, servedBy: "east/n1" });
  const t = await startHttp({
    admit: (request, need) => access.admit(request, need),
    extensions: { setFailover: act, startMove: act },
  });
  const status = async (method: string, path: string, body: object): Promise<number> =>
    (
      await fetch(t.url + path, {
        method,
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      })
    ).status;
  try {
    const writes: number[] = [];
    for (let n = 0; n < 20; n++) writes.push(await status("PUT", "/v1/clusters/c1", { name: "n", spec: {} }));
    assert.ok(writes.includes(429), String(writes));
    for (let n = 0; n < 20; n++) {
      assert.equal(await status("PUT", "/v1/failover", { paused: true }), 200);
      assert.equal(await status("POST", "/v1/takeovers", { dc: "east" }), 200);
    }
  } finally {
    await t.stop();
  }
});

test("who asks is told by what he came with: a token's name is no administrator", async () => {
  const secret = "0".repeat(50);
  const access = accessOf({
    config: { adminToken: "the-administrators-own" },
    tokens: [token("t-aaaa", "admin", secret), token("t-bbbb", null, secret)],
  });
  const who = async (text: string): Promise<string> => {
    const request = { method: "POST", headers: { authorization: `Bearer ${text}` } } as never;
    return (await access.admit(request, { scope: "operate", write: true, route: "r", again: false })).principal;
  };
  assert.equal(await who("the-administrators-own"), "admin");
  assert.equal(await who(tokenText("t-aaaa", secret)), "token:admin");
  assert.equal(await who(tokenText("t-bbbb", secret)), "token:t-bbbb");
});

test("where no token is needed, pages of other sites change nothing", async () => {
  const access = accessOf();
  let acts = 0;
  const act = async (context: RequestContext): Promise<Reply> => {
    assert.equal(context.caller.principal, "anonymous");
    acts++;
    return { status: 200, body: { shards: [] }, servedBy: "east/n1" };
  };
  const t = await startHttp({
    admit: (request, need) => access.admit(request, need),
    extensions: { startMove: act },
  });
  const post = (headers: Readonly<Record<string, string>>, path = "/v1/rebalances", method = "POST") =>
    t.ask(method, path, { headers });
  try {
    for (const headers of [
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site", origin: t.url },
      { origin: "https://elsewhere.example" },
      { origin: "null" },
      { origin: "http://127.0.0.1:1" },
    ]) {
      const refused = await post(headers);
      assert.deepEqual([refused.status, refused.json["code"]], [403, "forbidden"], JSON.stringify(headers));
      assert.equal((await post(headers, "/v1/clusters/c1", "DELETE")).status, 403);
      // What only reads shows a page nothing: its browser keeps the answer from it.
      assert.equal((await post(headers, "/v1/clusters", "GET")).status, 200);
    }
    assert.equal(acts, 0);
    // Programs; the dashboard's own page; a page behind a proxy with another name; what a user typed.
    const good = [{}, { origin: t.url }, { "sec-fetch-site": "same-origin", origin: "https://proxied.example" }];
    for (const headers of [...good, { "sec-fetch-site": "none" }])
      assert.equal((await post(headers)).status, 200, JSON.stringify(headers));
    assert.equal(acts, 4);
  } finally {
    await t.stop();
  }
});

test("a process that needs no token says so at its start, and why", () => {
  const said = (config: Partial<Config>): unknown[] => {
    const lines: unknown[] = [];
    const log = { ...silentLogger, warn: (event: string, fields: object) => lines.push([event, fields]) } as Logger;
    accessOf({ config, log }).announce();
    return lines;
  };
  assert.deepEqual(said({}), [["requests need no token", { host: "127.0.0.1", why: "listens on loopback only" }]]);
  assert.deepEqual(said({ host: "0.0.0.0", noTokens: true }), [
    ["requests need no token", { host: "0.0.0.0", why: "HOTHOT_NO_TOKENS=true" }],
  ]);
  assert.deepEqual(said({ adminToken: "a" }), []);
});

/** An issuer whose keys can be taken back, and that can be away. */
async function issuer() {
  const published = new Map<string, JWK>();
  const secrets = new Map<string, CryptoKey>();
  const state = { away: false, asked: 0 };
  const server = createServer((_request, response) => {
    state.asked++;
    if (state.away) return void response.destroy();
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ keys: [...published.values()] }));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const time = new ManualTime(Date.now());
  const verifier = new JwtVerifier({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`,
    tenantClaim: "tenant",
    scopeClaim: "scope",
    time,
  });
  return {
    state,
    time,
    published,
    publish: async (kid: string): Promise<void> => {
      const { publicKey, privateKey } = await generateKeyPair("ES256");
      published.set(kid, { ...(await exportJWK(publicKey)), kid, alg: "ES256" });
      secrets.set(kid, privateKey);
    },
    verify: async (kid: string, sub = "carol") =>
      verifier.verify(
        await new SignJWT({ scope: "operate" })
          .setProtectedHeader({ alg: "ES256", kid })
          .setSubject(sub)
          .setExpirationTime(Math.floor(time.wall() / 1000) + 60)
          .sign(secrets.get(kid) as CryptoKey),
      ),
    stop: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

test("a key that its issuer takes back counts ten minutes more at most, and on while the issuer is away", async () => {
  const t = await issuer();
  try {
    await t.publish("one");
    await t.publish("two");
    assert.equal((await t.verify("one")).principal, "jwt:carol");
    t.published.delete("two");
    await t.verify("two");
    assert.equal(t.state.asked, 1);
    // Away: the keys that were published last go on to count, and it is not asked for each token.
    t.state.away = true;
    await t.time.advance(700_000);
    for (const kid of ["one", "two", "one"]) await t.verify(kid);
    assert.equal(t.state.asked, 2);
    t.state.away = false;
    await t.time.advance(30_000);
    await assert.rejects(t.verify("two"), is("unauthorized"));
    await t.verify("one");
    assert.equal(t.state.asked, 3);
  } finally {
    t.stop();
  }
});

test("a subject that no text can hold is refused", async () => {
  const t = await issuer();
  try {
    await t.publish("one");
    for (const sub of ["a\u0000b", "line\nbreak", "half\ud800", ""])
      await assert.rejects(t.verify("one", sub), is("unauthorized"), JSON.stringify(sub));
    assert.equal((await t.verify("one", "Jürgen Ω 🙂 <j@example>")).principal, "jwt:Jürgen Ω 🙂 <j@example>");
  } finally {
    t.stop();
  }
});
