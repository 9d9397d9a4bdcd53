import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import test, { type TestContext } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import { Client, ClientError } from "../../routing/client/client.js";
import { createWorker, type Handler, type Task, type WorkerOptions } from "../../routing/client/worker.js";
import { Transport } from "../../routing/client/transport.js";
import { simulatedHandler } from "../../services/jobs/builtin-worker.js";

interface Seen {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: Record<string, unknown>;
}
type Reply = { status: number; body?: unknown; headers?: Record<string, string> } | "hang up";

/** A server that answers as the test says, and tells what it was asked. */
class FakeService {
  readonly seen: Seen[] = [];
  readonly tasks: Task[] = [];
  finish: (seen: Seen) => Reply = () => ({ status: 200, body: { leaseMs: 0, stop: false } });
  heartbeat: (seen: Seen) => Reply = () => ({ status: 200, body: { leaseMs: 300, stop: false } });
  take: (seen: Seen) => Reply | undefined = () => undefined;
  other: (seen: Seen) => Reply = () => ({ status: 404, body: { code: "not_found", retryable: false } });
  readonly #server: Server;

  constructor() {
    this.#server = createServer((request, response) => {
      void (async () => {
        const chunks: Buffer[] = [];
        for await (const chunk of request) chunks.push(chunk as Buffer);
        const text = Buffer.concat(chunks).toString();
        const body = (text === "" ? {} : JSON.parse(text)) as Record<string, unknown>;
        const seen: Seen = { method: request.method ?? "", path: request.url ?? "", headers: request.headers, body };
        this.seen.push(seen);
        const reply = await this.#reply(seen, () => request.socket.destroyed);
        if (reply === "hang up") return void request.socket.destroy();
        response.writeHead(reply.status, { "content-type": "application/json", ...reply.headers });
        response.end(reply.body === undefined ? undefined : JSON.stringify(reply.body));
      })();
    });
  }

  static async start(context: TestContext): Promise<FakeService> {
    const service = new FakeService();
    service.#server.listen(0, "127.0.0.1");
    await once(service.#server, "listening");
    context.after(() => {
      service.#server.closeAllConnections();
      service.#server.close();
    });
    return service;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  of(end: string): Seen[] {
    return this.seen.filter((seen) => seen.path.endsWith(end));
  }

  add(task: Partial<Task> = {}): Task {
    const number = this.tasks.length + 1;
    const whole: Task = {
      id: `j1-abcdefgh.1.${number}`,
      jobId: "j1-abcdefgh",
      clusterId: "c1",
      name: "CREATE",
      node: "n1",
      stage: "CREATE",
      attempt: 1,
      token: "1.1.1",
      input: { fence: "1.1" },
      leaseMs: 300,
      ...task,
    };
    this.tasks.push(whole);
    return whole;
  }

  async #reply(seen: Seen, gone: () => boolean): Promise<Reply> {
    if (seen.path.startsWith("/v1/workers/")) return { status: 200, body: {}, headers: { "hothot-position": "3:1:7" } };
    if (seen.path.endsWith("/heartbeat")) return this.heartbeat(seen);
    if (seen.path.endsWith("/finish")) return this.finish(seen);
    if (seen.path !== "/v1/tasks/take") return this.other(seen);
    const answer = this.take(seen);
    if (answer !== undefined) return answer;
    const until = Date.now() + Math.min(300, Number(seen.body["waitMs"]));
    while (this.tasks.length === 0 && Date.now() < until && !gone()) await systemTime.sleep(5);
    return { status: 200, body: { tasks: gone() ? [] : this.tasks.splice(0, Number(seen.body["max"])) } };
  }
}

async function until(what: string, condition: () => boolean, ms = 5_000): Promise<void> {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) assert.fail(`not within ${ms} ms: ${what}`);
    await systemTime.sleep(5);
  }
}

