import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { describe, it } from "node:test";
import { Problem } from "../../infra/errors.js";
import type { Caller } from "../../services/api.js";
import type { BulkLine } from "../../services/http/index.js";
import { assertProblem, startHttp, until, type HttpTest } from "./http-support.js";

async function withHttp(options: Parameters<typeof startHttp>[0], run: (t: HttpTest) => Promise<void>): Promise<void> {
  const t = await startHttp(options);
  try {
    await run(t);
  } finally {
    await t.stop();
  }
}

async function openStream(
  t: HttpTest,
  path: string,
): Promise<{ response: http.IncomingMessage; text: () => string; ended: () => boolean }> {
  const request = http.get(`${t.url}${path}`, { agent: false });
  request.on("error", () => {});
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  let text = "";
  let ended = false;
  response.on("data", (chunk: Buffer) => (text += chunk.toString()));
  response.on("close", () => (ended = true));
  response.on("error", () => {});
  return { response, text: () => text, ended: () => ended };
}

describe("GET /v1/events", () => {
  it("sends events and heartbeats, and forgets a client that leaves", () =>
    withHttp({ limits: { eventHeartbeatMs: 20 } }, async (t) => {
      const { response, text } = await openStream(t, "/v1/events");
      assert.match(response.headers["content-type"] ?? "", /^text\/event-stream/);
      await until(() => t.datacenter.listeners.size === 1);
      t.datacenter.emit({ type: "ownership", data: { shard: 3, note: "two\nlines" } });
      await until(() => text().includes('event: ownership\ndata: {"shard":3,"note":"two\\nlines"}\n\n'));
      await until(() => text().split(": still here\n\n").length > 2);
      response.destroy();
      await until(() => t.datacenter.listeners.size === 0);
    }));

  it("ends when its token does, and counts against no rate meanwhile", () => {
    let refusal: Problem | undefined;
    const needs: { readonly again: boolean; readonly write: boolean }[] = [];
    const admit = (_request: unknown, need: { readonly again: boolean; readonly write: boolean }): Caller => {
      needs.push(need);
      if (refusal !== undefined) throw refusal;
      return { tenant: "", principal: "p" };
    };
    return withHttp({ admit, limits: { eventCheckMs: 10 } }, async (t) => {
      const { text, ended } = await openStream(t, "/v1/events");
      await until(() => needs.length > 3);
      assert.deepEqual(new Set(needs.slice(1).map(({ again }) => again)), new Set([true]));
      assert.equal(needs[0]?.again, false);
      // Whose token can't be judged now stays.
      refusal = new Problem("overloaded");
      const before = needs.length;
      await until(() => needs.length > before + 2);
      assert.equal(ended(), false);
      refusal = new Problem("unauthorized");
      await until(ended);
      assert.equal(t.datacenter.listeners.size, 0);
      assert.doesNotMatch(text(), /still here/);
    });
  });

  it("cuts off a client that doesn't read", () =>
    withHttp({ limits: { eventBytes: 50_000 } }, async (t) => {
      const socket = net.connect(t.port, "127.0.0.1");
      socket.on("error", () => {});
      socket.write("GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n");
      socket.pause();
      await until(() => t.datacenter.listeners.size === 1);
      const data = { text: "z".repeat(100_000) };
      await until(() => {
        t.datacenter.emit({ type: "job", data });
        return t.datacenter.listeners.size === 0;
      });
      socket.destroy();
    }));

  it("cuts off one that stopped reading after a while, however little it is behind", () =>
    withHttp(
      { limits: { eventBytes: 1_000_000_000, eventCheckMs: 10, eventHeartbeatMs: 20, stallMs: 50 } },
      async (t) => {
        const socket = net.connect(t.port, "127.0.0.1");
        socket.on("error", () => {});
        socket.write("GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n");
        socket.pause();
        await until(() => t.datacenter.listeners.size === 1);
        // More than the system keeps for it.
        const data = { text: "z".repeat(1_000_000) };
        for (let n = 0; n < 16; n++) t.datacenter.emit({ type: "job", data });
        await until(() => t.datacenter.listeners.size === 0, 10_000);
        socket.destroy();
        const { response, text } = await openStream(t, "/v1/events");
        await until(() => text().split(": still here\n\n").length > 5);
        response.destroy();
      },
    ));

  it("is bounded in number, and takes no room from other streams", () =>
    withHttp({ limits: { lanes: { work: 1, poll: 1, stream: 1, events: 1, admin: 1 } } }, async (t) => {
      const { response } = await openStream(t, "/v1/events");
      assertProblem(await t.ask("GET", "/v1/events"), 503, "overloaded");
      assert.equal((await t.ask("GET", "/v1/verify")).status, 200);
      response.destroy();
    }));
});

