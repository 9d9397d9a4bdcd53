import assert from "node:assert/strict";
import { test } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import { LogOwnership } from "../../replication/ownership.js";
import type { OutboxRow } from "../../replication/outbox.js";
import { Pace } from "../../replication/pace.js";
import { Publisher } from "../../replication/publisher.js";
import { decodeHeader, encodeBatch, type BatchHeader } from "../../replication/record.js";
import { ShardLog, type LogTransport, type StoredMessage, type TransportAnswer } from "../../replication/shard-log.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";
import { ShardMap, type Head } from "../../shards/map.js";
import { ManualTime } from "../harness/manual-time.js";

const shard = shardId(0);
const head: Head = {
  shard,
  partition: partition(0),
  owner: "east",
  epoch: epoch(1),
  state: "owned",
  position: position(0),
  published: position(0),
  tenure: epoch(1),
  closing: 0,
  confirmed: true,
  since: "",
  kind: "initial",
  reason: "",
  stopped: null,
  revision: 1,
};
const opened: BatchHeader = {
  kind: "open",
  generation: 1,
  shard,
  epoch: epoch(1),
  owner: "east",
  batchId: "00".repeat(8),
  first: position(1),
  count: 0,
  committedAt: 0,
};

/** A log of one shard that takes every append, and tells of it. */
class Taking implements LogTransport {
  readonly routes = 1;
  readonly messages: StoredMessage[] = [
    { sequence: 1, shard, data: encodeBatch({ header: opened, records: [], open: null }) },
  ];
  constructor(private readonly took: (header: BatchHeader) => void) {}
  async append(_p: number, _s: number, data: Uint8Array, expected: number): Promise<TransportAnswer> {
    await new Promise((resolve) => setImmediate(resolve));
    if (expected !== this.messages.length) return { kind: "refused", lastSequence: this.messages.length };
    this.messages.push({ sequence: expected + 1, shard, data });
    this.took(decodeHeader(data));
    return { kind: "stored", sequence: expected + 1 };
  }
  async readOne(_p: number, sequence: number): Promise<StoredMessage | undefined> {
    return this.messages[sequence - 1];
  }
  async readLast(): Promise<StoredMessage | undefined> {
    return this.messages.at(-1);
  }
  async readFrom(): Promise<StoredMessage[]> {
    return [];
  }
}

test("a shard that always has more to publish lets its statement through", async () => {
  const most = 200;
  const kinds: string[] = [];
  let last = 0;
  const map = new ShardMap(1);
  map.adopt(head);
  const commit = (): void => {
    if (last < most)
      publisher.committed([
        { shard, epoch: epoch(1), position: position(++last), record: Buffer.from("x"), at: systemTime.monotonic() },
      ]);
  };
  // With each append another write has been committed.
  const transport = new Taking((header) => {
    kinds.push(header.kind);
    if (header.kind === "records") commit();
  });
  const common = { generation: 1, time: systemTime, random: seededRandom(1), logger: silentLogger };
  const log = new ShardLog({ transport, partitions: 1, time: systemTime, log: silentLogger });
  const publisher: Publisher = new Publisher({
    ...common,
    log,
    outbox: { read: () => Promise.resolve([]) },
    map,
    site: "east",
    events: { stored: () => undefined },
  });
  const ownership = new LogOwnership({ ...common, log, opened: () => undefined });
  publisher.setActive(true);
  commit();
  const request = { shard, epoch: epoch(1), owner: "east", epochEnds: [] };
  assert.equal(await ownership.restate(request, systemTime.monotonic() + 5_000), true);
  const before = kinds.indexOf("statement");
  assert.ok(before >= 0 && before < 10, `${before} appends before the statement`);
  await publisher.published(shard, epoch(1), position(most), systemTime.monotonic() + 10_000);
  assert.equal(kinds.filter((kind) => kind === "statement").length, 1);
  await publisher.stop();
});

