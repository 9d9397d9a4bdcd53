import assert from "node:assert/strict";
import { createServer } from "node:http";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { afterEach, describe, it } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger, type Logger } from "../../infra/logger.js";
import { openTracing, wantsTracing, type Tracing } from "../../infra/tracing.js";
import { FakeCollector } from "../harness/collector.js";

const traceId = "0af7651916cd43dd8448eb211c80319c";
const parent = (flags: string): string => `00-${traceId}-b7ad6b7169203331-${flags}`;

/** The exporter reads these itself. */
const variables = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_SERVICE_NAME"];

function open(endpoint: string, warnings: string[] = []): Promise<Tracing | undefined> {
  process.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint;
  process.env["OTEL_EXPORTER_OTLP_TIMEOUT"] = "300";
  const log: Logger = { ...silentLogger, warn: (event) => void warnings.push(event), with: () => log };
  return openTracing({ environment: process.env, resource: {}, time: systemTime, log });
}

describe("traces", () => {
  afterEach(() => {
    for (const name of variables) delete process.env[name];
  });

  it("are made where an exporter is configured, and nowhere else", async () => {
    const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:4318" };
    for (const [environment, wanted] of [
      [{}, false],
      [{ OTEL_SERVICE_NAME: "x" }, false],
      [{ OTEL_EXPORTER_OTLP_ENDPOINT: "" }, false],
      [endpoint, true],
      [{ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "http://127.0.0.1:4318/v1/traces" }, true],
      [{ ...endpoint, OTEL_TRACES_EXPORTER: "otlp" }, true],
      [{ ...endpoint, OTEL_TRACES_EXPORTER: "none" }, false],
      [{ ...endpoint, OTEL_SDK_DISABLED: "true" }, false],
    ] as const)
      assert.equal(wantsTracing(environment), wanted, JSON.stringify(environment));
    const options = { environment: {}, resource: {}, time: systemTime, log: silentLogger };
    assert.equal(await openTracing(options), undefined);
  });

  it("go on where a caller's began, and are kept only if that is", async () => {
    const collector = await FakeCollector.start();
    try {
      process.env["OTEL_SERVICE_NAME"] = "named";
      const tracing = await open(collector.url);
      assert.ok(tracing !== undefined);
      const kept = tracing.begin("kept", "server", parent("01"), { a: 1 });
      assert.match(kept.traceparent, new RegExp(`^00-${traceId}-[0-9a-f]{16}-01$`));
      tracing.record("step", "internal", kept.traceparent, 5, { b: "x" }, "overloaded");
      kept.end({ c: true });
      const stated = tracing.begin("stated", "server", `${parent("01")} vendor=1,b@c=x y`);
      assert.match(stated.traceparent, new RegExp(`^00-${traceId}-[0-9a-f]{16}-01 vendor=1,b@c=x y$`));
      tracing.record("step of stated", "internal", stated.traceparent, 5, {});
      stated.end();
      const left = tracing.begin("left out", "server", parent("00"));
      assert.match(left.traceparent, new RegExp(`^00-${traceId}-[0-9a-f]{16}-00$`));
      tracing.record("step of none", "internal", left.traceparent, 5, {});
      tracing.record("step of nothing", "internal", null, 5, {});
      left.end();
      for (const wrong of [
        `00-${"0".repeat(32)}-b7ad6b7169203331-01`,
        "nonsense",
        `ff${parent("01").slice(2)}`,
        null,
      ]) {
        const own = tracing.begin("own", "server", wrong);
        assert.match(own.traceparent, /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
        assert.ok(!own.traceparent.includes(traceId) && !own.traceparent.includes("0".repeat(32)));
        own.end();
      }
      await tracing.close();
      const names = collector.spans.map((span) => span.name).sort();
      assert.deepEqual(names, ["kept", "own", "own", "own", "own", "stated", "step", "step of stated"]);
      const [first] = collector.spans.filter((span) => span.name === "kept");
      const [step] = collector.spans.filter((span) => span.name === "step");
      assert.deepEqual([first?.parentSpanId, first?.service], ["b7ad6b7169203331", "named"]);
      assert.deepEqual(first?.attributes, { a: 1, c: true });
      assert.deepEqual([step?.parentSpanId, step?.fault], [first?.spanId, "overloaded"]);
    } finally {
      collector.stop();
    }
  });

  it("hurt nobody when the collector is away, is silent, or is none at all", async () => {
    const silent = createServer(() => undefined);
    silent.listen(0, "127.0.0.1");
    await once(silent, "listening");
    try {
      for (const endpoint of [
        "http://127.0.0.1:1",
        `http://127.0.0.1:${(silent.address() as AddressInfo).port}`,
        "no address",
      ]) {
        const warnings: string[] = [];
        const tracing = await open(endpoint, warnings);
        for (let i = 0; i < 5_000; i++) tracing?.begin("lost", "server", null).end();
        await tracing?.close();
        assert.ok(warnings.length >= 1 && warnings.length <= 2, `${endpoint}: ${warnings.join(", ")}`);
      }
    } finally {
      silent.close();
      silent.closeAllConnections();
    }
  });
});