function work(
  context: TestContext,
  service: FakeService,
  handlers: Record<string, Handler>,
  more: Partial<WorkerOptions> = {},
) {
  const worker = createWorker({
    urls: service.url,
    id: "w1",
    concurrency: 2,
    handlers,
    log: silentLogger,
    random: seededRandom(1),
    stopMs: 200,
    ...more,
  });
  context.after(() => worker.stop());
  return worker;
}

test("a worker registers, takes, runs its handler and finishes", async (context) => {
  const service = await FakeService.start(context);
  service.add();
  service.add({ name: "CONFIRM" });
  const fences: string[] = [];
  const handlers: Record<string, Handler> = {
    CREATE: async (_task, { fence }) => {
      fences.push(fence);
      return { result: { ip: "10.0.0.1" }, stdout: "made" };
    },
    CONFIRM: async () => {
      throw Object.assign(new Error("no route"), { stdout: "tried" });
    },
  };
  work(context, service, handlers, { token: "secret", labels: { zone: "a" }, capacity: 7 });
  await until("both are finished", () => service.of("/finish").length === 2);
  const [put] = service.seen;
  assert.deepEqual(
    [put?.method, put?.path, put?.body],
    ["PUT", "/v1/workers/w1", { capacity: 7, labels: { zone: "a" } }],
  );
  assert.equal(put?.headers.authorization, "Bearer secret");
  const take = service.of("/take")[0];
  assert.deepEqual(take?.body, { workerId: "w1", waitMs: 20_000, max: 2, names: ["CREATE", "CONFIRM"] });
  assert.equal(take?.headers["hothot-min-position"], "3:1:7");
  const [ok, failed] = service.of("/finish").sort((a, b) => (a.path < b.path ? -1 : 1));
  assert.deepEqual(ok?.body, {
    token: "1.1.1",
    workerId: "w1",
    status: "ok",
    result: { ip: "10.0.0.1" },
    stdout: "made",
  });
  assert.deepEqual(failed?.body, {
    token: "1.1.1",
    workerId: "w1",
    status: "failed",
    stdout: "tried",
    stderr: "no route",
  });
  assert.deepEqual(fences, ["1.1"]);
});

test("never more tasks at once than its concurrency", async (context) => {
  const service = await FakeService.start(context);
  for (let i = 0; i < 9; i++) service.add();
  let now = 0;
  let most = 0;
  const handler: Handler = async () => {
    most = Math.max(most, ++now);
    await systemTime.sleep(20);
    now--;
    return undefined;
  };
  work(context, service, { "*": handler }, { concurrency: 3 });
  await until("all are finished", () => service.of("/finish").length === 9);
  assert.equal(most, 3);
  for (const take of service.of("/take")) {
    assert(Number(take.body["max"]) <= 3 && Number(take.body["max"]) >= 1);
    assert.equal("names" in take.body, false);
  }
});

test("heartbeats hold the lease; one that says stop aborts the handler, and nothing is finished", async (context) => {
  const service = await FakeService.start(context);
  const task = service.add({ leaseMs: 150 });
  let beats = 0;
  service.heartbeat = () => ({ status: 200, body: { leaseMs: 150, stop: ++beats >= 4 } });
  let aborted = false;
  const worker = work(context, service, {
    CREATE: async (_task, { signal }) => {
      await systemTime.sleep(10_000, signal);
      aborted = signal.aborted;
      signal.throwIfAborted();
      return undefined;
    },
  });
  await until("the handler is aborted", () => aborted);
  await until("the task is over", () => worker.running === 0);
  assert.equal(beats, 4);
  assert.deepEqual(service.of("/finish"), []);
  assert.deepEqual(service.of("/heartbeat")[0]?.body, { token: task.token, workerId: "w1" });
});