/** A publisher of two shards before a log that takes what `takes` says, in partitions of their own. */
function publishing(outbox: readonly OutboxRow[], takes: (of: number) => boolean, waitMs: (bytes: number) => number) {
  const map = new ShardMap(2);
  const stored: number[] = [];
  const tails = new Map(
    [0, 1].map((at) => [at, encodeBatch({ header: { ...opened, shard: shardId(at) }, records: [], open: null })]),
  );
  const sequences = new Map([0, 1].map((at) => [at, 1]));
  const tailOf = async (of: number): Promise<StoredMessage> => ({
    sequence: sequences.get(of) ?? 0,
    shard: shardId(of),
    data: tails.get(of) ?? Buffer.alloc(0),
  });
  const transport: LogTransport = {
    routes: 1,
    append: async (_p, of, data) => {
      if (!takes(Number(of))) return time.sleep(250).then(() => ({ kind: "silent" as const }));
      const sequence = (sequences.get(of) ?? 0) + 1;
      sequences.set(of, sequence);
      tails.set(of, Buffer.from(data));
      stored.push(of);
      return { kind: "stored", sequence };
    },
    readOne: (p) => tailOf(p),
    readLast: (p) => tailOf(p),
    readFrom: async () => [],
  };
  const time = new ManualTime();
  for (const at of [0, 1]) map.adopt({ ...head, shard: shardId(at), partition: partition(at) });
  const publisher = new Publisher({
    ...{ generation: 1, time, random: seededRandom(1), logger: silentLogger, map, site: "east" },
    log: new ShardLog({ transport, partitions: 2, time, log: silentLogger }),
    outbox: { read: async (_of, _epoch, from) => outbox.filter((row) => row.position > from) },
    events: { stored: () => undefined },
    limits: { mayAppend: () => true, backlogWaitMs: waitMs },
  });
  const commit = (of: number): void =>
    publisher.committed([
      { shard: shardId(of), epoch: epoch(1), position: position(1), record: Buffer.from("x"), at: time.monotonic() },
    ]);
  const stop = async (): Promise<void> => {
    const stopped = publisher.stop();
    await time.advance(10_000);
    await stopped;
  };
  return { publisher, time, stored, commit, stop };
}

test("a shard whose append gets no answer holds up no other", async () => {
  const { publisher, time, stored, commit, stop } = publishing(
    [],
    (of) => of !== 0,
    () => 0,
  );
  publisher.setActive(true);
  for (const of of [0, 1]) commit(of);
  await time.advance(100);
  assert.deepEqual(stored, [1]);
  assert.equal(publisher.unpublishedMs(shardId(1)), 0);
  assert.equal(publisher.unpublishedMs(shardId(0)), 100);
  await stop();
});

test("what has waited for long goes at the backlog's pace, what has just been committed at once", async () => {
  const time = new ManualTime();
  const pace = new Pace(time, 1_000);
  assert.deepEqual([pace.reserve(600), pace.reserve(1_000), pace.reserve(1)], [0, 500, 1_500]);
  await time.advance(60_000);
  // Time that was not used is not saved up, but for a tenth of a second.
  assert.deepEqual([pace.reserve(100), pace.reserve(100), pace.reserve(1)], [0, 0, 100]);

  const old: OutboxRow = { position: position(1), record: Buffer.alloc(500), committedAt: 0 };
  const asked: number[] = [];
  const wait = (bytes: number): number => (asked.push(bytes), 700);
  const backlog = publishing([old], () => true, wait);
  backlog.publisher.setActive(true);
  await backlog.time.advance(650);
  assert.deepEqual([asked, backlog.stored], [[500, 500], []], "each of two shards has one");
  await backlog.time.advance(100);
  assert.deepEqual(backlog.stored, [0, 1]);
  await backlog.stop();
  const fresh = publishing([], () => true, wait);
  fresh.publisher.setActive(true);
  fresh.commit(0);
  await fresh.time.advance(20);
  assert.deepEqual([asked.length, fresh.stored], [2, [0]]);
  await fresh.stop();
});

test("what the outbox gave and the log has before its writer says that it is committed waits for nothing", async () => {
  const first: OutboxRow = { position: position(1), record: Buffer.from("x"), committedAt: Date.parse("2026-01-01") };
  const { publisher, time, stored, commit, stop } = publishing(
    [first],
    (of) => of === 0,
    () => 0,
  );
  publisher.setActive(true);
  await time.advance(1_000);
  assert.deepEqual(stored, [0]);
  // The transaction's answer was on its way meanwhile.
  commit(0);
  await time.advance(30_000);
  assert.equal(publisher.unpublishedMs(shardId(0)), 0);
  assert.equal(stored.length, 1);
  await stop();
});
