import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pack, unpack } from "msgpackr";
import { Problem, type ProblemCode } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import { NoAnswer, NoResponders, TooLarge, type Message, type Messenger } from "../../infra/nats/messaging.js";
import { Changes } from "../../routing/changes.js";
import { Router, rpcSubject, type Routed } from "../../routing/router.js";
import { epoch, shardId } from "../../shards/ids.js";
import type { Head, ShardMap } from "../../shards/map.js";
import type { Peers } from "../../shards/peers.js";
import { ManualTime, settled } from "../harness/manual-time.js";

type Answer = { readonly by: string; readonly confirm?: () => void };
interface Asked {
  readonly way: number;
  readonly to: string;
  readonly timeoutMs: number;
}

const shard = shardId(3);
const noResponders = (): Promise<Uint8Array> => Promise.reject(new NoResponders("x"));
const ok = (by: string): Promise<Uint8Array> => Promise.resolve(pack({ ok: { by } }));
const refuse = (code: ProblemCode, owner?: string): Promise<Uint8Array> =>
  Promise.resolve(pack({ problem: { code, detail: code, ...(owner === undefined ? {} : { owner }) } }));

/** A router of `east` with two ways to the others, and what it asked. */
function setUp(answer: (asked: Asked) => Promise<Uint8Array>) {
  const time = new ManualTime();
  const changes = new Changes(time);
  let head: Partial<Head> = { shard, owner: "west", epoch: epoch(4), state: "replica", confirmed: true };
  let dead = false;
  const asked: Asked[] = [];
  const executed: Routed<string>[] = [];
  let serve: ((message: Message) => void) | undefined;
  let execute = (): Promise<Answer> => Promise.resolve({ by: "east" });
  let flushed = (): void => undefined;
  const messenger = (way: number): Messenger => ({
    publish: () => undefined,
    subscribe: (_subject, handler) => {
      serve = handler;
      const drain = (): Promise<void> => new Promise((resolve) => (flushed = resolve));
      return Object.assign(() => undefined, { drain });
    },
    request: (subject, data, timeoutMs) => {
      if ("probe" in (unpack(data) as object)) return Promise.reject(new NoAnswer(subject));
      const one = { way, to: /\.dc\.(\w+)\./.exec(subject)?.[1] ?? "", timeoutMs };
      asked.push(one);
      const late = time.sleep(timeoutMs).then((): Uint8Array => {
        throw new NoAnswer(subject);
      });
      late.catch(() => undefined);
      return Promise.race([answer(one), late]);
    },
  });
  const router = new Router<string, Answer>({
    group: "g",
    site: "east",
    time,
    log: silentLogger,
    messengers: [messenger(0), messenger(1)],
    map: { get: () => head } as unknown as ShardMap,
    peers: { state: () => (dead ? "dead" : "serving") } as unknown as Peers,
    changes,
    leaseValid: () => true,
    executor: {
      execute: (request) => {
        executed.push(request);
        return execute();
      },
    },
  });
  return {
    time,
    router,
    asked,
    executed,
    become: (next: Partial<Head>) => {
      head = { ...head, ...next };
      changes.changed(shard);
    },
    die: (is: boolean) => (dead = is),
    executes: (by: () => Promise<Answer>) => (execute = by),
    /** What the server had sent has been handed over. */
    flushed: () => flushed(),
    ask: (over: Partial<Routed<string>> = {}) =>
      router
        .execute({ shard, command: "c", context: {}, deadline: time.monotonic() + 10_000, ...kinds.plain, ...over })
        .then(
          ({ result, route }) => `${result.by}, ${route}`,
          (error: unknown) => (error instanceof Problem ? error.code : String(error)),
        ),
    served: async (command: string, over: { write?: boolean; mostBytes?: number } = {}): Promise<unknown> => {
      if (serve === undefined) await router.start();
      let answered: unknown;
      serve?.({
        subject: rpcSubject("g", "east"),
        data: pack({ shard, command, context: {}, timeoutMs: 700, write: over.write }),
        respond: (data) => {
          if (data.length > (over.mostBytes ?? Infinity)) throw new TooLarge("inbox", data.length);
          answered = unpack(data) as unknown;
        },
      });
      await settled();
      return answered;
    },
  };
}
const kinds = {
  plain: { repeatable: false, write: true },
  keyed: { repeatable: true, write: true },
  read: { repeatable: true, write: false },
};
const never = (): Promise<Uint8Array> => new Promise(() => undefined);