test("a finish is repeated until it is answered, with the same token; a stale one is dropped", async (context) => {
  const service = await FakeService.start(context);
  service.add();
  const replies: Reply[] = [
    "hang up",
    { status: 500 },
    { status: 503, body: { code: "owner_unreachable", retryable: true } },
    { status: 504, body: { code: "outcome_unknown", retryable: true } },
    { status: 200, body: {} },
  ];
  service.finish = () => replies.shift() ?? { status: 409, body: { code: "stale_token", retryable: false } };
  const worker = work(context, service, { CREATE: async () => undefined });
  await until("answered", () => replies.length === 0 && worker.running === 0);
  assert.equal(service.of("/finish").length, 5);
  assert.equal(new Set(service.of("/finish").map((seen) => JSON.stringify(seen.body))).size, 1);
  service.add();
  await until("refused", () => service.of("/finish").length === 6 && worker.running === 0);
  service.add();
  await until("it goes on", () => service.of("/finish").length === 7);
});

test("of what a handler printed the end is sent, without what can't be stored; good work stays good", async (context) => {
  const service = await FakeService.start(context);
  service.add();
  service.add({ name: "FAIL" });
  const at = new Date(0);
  const printed = `first${"x".repeat(600_000)}a\u0000b\ud800c\u{1F600}`;
  const worker = work(context, service, {
    CREATE: async () => ({
      result: { at, "k\u0000": "\udc00" },
      stdout: printed,
      stderr: `${"\u{1F600}".repeat(40_000)}y`,
    }),
    FAIL: async () => {
      throw Object.assign(new Error("no route"), { stderr: printed });
    },
  });
  await until("both are finished", () => service.of("/finish").length === 2 && worker.running === 0);
  const [ok, failed] = service.of("/finish").sort((a, b) => (a.path < b.path ? -1 : 1));
  assert.equal(ok?.body["status"], "ok");
  assert.deepEqual(ok.body["result"], { at: at.toISOString(), "k\uFFFD": "\uFFFD" });
  assert.equal(ok.body["stdout"], `${"x".repeat(63_993)}a\uFFFDb\uFFFDc\u{1F600}`);
  // Cut within a pair of surrogates.
  assert.equal(ok.body["stderr"], `\uFFFD${"\u{1F600}".repeat(31_999)}y`);
  assert.equal(failed?.body["status"], "failed");
  assert.equal(String(failed.body["stderr"]).length, 64_000);
  assert.match(String(failed.body["stderr"]), /a\uFFFDb\uFFFDc\u{1F600}\nno route$/u);
});

test("a finish that is refused as too large or wrong comes as a lesser one, and at last as a failed one", async (context) => {
  const service = await FakeService.start(context);
  const refusal = (status: number, code: string, detail: string): Reply => ({
    status,
    body: { code, detail, retryable: false },
  });
  const sent = (): unknown[] =>
    service.of("/finish").map(({ body }) => [body["status"], body["stdout"], body["stderr"]]);
  const long = "\u0001".repeat(64_000);
  // Too much of stderr alone.
  service.finish = ({ body }) =>
    String(body["stderr"]).length > 10_000 ? refusal(413, "payload_too_large", "too much") : { status: 200, body: {} };
  const worker = work(context, service, {
    CREATE: async () => ({ stderr: long }),
    RESULT: async () => ({ result: { text: "x".repeat(70_000) }, stdout: "done" }),
    CYCLE: async () => {
      const result: Record<string, unknown> = {};
      return { result: Object.assign(result, { result }) };
    },
  });
  service.add();
  await until("good work is kept", () => service.of("/finish").length === 2 && worker.running === 0);
  assert.deepEqual(sent()[1], ["ok", undefined, "\u0001".repeat(2_000)]);
  for (const status of [400, 413] as const) {
    service.seen.length = 0;
    service.finish = ({ body }) =>
      body["status"] === "ok" ? refusal(status, "any", "A task's result is bounded.") : { status: 200, body: {} };
    service.add({ name: "RESULT" });
    await until("it has failed", () => service.of("/finish").length === 2 && worker.running === 0);
    const reason = `the finish of this try (ok) was refused with ${status}: A task's result is bounded.`;
    assert.deepEqual(sent()[1], ["failed", undefined, reason]);
  }
  service.seen.length = 0;
  service.finish = () => ({ status: 200, body: {} });
  service.add({ name: "CYCLE" });
  await until("what can't be sent has failed", () => service.of("/finish").length === 1 && worker.running === 0);
  assert.match(JSON.stringify(sent()), /failed.*circular/);
  // Whatever is refused for ever is given up.
  service.seen.length = 0;
  service.finish = () => refusal(400, "invalid_request", "never");
  service.add();
  await until("it is given up", () => service.of("/finish").length === 3 && worker.running === 0);
});

