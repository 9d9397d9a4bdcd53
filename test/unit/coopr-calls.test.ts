import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import test from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { addressOf, TenantCalls } from "../../services/coopr/tenant-calls.js";
import { assertProblem, startHttp } from "./http-support.js";

test("only a host's name or address with a port is called", () => {
  const href = (host: string, port: number): string | undefined => addressOf({ host, port }, "a b")?.href;
  assert.equal(href("10.0.0.7", 8080), "http://10.0.0.7:8080/v2/tenants/a%20b");
  assert.equal(href("node_1.example-host.com", 1), "http://node_1.example-host.com:1/v2/tenants/a%20b");
  assert.equal(href("::1", 65_535), "http://[::1]:65535/v2/tenants/a%20b");
  const hosts = ["internal/admin/y?", "a@b", "a#", "h:80", "", "a b", "%2e", "[::1]", "1:2:3", "999.1.1.1", "a\\b"];
  for (const host of hosts) assert.equal(href(host, 80), undefined, host);
  for (const port of [0, -1, 1.5, 65_536, Number.NaN]) assert.equal(href("h", port), undefined, String(port));
});

test("a registration with another address makes no request", async () => {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    response.end();
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const { port } = server.address() as AddressInfo;
    const calls = new TenantCalls({ tenants: ["superadmin"], time: systemTime, log: silentLogger });
    await calls.withdraw({ id: "y", capacity: 1, host: `127.0.0.1:${port}/admin/y?`, port: 1 });
    assert.deepEqual(asked, []);
    await calls.withdraw({ id: "p", capacity: 1, host: "127.0.0.1", port });
    assert.deepEqual(asked, ["DELETE /v2/tenants/superadmin"]);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test("nobody registers as a provisioner, or works as one, by way of /v1", async () => {
  const t = await startHttp();
  try {
    const labels = { host: "internal/admin/y?", port: "1" };
    assertProblem(await t.ask("PUT", "/v1/workers/coopr:x", { body: { labels } }), 400, "invalid_request");
    assertProblem(await t.ask("POST", "/v1/workers/coopr:x/heartbeat"), 400, "invalid_request");
    assertProblem(await t.ask("POST", "/v1/tasks/take", { body: { workerId: "coopr:x" } }), 400, "invalid_request");
    assert.equal(t.datacenter.asked.length, 0);
    for (const id of ["cooper:x", "a.coopr:x", "Coopr:x"])
      assert.equal((await t.ask("PUT", `/v1/workers/${id}`, { body: {} })).status, 200);
  } finally {
    await t.stop();
  }
});
