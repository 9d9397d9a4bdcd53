import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, it } from "node:test";
import { createConfig, lintFromString } from "@redocly/openapi-core";
import { Script } from "node:vm";
import { problems } from "../../infra/errors.js";
import { createDashboard } from "../../services/http/dashboard.js";
import { startHttp } from "./http-support.js";

/** Every request of the contract. */
const contract = `
POST /v1/clusters
PUT /v1/clusters/{id}
GET /v1/clusters
GET /v1/clusters/{id}
PATCH /v1/clusters/{id}
DELETE /v1/clusters/{id}
POST /v1/clusters/bulk
POST /v1/clusters/{id}/operations
GET /v1/jobs/{id}
GET /v1/jobs
POST /v1/jobs/{id}/cancel
POST /v1/jobs/{id}/retry
POST /v1/jobs/{id}/pause
POST /v1/jobs/{id}/resume
GET /v1/jobs/{id}/tasks
PUT /v1/workers/{id}
POST /v1/workers/{id}/heartbeat
POST /v1/tasks/take
POST /v1/tasks/{id}/heartbeat
POST /v1/tasks/{id}/finish
GET /v1/topology
GET /v1/shards
GET /v1/history
GET /v1/lag
GET /v1/audit
POST /v1/switchovers
GET /v1/switchovers/{id}
POST /v1/switchovers/{id}/cancel
POST /v1/drains
POST /v1/failbacks
POST /v1/rebalances
POST /v1/takeovers
GET /v1/takeovers/{id}
POST /v1/takeovers/{id}/cancel
PUT /v1/failover
GET /v1/divergent-operations
GET /v1/divergent-operations/{id}
POST /v1/divergent-operations/{id}/replay
POST /v1/divergent-operations/{id}/discard
GET /v1/verify
POST /v1/repair
POST /v1/tokens
GET /v1/tokens
DELETE /v1/tokens/{id}
PUT /v1/tenants/{id}
GET /v1/tenants
GET /v1/events
GET /livez
GET /readyz
GET /metrics
GET /openapi.json`;

interface Document {
  readonly openapi: string;
  readonly paths: Record<
    string,
    Record<
      string,
      { operationId: string; responses: Record<string, unknown>; parameters: { name: string; in: string }[] }
    >
  >;
  readonly components: { readonly schemas: Record<string, unknown> };
}

describe("/openapi.json", () => {
  it("holds every request of the contract, with resolvable references and its own operation ids", async () => {
    const t = await startHttp();
    try {
      const got = await t.ask("GET", "/openapi.json");
      const document = got.json as unknown as Document;
      assert.equal(document.openapi, "3.1.0");
      for (const line of contract.trim().split("\n")) {
        const [method, path] = line.split(" ") as [string, string];
        const operation = document.paths[path]?.[method.toLowerCase()];
        assert.ok(operation, line);
        assert.ok(
          Object.keys(operation.responses).some((status) => status.startsWith("2")),
          line,
        );
        const named = operation.parameters
          .filter((parameter) => parameter.in === "path")
          .map((parameter) => parameter.name);
        assert.deepEqual(named, path.includes("{id}") ? ["id"] : [], line);
      }
      const ids = Object.values(document.paths).flatMap((item) =>
        Object.values(item).map((operation) => operation.operationId),
      );
      assert.equal(new Set(ids).size, ids.length);
      for (const [, name] of got.text.matchAll(/"#\/components\/schemas\/(\w+)"/g))
        assert.ok(document.components.schemas[name ?? ""], name);
      assert.doesNotMatch(got.text, /#\/\$defs/);
      for (const code of ["version_mismatch", "outcome_unknown", "stale_token", "draining"] as const)
        assert.ok(got.text.includes(`\`${code}\`: ${problems[code].meaning}`));
    } finally {
      await t.stop();
    }
  });
});

it("is a document that a linter has nothing to say against", async () => {
  const t = await startHttp();
  try {
    const source = (await t.ask("GET", "/openapi.json")).text;
    const config = await createConfig({ extends: ["recommended-strict"] });
    const found = await lintFromString({ source, config });
    assert.deepEqual(
      found.map(({ ruleId, message, location }) => [ruleId, message, location[0]?.pointer]),
      [],
    );
    const broken = await lintFromString({ source: source.replaceAll('"operationId"', '"operation"'), config });
    assert.ok(broken.length > 0, "the linter looks");
  } finally {
    await t.stop();
  }
});

describe("The dashboard", () => {
  const { html } = createDashboard();

  it("needs nothing from elsewhere, and allows itself by hash alone", async () => {
    const t = await startHttp();
    try {
      const got = await t.ask("GET", "/");
      assert.equal(got.text, html);
      const policy = String(got.headers["content-security-policy"]);
      for (const tag of ["script", "style"]) {
        const text = new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`).exec(html)?.[1] ?? "";
        assert.ok(text.length > 1000, `${tag} is in the page`);
        assert.ok(policy.includes(createHash("sha256").update(text).digest("base64")), tag);
      }
      assert.equal(got.headers["x-content-type-options"], "nosniff");
      assert.doesNotMatch(html, /(src|href)="(https?:)?\/\//);
      assert.doesNotMatch(html, /\sstyle=|\son\w+="/);
      assert.doesNotMatch(html, /innerHTML|document\.write|eval\(/);
    } finally {
      await t.stop();
    }
  });

  it("asks for a token, and keeps it in the tab alone", () => {
    assert.match(html, /<input id="token" type="password" autocomplete="off"/);
    assert.match(html, /sessionStorage\.setItem\(tokenName, /);
    assert.doesNotMatch(html, /localStorage|document\.cookie/);
    // An EventSource can't bring a token.
    assert.doesNotMatch(html, /new EventSource/);
  });

  it("has elements in balance, unique ids, every id its script looks for, and labels", () => {
    const markup = html.replace(/<(script|style)>[\s\S]*?<\/\1>/g, "<$1></$1>").replace(/<!doctype html>/, "");
    const open: string[] = [];
    for (const [, close, tag, self] of markup.matchAll(/<(\/?)([a-z0-9]+)(?:\s[^<>]*?)?(\/?)>/g)) {
      if (self === "/" || ["meta", "link"].includes(tag ?? "")) continue;
      if (close === "/") assert.equal(open.pop(), tag);
      else open.push(tag ?? "");
    }
    assert.deepEqual(open, []);
    const ids = [...markup.matchAll(/\sid="([^"]+)"/g)].map((match) => match[1]);
    assert.equal(new Set(ids).size, ids.length);
    for (const [, id] of html.matchAll(/\$\("([\w-]+)"\)/g)) assert.ok(ids.includes(id), `#${id}`);
    for (const [, id] of markup.matchAll(/aria-labelledby="([^"]+)"/g)) assert.ok(ids.includes(id), `#${id}`);
    assert.match(markup, /<html lang="en">/);
    const script = /<script>([\s\S]*?)<\/script>/.exec(html)?.[1] ?? "";
    assert.doesNotThrow(() => new Script(script));
  });
});