test("the next URL is used when one fails, and stays in use", async (context) => {
  const first = await FakeService.start(context);
  const second = await FakeService.start(context);
  first.add();
  let down = false;
  first.take = () => (down ? "hang up" : undefined);
  first.finish = () => {
    down = true;
    return { status: 503, body: { code: "draining", retryable: true } };
  };
  work(context, first, { CREATE: async () => undefined }, { urls: [first.url, second.url] });
  await until("the finish arrived at the second", () => second.of("/finish").length === 1);
  second.add();
  await until("takes go there too", () => second.of("/finish").length === 2);
});

test("a service that does not know the worker any more gets its registration again", async (context) => {
  const service = await FakeService.start(context);
  let known = true;
  service.take = () => {
    if (known) return undefined;
    known = true;
    return { status: 404, body: { code: "not_found", retryable: false } };
  };
  work(context, service, { CREATE: async () => undefined });
  await until("it takes", () => service.of("/take").length > 0);
  known = false;
  await until("registered twice", () => service.of("/w1").length === 2);
  service.add();
  await until("it works on", () => service.of("/finish").length === 1);
});

test("a task that is offered anew ends what the earlier try had still to say", async (context) => {
  const service = await FakeService.start(context);
  let runs = 0;
  service.finish = (seen) => (seen.body["stderr"] === "first" ? "hang up" : { status: 200, body: {} });
  const worker = work(context, service, {
    CREATE: async () => {
      if (++runs === 1) throw new Error("first");
      return undefined;
    },
  });
  service.add({ id: "j1-abcdefgh.1.1" });
  await until("the first finish is tried", () => service.of("/finish").length >= 1);
  service.add({ id: "j1-abcdefgh.1.1" });
  await until("the second is through", () => service.of("/finish").some((seen) => seen.body["status"] === "ok"));
  await until("nothing runs", () => worker.running === 0);
  const after = service.of("/finish").findIndex((seen) => seen.body["status"] === "ok");
  assert.equal(service.of("/finish").slice(after + 1).length, 0);
});

test("a stop takes nothing more, waits for what runs, then aborts it", async (context) => {
  const service = await FakeService.start(context);
  service.add();
  service.add({ name: "SLOW" });
  const worker = work(context, service, {
    CREATE: async () => {
      await systemTime.sleep(60);
      return undefined;
    },
    SLOW: async (_task, { signal }) => {
      await systemTime.sleep(60_000, signal);
      signal.throwIfAborted();
      return undefined;
    },
  });
  await until("both run", () => worker.running === 2);
  await Promise.all([worker.stop(), worker.stop()]);
  const statuses = service.of("/finish").map((seen) => seen.body["status"]);
  assert.deepEqual(statuses, ["ok", "failed"]);
  const takes = service.of("/take").length;
  service.add();
  await systemTime.sleep(50);
  assert.equal(service.of("/take").length, takes);
});

test("the simulated handler gives plausible results, the same for the same node", async () => {
  const run = simulatedHandler({ taskMs: 1, failurePercent: 0, time: systemTime, random: seededRandom(1) });
  const signal = new AbortController().signal;
  const task = { name: "CREATE", node: "n1", clusterId: "c1" } as Task;
  const first = await run(task, { signal, fence: "1.1" });
  const second = await run(task, { signal, fence: "2.2" });
  assert.deepEqual(first?.result, second?.result);
  assert.match(JSON.stringify(first?.result), /"access_v4":"10\.\d+\.\d+\.\d+"/);
  const failing = simulatedHandler({ taskMs: 0, failurePercent: 100, time: systemTime, random: seededRandom(1) });
  await assert.rejects(failing(task, { signal, fence: "1.1" }), /simulated failure of CREATE/);
});

