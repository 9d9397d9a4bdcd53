import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { after as afterAll, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import {
  after,
  allServe,
  at,
  body,
  idsOf,
  placeOf,
  placeText,
  problem,
  send,
  shardMap,
  timed,
  type Answered,
} from "./support.js";

/** Milliseconds in which what must stay quick is answered, on a busy machine. */
const quickMs = 3_000;
const idle = 10_000;

/** More than a process can take, of each kind. */
describe("a process with too much to do", () => {
  let stack: TestStack;
  const on = (
    dc: string,
    method: string,
    where: string,
    sent?: unknown,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Answered> => send(stack, dc, method, where, sent, headers);
  const port = (dc: string): number => Number(new URL(stack.url(dc)).port);
  const quick = async (dc: string): Promise<void> => {
    for (const where of ["/livez", "/readyz", "/v1/topology", "/v1/shards"]) {
      const { ms, value } = await timed(on(dc, "GET", where));
      assert.equal(value.status, 200, `${where}: ${value.text}`);
      assert.ok(ms < quickMs, `${where} took ${Math.round(ms)} ms`);
    }
  };

  before(async () => {
    stack = await startStack({ steady: true });
  });
  afterAll(() => stack.stop());

  it(`serves on with ${idle} idle connections, and with clients that send a byte now and then or stop in the middle`, async () => {
    const sockets: net.Socket[] = [];
    const open = async (bytes: string): Promise<net.Socket> => {
      const socket = net.connect(port("east"), "127.0.0.1");
      // Who does not read never learns that the other side has closed.
      socket.on("error", () => undefined).resume();
      sockets.push(socket);
      await once(socket, "connect");
      socket.write(bytes);
      return socket;
    };
    const probe = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    const half =
      'PUT /v1/clusters/half HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"name":';
    try {
      for (let made = 0; made < idle; made += 250) await Promise.all(Array.from({ length: 250 }, () => open(probe)));
      const slow = await Promise.all(
        Array.from({ length: 200 }, () => open("GET /v1/clusters HTTP/1.1\r\nhost: x\r\nx-a: ")),
      );
      await Promise.all(Array.from({ length: 200 }, () => open(half)));
      for (let round = 0; round < 5; round++) {
        for (const socket of slow) socket.write("a");
        await quick("east");
        const id = `crowd-${round}`;
        body(await on("east", "PUT", `/v1/clusters/${id}`, { name: "n", spec: {} }), 201);
        body(await on("west", "PUT", `/v1/clusters/${id}`, { name: "n", spec: {} }), 200);
      }
      assert.ok(sockets.filter((socket) => !socket.destroyed).length >= idle, "they are still there");
    } finally {
      for (const socket of sockets) socket.destroy();
    }
  });

  it("refuses what is beyond its bound at once, and keeps probes and operators' requests quick", async () => {
    // Each waits for a place that never comes, and holds its room meanwhile.
    const waits = { "hothot-min-position": "0:999999:1", "hothot-timeout-ms": "9000" };
    const crowd = Array.from({ length: 2_300 }, () =>
      timed(on("central", "GET", "/v1/clusters/nobody", undefined, waits)),
    );
    let over = 0;
    for (const each of crowd) each.then(() => over++).catch(() => undefined);
    // The crowd is in the process, and this one has sent it all.
    await stack.until(() => over >= 250, 9_000, "the first are refused");
    await quick("central");
    const answers = await Promise.all(crowd);
    const refused = answers.filter(({ value }) => value.status === 503);
    assert.ok(refused.length >= 100, `${refused.length} were refused`);
    for (const { value } of refused) problem(value, "overloaded");
    for (const { value } of answers) if (value.status !== 503) problem(value, "deadline_exceeded");
    body(await on("central", "PUT", "/v1/clusters/after-the-crowd", { name: "n", spec: {} }), 201);
    assert.match((await on("central", "GET", "/metrics")).text, /hothot_event_loop_lag_seconds\{quantile="0\.99"\} /);
  });

  it("is not held up by an owner that takes requests and never answers, however many wait for it", async () => {
    await allServe(stack);
    const map = await shardMap(stack, "west");
    const keyed = (id: string): Record<string, string> => ({ "idempotency-key": id, "hothot-timeout-ms": "40000" });
    const [first = "", ...theirs] = idsOf(map, "east", "paused", 3_001);
    const written = await on("west", "PUT", `/v1/clusters/${first}`, { name: "n", spec: {} });
    body(written, 201);
    body(await on("west", "PUT", "/v1/failover", { paused: true }), 200);
    const [node = 0] = stack.pids("east").node;
    assert.ok(node > 0);
    process.kill(node, "SIGSTOP");
    try {
      let full = false;
      const sent: Promise<Answered>[] = [];
      const ask = async (id: string): Promise<Answered> => {
        const answer = await on("west", "PUT", `/v1/clusters/${id}`, { name: "n", spec: {} }, keyed(id));
        // Not one that came too fast.
        full ||= answer.status === 503 && !answer.text.includes("than it can begin");
        return answer;
      };
      // Wave by wave, until there is no room for them.
      while (!full) {
        const wave = theirs.splice(0, 100).map(ask);
        assert.ok(wave.length > 0, "there was room for all");
        for (const each of wave) each.catch(() => undefined);
        sent.push(...wave);
        body(await on("west", "GET", "/v1/topology"), 200);
      }
      const others = [...idsOf(map, "west", "own", 20), ...idsOf(map, "central", "third", 5)];
      for (const id of others) {
        const { ms, value } = await timed(on("west", "PUT", `/v1/clusters/${id}`, { name: "n", spec: {} }));
        body(value, 201);
        assert.ok(ms < quickMs, `another owner's write took ${Math.round(ms)} ms`);
      }
      body(await on("west", "PUT", "/v1/failover", { paused: false }), 200);
      // The rest waits for the takeover, and none of it fails.
      const answers = await Promise.all(sent);
      const taken = answers.filter(({ status }) => status !== 503);
      assert.ok(taken.length >= 500, `${taken.length} found room`);
      for (const answer of taken) body(answer, 201);
      for (const answer of answers) if (answer.status === 503) problem(answer, "overloaded");
      // The epoch of the first write has ended behind it, and before what nobody wrote.
      body(await on("west", "GET", `/v1/clusters/${first}`, undefined, after(written)), 200);
      const { shard, epoch, position } = placeOf(written);
      const never = { "hothot-min-position": placeText({ shard, epoch, position: position + 1_000_000 }) };
      problem(await on("west", "GET", `/v1/clusters/${first}`, undefined, never), "position_lost");
    } finally {
      process.kill(node, "SIGCONT");
    }
    await allServe(stack);
  });

  it("answers what it accepted when it is told to stop, and says first that it goes", async () => {
    const [node = 0] = stack.pids("west").node;
    const accepted = on("west", "GET", "/v1/clusters/nobody", undefined, {
      "hothot-min-position": "0:999999:1",
      "hothot-timeout-ms": "2000",
    });
    await stack.until(async () => (await on("west", "GET", "/livez")).status === 200, 5_000, "it is there");
    process.kill(node, "SIGTERM");
    await stack.until(
      async () => {
        const answer = await on("west", "GET", "/readyz");
        return answer.status === 503 && answer.text.includes("draining");
      },
      2_000,
      "it says that it drains",
    );
    problem(await accepted, "deadline_exceeded");
    await stack.until(() => !stack.pids("west").node.includes(node), 15_000, "it has ended");
    assert.equal(at(stack.dcs, 2), "west");
  });
});