describe("a router", () => {
  it("forwards with the time that the caller has left", async () => {
    const r = setUp(() => ok("west"));
    assert.equal(await r.ask({ deadline: r.time.monotonic() + 1_234 }), "west, forwarded");
    assert.deepEqual(r.asked, [{ way: 0, to: "west", timeoutMs: 1_234 }]);
  });

  it("goes through another site when nobody hears it on the direct way, by each way once", async () => {
    const r = setUp(({ way }) => (way === 0 ? noResponders() : ok("west")));
    assert.equal(await r.ask(), "west, forwarded");
    assert.deepEqual(
      r.asked.map(({ way, to }) => [way, to]),
      [
        [0, "west"],
        [1, "west"],
      ],
    );
  });

  it("follows `not_owner` to whom it names, and never in a circle", async () => {
    const right = setUp(({ to }) => (to === "west" ? refuse("not_owner", "central") : ok(to)));
    const found = right.ask();
    await right.time.advance(100);
    assert.equal(await found, "central, forwarded");
    assert.deepEqual(
      right.asked.map(({ to }) => to),
      ["west", "central"],
    );
    // Two that name each other are asked at a bounded pace, until the deadline.
    const circle = setUp(({ to }) => refuse("not_owner", to === "west" ? "central" : "west"));
    const lost = circle.ask({ deadline: circle.time.monotonic() + 1_000 });
    await circle.time.advance(1_100);
    assert.equal(await lost, "owner_unreachable");
    assert.ok(circle.asked.length >= 3 && circle.asked.length <= 45, `${circle.asked.length} forwards`);
  });

  it("never forwards what was forwarded to it: there is one hop", async () => {
    const r = setUp(() => ok("west"));
    const refused = (await r.served("c")) as { problem: { code: string; owner: string } };
    assert.deepEqual([refused.problem.code, refused.problem.owner], ["not_owner", "west"]);
    r.become({ owner: "east", state: "owned", epoch: epoch(5) });
    assert.deepEqual(await r.served("mine"), { ok: { by: "east" } });
    assert.deepEqual([r.asked.length, r.executed.map(({ command }) => command)], [0, ["mine"]]);
    assert.equal((r.executed[0]?.deadline ?? 0) - r.time.monotonic(), 700);
  });

  it("holds what nobody can serve until somebody can, or until its deadline", async () => {
    const r = setUp(({ to }) => ok(to));
    r.die(true);
    const waits = r.ask();
    const late = r.ask({ deadline: r.time.monotonic() + 2_000 });
    await r.time.advance(2_500);
    assert.equal(await late, "owner_unreachable");
    assert.equal(r.asked.length, 0);
    r.die(false);
    r.become({ owner: "central", epoch: epoch(5) });
    await r.time.advance(10);
    assert.equal(await waits, "central, forwarded");
    r.become({ owner: "east", state: "moving", epoch: epoch(6) });
    const moving = r.ask({ deadline: r.time.monotonic() + 500 });
    await r.time.advance(600);
    assert.equal(await moving, "shard_moving");
  });

  it("sends a write without a key once only, when it may have been taken", async () => {
    const r = setUp(never);
    const silent = r.ask({ deadline: r.time.monotonic() + 4_000 });
    await r.time.advance(4_100);
    assert.equal(await silent, "outcome_unknown");
    assert.equal(r.asked.length, 1);
    // Nor when its shard moves meanwhile: it is told soon.
    const moved = r.ask();
    await r.time.advance(100);
    r.become({ owner: "central", epoch: epoch(5) });
    await r.time.advance(1_000);
    assert.equal(await moved, "outcome_unknown");
    assert.equal(r.asked.length, 2);
  });

  it("sends a write with a key to the next owner, when the last one took it and died", async () => {
    const r = setUp(({ to }) => (to === "west" ? never() : ok(to)));
    const waits = r.ask(kinds.keyed);
    await r.time.advance(1_000);
    r.die(true);
    await r.time.advance(500);
    r.die(false);
    r.become({ owner: "central", epoch: epoch(5) });
    await r.time.advance(200);
    assert.equal(await waits, "central, forwarded");
  });

  it("says of a write with a key that nobody knows its outcome, once one try of it got no answer; of a read, why", async () => {
    for (const [kind, code] of [
      [kinds.keyed, "outcome_unknown"],
      [kinds.read, "owner_unreachable"],
    ] as const) {
      const r = setUp(never);
      const waits = r.ask(kind);
      await r.time.advance(3_100);
      r.die(true);
      await r.time.advance(8_000);
      assert.equal(await waits, code);
      // One that was never taken had no effect.
      const unsent = r.ask({ ...kind, deadline: r.time.monotonic() + 1_000 });
      await r.time.advance(1_100);
      assert.equal(await unsent, "owner_unreachable");
    }
  });

  it("asks again when the owner had less time than the request has", async () => {
    let tries = 0;
    const r = setUp(() => (++tries < 3 ? refuse("outcome_unknown") : ok("west")));
    const waits = r.ask(kinds.keyed);
    await r.time.advance(500);
    assert.equal(await waits, "west, forwarded");
    assert.deepEqual(
      r.asked.map(({ timeoutMs }) => timeoutMs <= 3_000),
      [true, true, true],
    );
    tries = 0;
    assert.equal(await r.ask(), "outcome_unknown");
    assert.equal(tries, 1);
  });

  it("refuses at once what no message can hold: nothing was sent", async () => {
    for (const kind of [kinds.plain, kinds.keyed, kinds.read]) {
      const r = setUp(() => Promise.reject(new TooLarge("x", 2_000_000)));
      assert.equal(await r.ask(kind), "payload_too_large");
      assert.equal(r.asked.length, 1);
    }
  });

  it("says so where the answer is larger than a message: a write was carried out all the same", async () => {
    const r = setUp(never);
    r.become({ owner: "east", state: "owned", epoch: epoch(5) });
    r.executes(() => Promise.resolve({ by: "x".repeat(1_000) }));
    const code = async (write?: boolean): Promise<unknown> =>
      (
        (await r.served("c", { mostBytes: 900, ...(write === undefined ? {} : { write }) })) as {
          problem: { code: string };
        }
      ).problem.code;
    assert.deepEqual(
      [await code(false), await code(true), await code()],
      ["payload_too_large", "outcome_unknown", "outcome_unknown"],
    );
    assert.ok((r.executed[0]?.answerBytes ?? 0) > 100_000);
  });

  it("answers what was on its way when it drains, and waits for that", async () => {
    const r = setUp(never);
    r.become({ owner: "east", state: "owned", epoch: epoch(5) });
    assert.deepEqual(await r.served("before"), { ok: { by: "east" } });
    let drained = false;
    const drain = r.router.drain().then(() => (drained = true));
    await r.time.advance(100);
    assert.equal(drained, false);
    const late = (await r.served("late")) as { problem: { code: string } };
    assert.deepEqual([late.problem.code, r.executed.length], ["draining", 1]);
    r.flushed();
    await drain;
    // A connection that is gone holds nothing up for long.
    const gone = setUp(never);
    await gone.router.start();
    const ends = gone.router.drain();
    await gone.time.advance(5_000);
    await ends;
  });

  it("takes a database that can't be used now for a missing lease, and a fault of a statement for what it is", async () => {
    const failure = (code: string) => (): Promise<Answer> => Promise.reject(Object.assign(new Error(code), { code }));
    const r = setUp(({ to }) => ok(to));
    r.become({ owner: "east", state: "owned", epoch: epoch(5) });
    r.executes(failure("ECONNREFUSED"));
    const code = async (): Promise<unknown> =>
      ((await r.served("c", { write: false })) as { problem: { code: string } }).problem.code;
    assert.equal(await code(), "no_lease");
    const late = r.ask({ ...kinds.read, deadline: r.time.monotonic() + 1_000 });
    await r.time.advance(1_100);
    assert.equal(await late, "no_lease");
    // Until somebody else has taken over.
    const waits = r.ask(kinds.read);
    await r.time.advance(1_000);
    r.become({ owner: "central", state: "replica", epoch: epoch(6) });
    await r.time.advance(100);
    assert.equal(await waits, "central, forwarded");
    r.become({ owner: "east", state: "owned", epoch: epoch(7) });
    r.executes(failure("42703"));
    assert.deepEqual([await code(), await r.ask(kinds.read)], ["internal", "Error: 42703"]);
  });

  it("tells which way a request went, also one that is refused", async () => {
    const r = setUp(() => refuse("version_mismatch"));
    const ways: string[] = [];
    const tried = (way: string): void => void ways.push(way);
    assert.equal(await r.ask({ tried }), "version_mismatch");
    r.become({ owner: "east", state: "owned", epoch: epoch(5) });
    assert.equal(await r.ask({ tried }), "east, local");
    assert.deepEqual(ways, ["forwarded", "local"]);
  });

  it("lets no more than so many requests wait for one datacenter, and those to others go on", async () => {
    const r = setUp(({ to }) => (to === "west" ? never() : ok(to)));
    for (let i = 0; i < 2_000; i++) void r.ask(kinds.keyed);
    await settled();
    assert.equal(await r.ask(kinds.keyed), "overloaded");
    r.become({ owner: "central", epoch: epoch(5) });
    assert.equal(await r.ask(kinds.keyed), "central, forwarded");
  });
});
