import assert from "node:assert/strict";
import { it } from "node:test";
import { Problem } from "../../infra/errors.js";
import type { AuditEntry } from "../../services/access/audit.js";
import { audited } from "../../services/access/audited.js";
import type { Reply } from "../../services/api.js";
import type { ApiDocument } from "../harness/openapi.js";
import { startHttp } from "./http-support.js";

/** Everything that changes what the group is, with a request of each, and what the trail calls it. */
const actions: readonly (readonly [string, string, object | undefined, string])[] = [
  ["POST", "/v1/switchovers", { dc: "east", to: "west" }, "switchover"],
  ["POST", "/v1/switchovers/{id}/cancel", undefined, "switchover cancel"],
  ["POST", "/v1/drains", { dc: "east" }, "drain"],
  ["POST", "/v1/drains/{id}/cancel", undefined, "drain cancel"],
  ["POST", "/v1/failbacks", { dc: "east" }, "failback"],
  ["POST", "/v1/failbacks/{id}/cancel", undefined, "failback cancel"],
  ["POST", "/v1/rebalances", {}, "rebalance"],
  ["POST", "/v1/rebalances/{id}/cancel", undefined, "rebalance cancel"],
  ["POST", "/v1/takeovers", { dc: "east" }, "takeover"],
  ["POST", "/v1/takeovers/{id}/cancel", undefined, "takeover cancel"],
  ["PUT", "/v1/failover", { paused: true }, "failover pause"],
  ["PUT", "/v1/failover", { paused: false }, "failover resume"],
  ["POST", "/v1/repair", { shard: 1 }, "repair"],
  ["POST", "/v1/divergent-operations/{id}/replay", undefined, "divergence replay"],
  ["POST", "/v1/divergent-operations/{id}/discard", undefined, "divergence discard"],
  ["POST", "/v1/datacenters", { name: "north" }, "dc add"],
  ["DELETE", "/v1/datacenters/{name}", undefined, "dc remove"],
  ["POST", "/v1/tokens", { scopes: ["read"] }, "token add"],
  ["DELETE", "/v1/tokens/{id}", undefined, "token remove"],
  ["PUT", "/v1/tenants/{id}", { maxClusters: 1, writesPerSecond: null }, "tenant set"],
];

const features = [
  ...["startMove", "cancelMove", "setFailover", "repair", "replayDivergent", "discardDivergent"],
  ...["addDatacenter", "removeDatacenter", "addToken", "removeToken", "putTenant"],
];

it("every operator's action leaves one entry of the audit trail, with who, what and its result, done or refused", async () => {
  const entries: AuditEntry[] = [];
  const begun: AuditEntry[] = [];
  let refuses: Error | undefined;
  let acted: readonly AuditEntry[] = [];
  const act = async (): Promise<Reply> => {
    acted = [...begun];
    if (refuses !== undefined) throw refuses;
    return { status: 200, body: { id: "x1", status: "ok" }, servedBy: "east/n1" };
  };
  let ids = 0;
  const t = await startHttp({
    admit: () => ({ tenant: "", principal: "olga" }),
    extensions: audited(Object.fromEntries(features.map((name) => [name, act])), {
      dc: "east",
      begin: async (entry) => void begun.push(entry),
      note: async (entry) => void entries.push(entry),
      newId: () => `a-${++ids}`,
      wall: () => Date.parse("2030-01-01T00:00:00Z"),
    }),
  });
  try {
    for (const result of ["ok", "already_moving", "internal"] as const)
      for (const [method, path, body, action] of actions) {
        refuses =
          result === "ok" ? undefined : result === "internal" ? new Error("secret") : new Problem("already_moving");
        entries.length = begun.length = 0;
        const where = path.replace("{name}", "north").replace("{id}", "x1");
        const answer = await fetch(t.url + where, {
          method,
          headers: { "content-type": "application/json", "x-request-id": "r-1" },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        });
        assert.equal(answer.ok, result === "ok", `${method} ${path}: ${await answer.text()}`);
        assert.deepEqual(
          entries.map((entry) => [entry.who, entry.dc, entry.action, entry.result, entry.requestId, entry.at]),
          [["olga", "east", action, result, "r-1", "2030-01-01T00:00:00.000Z"]],
          `${method} ${path}`,
        );
        // It stands there before it is done, in the same entry; a long operation is stored itself.
        const long = /^(switchover|drain|failback|rebalance|takeover)$/.test(action);
        assert.deepEqual(
          acted.map((entry) => [entry.id, entry.action, entry.result]),
          long ? [] : [[entries[0]?.id, action, "begun"]],
        );
        assert.doesNotMatch(JSON.stringify(entries), /secret/);
      }
    // What the table lacks is no operator's action.
    const document = (await (await fetch(`${t.url}/openapi.json`)).json()) as ApiDocument;
    const known = new Set(actions.map(([method, path]) => `${method} ${path}`));
    const others = Object.entries(document.paths)
      .flatMap(([path, item]) => Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`))
      .filter((each) => !each.startsWith("GET ") && !known.has(each));
    for (const each of others) assert.match(each, / \/v1\/(clusters|jobs|workers|tasks)\b/);
  } finally {
    await t.stop();
  }
});
