import assert from "node:assert/strict";
import { test } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { Applier } from "../../replication/applier.js";
import { encodeBatch } from "../../replication/record.js";
import type { Applied, ReplicaStore, Stretch } from "../../replication/replica-store.js";
import type { LogTransport, StoredMessage } from "../../replication/shard-log.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";

const shard = shardId(0);
const message = (sequence: number): StoredMessage => ({
  sequence,
  shard,
  data: encodeBatch({
    header: {
      kind: "records",
      generation: 1,
      shard,
      epoch: epoch(1),
      owner: "west",
      batchId: sequence.toString(16).padStart(16, "0"),
      first: position(sequence),
      count: 1,
      committedAt: 0,
    },
    records: [Buffer.from("r")],
    open: null,
  }),
});

/** An applier on a log in memory, and what it read and applied. */
async function applying(stored: readonly StoredMessage[]) {
  const reads: number[] = [];
  const applied: number[] = [];
  let seen: () => void = () => {};
  const transport = {
    routes: 1,
    readFrom: async (_p: number, sequence: number) => {
      reads.push(sequence);
      return stored.filter((m) => m.sequence >= sequence);
    },
  } as Partial<LogTransport> as LogTransport;
  const store: ReplicaStore = {
    progress: async () => new Map(),
    apply: async (stretches: readonly Stretch[]): Promise<Applied> => {
      for (const { messages } of stretches) applied.push(...messages.map((m) => m.sequence));
      setImmediate(() => seen());
      return { heads: [], adoptions: [], stopped: [], jobs: [], committedAt: new Map() };
    },
  };
  const applier = new Applier({
    transport,
    store,
    partitions: 1,
    time: systemTime,
    log: silentLogger,
    onApplied: () => {},
  });
  await applier.start();
  await applier.setActive(true);
  const through = async (sequence: number): Promise<void> => {
    const deadline = performance.now() + 5_000;
    while (applied.at(-1) !== sequence) {
      assert.ok(performance.now() < deadline, `applied ${applied.join()}, not ${sequence}`);
      await new Promise<void>((resolve) => {
        seen = resolve;
        setTimeout(resolve, 20);
      });
    }
  };
  return { applier, reads, applied, through };
}

test("what was read before the progress was reloaded says nothing about where the log begins", async () => {
  let cursor = 5;
  let answer: (messages: StoredMessage[]) => void = () => {};
  const asked: number[] = [];
  const applier = new Applier({
    transport: {
      routes: 1,
      readFrom: (_p: number, sequence: number) => {
        asked.push(sequence);
        return new Promise((resolve) => (answer = resolve));
      },
    } as Partial<LogTransport> as LogTransport,
    store: { progress: async () => new Map([[partition(0), cursor]]) } as unknown as ReplicaStore,
    partitions: 1,
    time: systemTime,
    log: silentLogger,
    onApplied: () => {},
  });
  const until = async (reads: number): Promise<void> => {
    for (const deadline = performance.now() + 5_000; asked.length < reads;)
      await new Promise((resolve) => (assert.ok(performance.now() < deadline), setTimeout(resolve, 5)));
  };
  await applier.start();
  await applier.setActive(true);
  await until(1);
  // The database goes back while the log is read.
  cursor = 2;
  await applier.reload();
  answer([message(6)]);
  await until(2);
  assert.deepEqual(asked, [6, 3]);
  assert.deepEqual(applier.lost, []);
  answer([]);
  await applier.stop();
});

const p = partition(0);
const upTo = (last: number): StoredMessage[] => Array.from({ length: last }, (_, i) => message(i + 1));

test("messages that came with the word of their publisher are applied without a read, in order, each once", async () => {
  const log = upTo(3);
  const { applier, reads, applied, through } = await applying(log);
  await through(3);
  const before = reads.length;
  for (const sequence of [6, 5, 4, 4, 7]) applier.push(p, message(sequence));
  await through(7);
  await applier.stop();
  assert.deepEqual(applied, [1, 2, 3, 4, 5, 6, 7]);
  assert.ok(
    reads.slice(before).every((sequence) => sequence === 8),
    `read from ${reads.slice(before).join()}`,
  );
});

test("what was lost on the way, or can't be read as it came, is read from the log", async () => {
  const log = upTo(1);
  const { applier, reads, applied, through } = await applying(log);
  await through(1);
  log.push(message(2), message(3), message(4), message(5));
  applier.push(p, message(3));
  await through(5);
  applier.push(p, { ...message(6), data: Buffer.from("torn") });
  log.push(message(6));
  await through(6);
  await applier.stop();
  assert.deepEqual(applied, [1, 2, 3, 4, 5, 6]);
  assert.ok(reads.includes(2) && reads.includes(6));
});
