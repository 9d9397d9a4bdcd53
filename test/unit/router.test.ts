import assert from "node:assert/strict";
import { describe, it, test } from "node:test";
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
  /** Where one process is asked and no other. */
  readonly node?: string;
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
  const flushes: (() => void)[] = [];
  const subscribed: string[] = [];
  let heard: readonly string[] = [];
  let probed = (): Promise<Uint8Array> => Promise.reject(new NoAnswer("probe"));
  let probes = 0;
  const messenger = (way: number): Messenger => ({
    publish: () => undefined,
    subscribe: (subject, handler) => {
      subscribed.push(subject);
      serve = handler;
      const drain = (): Promise<void> => new Promise((resolve) => flushes.push(resolve));
      return Object.assign(() => undefined, { drain });
    },
    request: (subject, data, timeoutMs) => {
      if ("probe" in (unpack(data) as object)) {
        probes++;
        return probed();
      }
      const [, to = "", node] = /\.dc\.(\w+)\.rpc(?:\.(\w+))?$/.exec(subject) ?? [];
      const one = { way, to, timeoutMs, ...(node === undefined ? {} : { node }) };
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
    node: "n1",
    time,
    log: silentLogger,
    messengers: [messenger(0), messenger(1)],
    map: { get: () => head } as unknown as ShardMap,
    peers: { state: () => (dead ? "dead" : "serving"), heardBesideSilent: () => heard } as unknown as Peers,
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
    subscribed,
    become: (next: Partial<Head>) => {
      head = { ...head, ...next };
      changes.changed(shard);
    },
    die: (is: boolean) => (dead = is),
    executes: (by: () => Promise<Answer>) => (execute = by),
    /** What the server had sent has been handed over. */
    flushed: () => flushes.forEach((flush) => flush()),
    /** These processes of the owner are heard, and another one is not. */
    hears: (nodes: readonly string[]) => (heard = nodes),
    probes: () => probes,
    /** Probes are answered from now on. */
    revive: () => (probed = () => Promise.resolve(pack({}))),
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

  it("gives a dead owner's requests half of its room, and tells the rest at once; those to others go on", async () => {
    for (const dead of [true, false]) {
      const r = setUp(({ to }) => (to === "west" ? never() : ok(to)));
      r.die(dead);
      const waiting = Array.from({ length: 1_000 }, () => r.ask(kinds.keyed));
      await settled();
      assert.equal(r.router.room.waiting, 1_000);
      assert.equal(await r.ask(kinds.keyed), "overloaded");
      // A bulk request's rows wait in a room of their own.
      const rows = r.ask({ ...kinds.keyed, bulk: true });
      r.die(false);
      r.become({ owner: "central", epoch: epoch(5) });
      // They all go where the shard went, whatever room is left there.
      await r.time.advance(200);
      assert.deepEqual(new Set(await Promise.all([...waiting, rows])), new Set(["central, forwarded"]));
      assert.equal(r.router.room.waiting, 0);
      r.become({ owner: "east", epoch: epoch(6), state: "moving" });
      const moving = Array.from({ length: 1_000 }, () => r.ask({ deadline: r.time.monotonic() + 1_000 }));
      await settled();
      assert.equal(await r.ask(), "overloaded");
      r.become({ state: "owned" });
      await r.time.advance(10);
      assert.deepEqual(new Set(await Promise.all(moving)), new Set(["east, local"]));
    }
  });

  it("bounds those that wait for the own database, too", async () => {
    const r = setUp(({ to }) => ok(to));
    r.become({ owner: "east", state: "owned", epoch: epoch(5) });
    r.executes(() => Promise.reject(new Problem("no_lease")));
    const waiting = Array.from({ length: 1_000 }, () => r.ask());
    await settled();
    assert.equal(await r.ask(), "overloaded");
    r.executes(() => Promise.resolve({ by: "east" }));
    await r.time.advance(100);
    assert.deepEqual(new Set(await Promise.all(waiting)), new Set(["east, local"]));
  });

  it("leaves room for others however many datacenters are waited for", async () => {
    const r = setUp(never);
    const fill = async (owner: string): Promise<number> => {
      r.become({ owner });
      const before = r.router.room.waiting;
      for (let i = 0; i < 1_100; i++) void r.ask(kinds.keyed);
      await settled();
      return r.router.room.waiting - before;
    };
    assert.deepEqual([await fill("west"), await fill("central"), await fill("north")], [1_000, 500, 250]);
  });

  it("asks an owner that refuses less and less often, and again at once when the shard changes", async () => {
    for (const code of ["no_lease", "shard_moving"] as const) {
      const r = setUp(({ to }) => (to === "west" ? refuse(code) : ok(to)));
      const waits = r.ask();
      await r.time.advance(150);
      assert.ok(r.asked.length >= 3, `${r.asked.length} in the first 150 ms`);
      await r.time.advance(4_850);
      assert.ok(r.asked.length >= 15 && r.asked.length <= 25, `${r.asked.length} in 5 s`);
      r.become({ epoch: epoch(5) });
      const before = r.asked.length;
      await r.time.advance(80);
      assert.ok(r.asked.length >= before + 2, "the pauses begin anew");
      r.become({ owner: "central", epoch: epoch(6) });
      await r.time.advance(1);
      assert.equal(await waits, "central, forwarded");
    }
  });

  it("sends probes only to an owner that is silent, and requests again once one is answered", async () => {
    const r = setUp(never);
    const waits: Promise<string>[] = [];
    for (let ms = 0; ms < 5_000; ms += 20) {
      waits.push(r.ask({ ...kinds.read, deadline: r.time.monotonic() + 5_000 }));
      await r.time.advance(20);
    }
    // Those of the time in which it was doubted, and no more.
    assert.ok(r.asked.length >= 4 && r.asked.length <= 80, `${r.asked.length} of ${waits.length} were sent`);
    assert.ok(r.probes() >= 3 && r.probes() <= 8, `${r.probes()} probes`);
    await r.time.advance(5_000);
    assert.deepEqual(new Set(await Promise.all(waits)), new Set(["owner_unreachable"]));
    const before = r.asked.length;
    const held = r.ask(kinds.read);
    await r.time.advance(100);
    assert.equal(r.asked.length, before);
    r.revive();
    await r.time.advance(4_500);
    assert.ok(r.asked.length > before, "it is sent");
    await r.time.advance(6_000);
    assert.equal(await held, "owner_unreachable");
  });

  it("asks a process that is heard while another one of its datacenter is not", async () => {
    const r = setUp(({ node }) => (node === "n3" ? noResponders() : ok(node ?? "any")));
    r.hears(["n1", "n3"]);
    // One that does not listen yet took nothing: whichever does is asked.
    assert.deepEqual(
      [await r.ask(), await r.ask(), await r.ask()],
      ["n1, forwarded", "any, forwarded", "n1, forwarded"],
    );
    r.hears([]);
    assert.equal(await r.ask(), "any, forwarded");
    await r.router.start();
    assert.deepEqual(r.subscribed, ["hothot.g.dc.east.rpc", "hothot.g.dc.east.rpc.n1"]);
  });
});

test("requests that wait for a change are bounded in number, all shards together", async () => {
  const time = new ManualTime();
  const changes = new Changes(time);
  const waiting = Array.from({ length: 20_000 }, (_, n) => changes.next(shardId(n % 7), 60_000));
  await assert.rejects(changes.next(shardId(9), 60_000), { code: "overloaded" });
  assert.equal(changes.count, 20_000);
  changes.changed(shardId(3));
  await waiting[3];
  const late = changes.next(shardId(9), 50);
  changes.changedAll();
  await Promise.all([...waiting, late]);
  assert.equal(changes.count, 0);
});