describe("GET /v1/verify", () => {
  it("streams a line per shard and copy, at the client's pace", () =>
    withHttp({}, async (t) => {
      t.datacenter.verifyLines = 20_000;
      const got = await t.ask("GET", "/v1/verify");
      const lines = got.text.trimEnd().split("\n");
      assert.equal(lines.length, 20_000);
      assert.deepEqual(JSON.parse(lines[7] ?? ""), {
        shard: 7,
        dc: "east",
        epoch: 1,
        position: 5,
        equal: true,
        clusters: [],
      });
    }));

  it("is cut when its client stops reading, and leaves its place to others", () => {
    const limits = { stallMs: 50, lanes: { work: 1, poll: 1, stream: 1, events: 1, admin: 1 } };
    return withHttp({ limits }, async (t) => {
      // More than the system keeps for a client.
      t.datacenter.verifyLines = 300_000;
      const socket = net.connect(t.port, "127.0.0.1");
      socket.on("error", () => {});
      socket.write("GET /v1/verify HTTP/1.1\r\nhost: x\r\n\r\n");
      socket.pause();
      await once(socket, "readable");
      // It has its place, and stands still.
      t.datacenter.verifyLines = 1;
      const end = performance.now() + 10_000;
      while ((await t.ask("GET", "/v1/verify")).status === 503)
        assert.ok(performance.now() < end, "it keeps its place");
      let received = "";
      socket.on("data", (chunk: Buffer) => (received = received.slice(-100) + chunk.toString("latin1"))).resume();
      await once(socket, "close");
      assert.ok(!received.endsWith("0\r\n\r\n"), "a part was ended like the whole");
    });
  });

  it("is cut when it fails on the way, and tells nothing of ours", () =>
    withHttp({}, async (t) => {
      t.datacenter.verifyFails = true;
      const { response, text, ended } = await openStream(t, "/v1/verify");
      await until(ended);
      assert.equal(response.complete, false);
      assert.doesNotMatch(text(), /secret/);
    }));
});

describe("POST /v1/clusters/bulk", () => {
  it("is absent until the datacenter has it", () =>
    withHttp({}, async (t) => {
      const headers = { "content-type": "application/x-ndjson" };
      assertProblem(await t.ask("POST", "/v1/clusters/bulk", { raw: "{}\n", headers }), 404, "not_found");
      assertProblem(await t.ask("POST", "/v1/clusters/bulk", { raw: "{}\n" }), 415, "unsupported_media_type");
    }));

  it("gives rows in order, with the faults of each, and answers line by line", () =>
    withHttp(
      {
        extensions: {
          async *bulk(_context, rows): AsyncIterable<BulkLine> {
            for await (const row of rows) {
              if ("errors" in row)
                yield {
                  line: row.line,
                  status: 400,
                  code: "invalid_request",
                  detail: row.errors.map((fault) => fault.path).join(" "),
                };
              else yield { line: row.line, id: row.id ?? "none", status: 201, version: 1 };
            }
          },
        },
      },
      async (t) => {
        const raw =
          '{"id":"a","name":"x","spec":{}}\n\n{"id":"b","name":3,"spec":{}}\r\n{nonsense\n{"id":"c","name":"é","spec":{}}';
        const got = await t.ask("POST", "/v1/clusters/bulk", {
          raw,
          headers: { "content-type": "application/x-ndjson" },
        });
        assert.equal(got.status, 200);
        assert.deepEqual(
          got.text
            .trimEnd()
            .split("\n")
            .map((line) => JSON.parse(line) as unknown),
          [
            { line: 1, id: "a", status: 201, version: 1 },
            { line: 3, status: 400, code: "invalid_request", detail: "/name" },
            { line: 4, status: 400, code: "invalid_request", detail: "" },
            { line: 5, id: "c", status: 201, version: 1 },
          ],
        );
        const long = await t.ask("POST", "/v1/clusters/bulk", {
          raw: "x".repeat(20_000),
          headers: { "content-type": "application/x-ndjson" },
        });
        assertProblem(long, 413, "payload_too_large");
      },
    ));
});

