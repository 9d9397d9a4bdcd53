import assert from "node:assert/strict";
import { test } from "node:test";
import { systemTime, type Time } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { decodeHeader, encodeBatch, type Batch } from "../../replication/record.js";
import { ShardLog, type LogTransport, type StoredMessage, type TransportAnswer } from "../../replication/shard-log.js";
import { epoch, position, shardId } from "../../shards/ids.js";

const shard = shardId(3);
const batch = (id: string, owner = "east", at = 1): Batch => ({
  header: {
    kind: "records",
    generation: 1,
    shard,
    epoch: epoch(1),
    owner,
    batchId: id.padEnd(16, "0"),
    first: position(at),
    count: 1,
    committedAt: 0,
  },
  records: [Buffer.from("x")],
  open: null,
});

/** A log of one subject whose answers a test decides: `script` has one entry per append; "store" and "lose" store, the latter without an answer. */
class Scripted implements LogTransport {
  readonly routes = 3;
  readonly messages: StoredMessage[] = [];
  readonly used: number[] = [];
  script: (TransportAnswer | "store" | "lose" | (() => TransportAnswer))[] = [];
  /** Appends that a read doesn't see yet, per route. */
  hidden = new Set<number>();

  put(b: Batch): number {
    this.messages.push({ sequence: this.messages.length + 1, shard, data: encodeBatch(b) });
    return this.messages.length;
  }
  async append(
    _p: number,
    _s: number,
    data: Uint8Array,
    expected: number,
    _t: number,
    route: number,
  ): Promise<TransportAnswer> {
    this.used.push(route);
    const step = this.script.shift() ?? "store";
    if (typeof step === "function") return step();
    if (typeof step === "object") return step;
    if (expected !== this.messages.length) return { kind: "refused", lastSequence: this.messages.length };
    this.messages.push({ sequence: expected + 1, shard, data });
    return step === "store" ? { kind: "stored", sequence: expected + 1 } : { kind: "silent" };
  }
  async readOne(_p: number, sequence: number, _t: number, route: number): Promise<StoredMessage | undefined> {
    return this.hidden.has(route) ? undefined : this.messages[sequence - 1];
  }
  async readLast(): Promise<StoredMessage | undefined> {
    return this.messages.at(-1);
  }
  async readFrom(_p: number, sequence: number): Promise<StoredMessage[]> {
    return this.messages.slice(sequence - 1);
  }
}

function setUp(): { transport: Scripted; log: ShardLog } {
  const transport = new Scripted();
  const fast: Time = { ...systemTime, sleep: () => Promise.resolve() };
  return { transport, log: new ShardLog({ transport, partitions: 1, time: fast, log: silentLogger }) };
}

test("an append whose answer was lost is settled by repeating the same bytes: stored once", async () => {
  const { transport, log } = setUp();
  transport.script = ["lose"];
  assert.deepEqual(await log.append(0, batch("aa"), Infinity), { kind: "stored", sequence: 1 });
  assert.equal(transport.messages.length, 1);
  assert.deepEqual(transport.used, [0, 1], "the second try goes another way");
});

test("a refusal shows the tail that is there, and it becomes the known one", async () => {
  const { transport, log } = setUp();
  transport.put(batch("bb", "west"));
  const result = await log.append(0, batch("aa"), Infinity);
  assert.ok(result.kind === "refused");
  assert.equal(result.tail.header.owner, "west");
  assert.equal(log.known(shard)?.sequence, 1);
});

test("a tail that the nearest replica does not have yet is read from another one", async () => {
  const { transport, log } = setUp();
  transport.put(batch("bb", "west"));
  transport.hidden = new Set([0, 1]);
  const result = await log.append(0, batch("aa"), Infinity);
  assert.ok(result.kind === "refused");
});

test("a tail that is purged before it can be read keeps nobody: a newer one below which it went is", async () => {
  const { transport } = setUp();
  let now = 0;
  const time: Time = { ...systemTime, monotonic: () => now, sleep: async (ms) => void (now += ms) };
  const log = new ShardLog({ transport, partitions: 1, time, log: silentLogger });
  transport.put(batch("aa", "west"));
  transport.put(batch("bb", "west", 2));
  const readOne = transport.readOne.bind(transport);
  transport.readOne = (partition, sequence, timeout, route) =>
    sequence === 1 ? Promise.resolve(undefined) : readOne(partition, sequence, timeout, route);
  transport.script = [() => ({ kind: "refused", lastSequence: 1 })];
  const result = await log.append(0, batch("cc"), Infinity);
  assert.ok(result.kind === "refused");
  assert.equal(result.tail.sequence, 2);
  assert.ok(now >= 5_000 && now < 10_000, `${now} ms`);
});

test("'busy' decides nothing, 'nowhere' goes another way", async () => {
  const { transport, log } = setUp();
  transport.script = [{ kind: "busy" }, { kind: "nowhere" }, { kind: "nowhere" }, "store"];
  assert.deepEqual(await log.append(0, batch("aa"), Infinity), { kind: "stored", sequence: 1 });
  assert.deepEqual(transport.used, [0, 0, 1, 2]);
});

test("an old leader's lower tail is not believed at once", async () => {
  const { transport, log } = setUp();
  transport.put(batch("aa"));
  transport.put(batch("ab", "east", 2));
  transport.script = [{ kind: "refused", lastSequence: 1 }, { kind: "refused", lastSequence: 1 }, "store"];
  assert.deepEqual(await log.append(2, batch("ac", "east", 3), Infinity), { kind: "stored", sequence: 3 });
});

test("without an answer until the deadline the outcome is unknown", async () => {
  const { transport, log } = setUp();
  let now = 0;
  const time: Time = { ...systemTime, monotonic: () => now, sleep: async (ms) => void (now += ms) };
  transport.script = Array.from({ length: 50 }, () => () => ((now += 100), { kind: "silent" as const }));
  const late = new ShardLog({ transport, partitions: 1, time, log: silentLogger });
  assert.deepEqual(await late.append(0, batch("aa"), 1_000), { kind: "unknown" });
  assert.equal(log.known(shard), undefined);
});

test("one append of a shard at a time", async () => {
  const { log } = setUp();
  let inside = 0;
  let most = 0;
  await Promise.all(
    Array.from({ length: 20 }, () =>
      log.exclusive(shard, async () => {
        most = Math.max(most, ++inside);
        await new Promise((resolve) => setImmediate(resolve));
        inside--;
      }),
    ),
  );
  assert.equal(most, 1);
  await assert.rejects(log.exclusive(shard, () => Promise.reject(new Error("x"))));
  assert.equal(await log.exclusive(shard, () => Promise.resolve(decodeHeader(encodeBatch(batch("aa"))).owner)), "east");
});