test("the client repeats a write under one key until it is answered, and fails over", async (context) => {
  const service = await FakeService.start(context);
  const replies: Reply[] = [
    "hang up",
    { status: 503, body: { code: "owner_unreachable", retryable: true } },
    { status: 504, body: { code: "outcome_unknown", retryable: true } },
  ];
  service.other = () =>
    replies.shift() ?? {
      status: 201,
      body: { id: "c1", version: 1 },
      headers: { "hothot-position": "1:2:3", "hothot-served-by": "east/n1" },
    };
  const client = new Client({ urls: ["http://127.0.0.1:1", service.url], timeoutMs: 5_000, random: seededRandom(1) });
  const result = await client.putCluster("c1", { name: "c", spec: {} }, { version: 4, durability: "replicated" });
  assert.deepEqual([result.status, result.value.id, result.position, result.servedBy], [201, "c1", "1:2:3", "east/n1"]);
  const puts = service.of("/v1/clusters/c1");
  assert.equal(puts.length, 4);
  assert.equal(new Set(puts.map((seen) => seen.headers["idempotency-key"])).size, 1);
  assert.equal(puts[0]?.headers["if-match"], '"4"');
  assert.equal(puts[0]?.headers["hothot-durability"], "replicated");
  assert(Number(puts[0]?.headers["hothot-timeout-ms"]) > 0);
  await client.startJob("c1", { type: "stop" });
  const other = service.of("/operations")[0]?.headers["idempotency-key"];
  assert.notEqual(other, puts[0]?.headers["idempotency-key"]);
});

test("the client gives up on a refusal at once, and on silence in time", async (context) => {
  const service = await FakeService.start(context);
  service.other = () => ({ status: 409, body: { code: "job_in_progress", detail: "one runs", retryable: false } });
  const client = new Client({ urls: [service.url], timeoutMs: 400 });
  await assert.rejects(client.startJob("c1", { type: "stop" }), (error: unknown) => {
    assert(error instanceof ClientError);
    assert.deepEqual(
      [error.code, error.status, error.retryable, error.message],
      ["job_in_progress", 409, false, "one runs"],
    );
    return true;
  });
  assert.equal(service.seen.length, 1);
  service.other = () => "hang up";
  await assert.rejects(
    client.getJob("j1-abcdefgh"),
    (error: unknown) => error instanceof ClientError && error.code === "unreachable",
  );
  assert.equal("idempotency-key" in (service.seen.at(-1)?.headers ?? {}), false);
});

test("the nearest URL is gone back to when it says that it serves again", async (context) => {
  const [home, away] = [await FakeService.start(context), await FakeService.start(context)];
  let serves = false;
  home.other = ({ path }) => ({ status: path === "/readyz" && !serves ? 503 : 200 });
  away.other = () => ({ status: 200 });
  // Fifty times as fast.
  const time = { ...systemTime, monotonic: () => 50 * systemTime.monotonic() };
  const transport = new Transport({ urls: ["http://127.0.0.1:1", home.url, away.url], time });
  const call = () => transport.send({ method: "GET", path: "/v1/topology", timeoutMs: 5_000 });
  await assert.rejects(call);
  assert.equal((await call()).status, 200);
  assert.equal(transport.url, home.url);
  home.other = ({ path }) => ({ status: path === "/readyz" && serves ? 200 : 503 });
  assert.equal((await call()).status, 503);
  const until = systemTime.monotonic() + 20_000;
  const stays = systemTime.monotonic() + 500;
  while (systemTime.monotonic() < stays) {
    await call();
    assert.equal(transport.url, away.url, "while that does not serve");
    await systemTime.sleep(20);
  }
  serves = true;
  while (transport.url !== home.url && systemTime.monotonic() < until) {
    await call();
    await systemTime.sleep(20);
  }
  assert.equal(transport.url, home.url);
  assert.ok(home.seen.filter(({ path }) => path === "/readyz").length < 40, "asked ever less often");
});