describe("Long poll", () => {
  it("ends when the client hangs up", () =>
    withHttp({}, async (t) => {
      const body = '{"workerId":"w1","waitMs":60000}';
      const socket = net.connect(t.port, "127.0.0.1");
      socket.write(
        `POST /v1/tasks/take HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
      );
      await until(() => t.datacenter.asked.length === 1);
      // The default deadline is added to the wait.
      assert.deepEqual(t.datacenter.last?.what, { workerId: "w1", waitMs: 60_000, max: 1 });
      socket.destroy();
      await until(() => t.datacenter.takeAborted);
    }));
});

describe("Drain", () => {
  it("says so first, answers what was accepted, refuses the rest, closes connections", async () => {
    const t = await startHttp();
    const agent = new http.Agent({ keepAlive: true });
    const body = { name: "a", spec: {} };
    await t.ask("PUT", "/v1/clusters/c0", { body, agent });
    const events = await openStream(t, "/v1/events");
    const poll = t.ask("POST", "/v1/tasks/take", { body: { workerId: "w1", waitMs: 60_000 } });
    let release = (): void => {};
    t.datacenter.before = () => new Promise<void>((resolve) => (release = resolve));
    const held = t.ask("PUT", "/v1/clusters/c1", { body });
    await until(() => t.datacenter.asked.length === 3);
    const drained = t.http.drain();
    const ready = await t.ask("GET", "/readyz");
    assert.equal(ready.status, 503);
    assert.equal(ready.json["reason"], "draining");
    assert.equal((await t.ask("GET", "/livez")).status, 200);
    const refused = await t.ask("PUT", "/v1/clusters/c2", { body });
    assertProblem(refused, 503, "draining");
    assert.equal(refused.headers["connection"], "close");
    assert.equal((await poll).status, 200);
    await until(events.ended);
    release();
    const answered = await held;
    assert.equal(answered.status, 201);
    assert.equal(answered.headers["connection"], "close");
    await drained;
    await Promise.all([t.stop(), t.stop()]);
    agent.destroy();
    await assert.rejects(t.ask("GET", "/livez"), { code: "ECONNREFUSED" });
  });

  it("cuts a stream whose source ends with it, and refuses one that has said nothing: no part is taken for the whole", async () => {
    const t = await startHttp({
      extensions: {
        // Reads until it is told to stop, and answers what came before.
        async *bulk(_context, rows, signal): AsyncIterable<BulkLine> {
          for await (const row of rows) {
            if (row.line === 1 && "id" in row && row.id === "a") yield { line: 1, id: "a", status: 201, version: 1 };
            await once(signal, "abort");
            if (signal.aborted) return;
          }
        },
      },
    });
    const begin = (id: string): http.ClientRequest => {
      const sent = http.request({
        ...{ port: t.port, host: "127.0.0.1", method: "POST", path: "/v1/clusters/bulk" },
        headers: { "content-type": "application/x-ndjson" },
      });
      sent.on("error", () => undefined);
      sent.write(`{"id":"${id}","name":"n","spec":{}}\n{"id":"z","name":"n","spec":{}}\n`);
      return sent;
    };
    const told = begin("a");
    const [first] = (await once(told, "response")) as [http.IncomingMessage];
    const silent = begin("b");
    const answered = once(silent, "response") as Promise<[http.IncomingMessage]>;
    first.on("error", () => undefined).resume();
    const over = new Promise((resolve) => first.once("close", resolve));
    await new Promise((resolve) => setTimeout(resolve, 50));
    const stopped = t.http.drain();
    await over;
    assert.equal(first.complete, false, "cut, not ended");
    const [second] = await answered;
    assert.equal(second.statusCode, 503);
    second.resume();
    silent.destroy();
    await stopped;
    await t.stop();
  });

  it("cuts off what does not end in time", async () => {
    const t = await startHttp({ config: { drainMs: 30, defaultTimeoutMs: 300 }, limits: { graceMs: 100 } });
    t.datacenter.before = () => new Promise<void>(() => {});
    const held = t.ask("PUT", "/v1/clusters/c1", { body: { name: "a", spec: {} } });
    const failed = assert.rejects(held);
    await until(() => t.datacenter.asked.length === 1);
    await t.stop();
    await failed;
  });
});
