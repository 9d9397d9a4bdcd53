import assert from "node:assert/strict";
import { test } from "node:test";
import { systemTime } from "../../infra/clock.js";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import { LogOwnership } from "../../replication/ownership.js";
import { Publisher } from "../../replication/publisher.js";
import { decodeHeader, encodeBatch, type BatchHeader } from "../../replication/record.js";
import { ShardLog, type LogTransport, type StoredMessage, type TransportAnswer } from "../../replication/shard-log.js";
import { epoch, partition, position, shardId } from "../../shards/ids.js";
import { ShardMap, type Head } from "../../shards/map.js";

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
