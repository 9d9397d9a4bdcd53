import assert from "node:assert/strict";
import test from "node:test";
import { deflateRawSync } from "node:zlib";
import { pack, unpack } from "msgpackr";
import { silentLogger } from "../../infra/logger.js";
import { seededRandom } from "../../infra/random.js";
import type { ChunkRequest } from "../../replication/copy-source.js";
import { Resume, type ResumeOptions } from "../../replication/resume.js";
import { Snapshots, type SnapshotsOptions } from "../../replication/snapshot.js";
import { nextInTurn } from "../../replication/turns.js";
import { epoch, partition, shardId, type ShardId } from "../../shards/ids.js";
import { ShardMap, type Head } from "../../shards/map.js";
import { ManualTime } from "../harness/manual-time.js";

const ids = (...numbers: readonly number[]): { shard: ShardId }[] => numbers.map((n) => ({ shard: shardId(n) }));
const numbers = (list: readonly { readonly shard: ShardId }[]): number[] => list.map(({ shard }) => shard);

test("whoever began longest ago is next, and no lane takes the place of another", () => {
  const lane = ({ shard }: { readonly shard: ShardId }): number => shard % 2;
  const none = { busy: new Map(), lane, most: 2, began: new Map() };
  assert.deepEqual(numbers(nextInTurn(ids(1, 2, 3, 4, 5, 6), none)), [1, 2, 3, 4]);
  const busy = new Map([
    [shardId(1), 1],
    [shardId(3), 1],
  ]);
  assert.deepEqual(numbers(nextInTurn(ids(1, 3, 5, 6), { ...none, busy })), [6]);
  const began = new Map([
    [shardId(2), 5],
    [shardId(4), 3],
  ]);
  assert.deepEqual(numbers(nextInTurn(ids(2, 4, 6), { ...none, began })), [6, 4]);
});

const suspended = (n: number, partitions: number): Head =>
  ({
    shard: shardId(n),
    partition: partition(n % partitions),
    owner: "east",
    epoch: epoch(1),
    state: "suspended",
    stopped: null,
    closing: 0,
    revision: 1,
  }) as unknown as Head;

test("a partition without a leader does not hold up the shards of the others", async () => {
  const time = new ManualTime();
  const partitions = 12;
  const map = new ShardMap(4_096);
  for (let n = 0; n < 4_096; n++) map.adopt(suspended(n, partitions));
  let leaderless = 0;
  const resume = new Resume({
    site: "east",
    time,
    log: silentLogger,
    map,
    store: { heads: async ([shard]: ShardId[]) => [map.get(shard as ShardId)] },
    publisher: {
      flush: async (head: Head, deadline: number) => {
        if (head.partition !== 0) return true;
        leaderless++;
        await time.sleep(deadline - time.monotonic());
        return false;
      },
    },
    ownership: {
      open: async ({ shard }: { shard: ShardId }) => {
        map.adopt({ ...suspended(shard, partitions), state: "owned", confirmed: true, revision: 2 });
        return { kind: "opened" };
      },
    },
    restateMs: 300_000,
    epochEnds: async () => [],
    active: () => true,
    moving: () => false,
  } as Partial<Record<keyof ResumeOptions, unknown>> as ResumeOptions);
  await resume.start();
  await time.advance(2_900);
  const open = map.all().filter((head) => head.state === "owned");
  assert.equal(open.length, 4_096 - 342, "all but those of the partition without a leader");
  const first = leaderless;
  await time.advance(3_000);
  assert.equal(leaderless, 2 * first, "the places of that partition are taken again");
  const stopped = resume.stop();
  await time.advance(10_000);
  await stopped;
});

test("shards of which nobody gives a copy do not hold up the loading of the others", async () => {
  const time = new ManualTime();
  const left = new Set(Array.from({ length: 12 }, (_, n) => n));
  const asked = new Map<number, number>();
  const snapshots = new Snapshots({
    group: "g",
    link: {
      collect: async (_subject: string, data: Uint8Array) => {
        const { shard } = unpack(data) as ChunkRequest;
        asked.set(shard, (asked.get(shard) ?? 0) + 1);
        if (shard < 6) return [{ data: pack({ refused: "it has stopped here" }) }];
        return [{ data: pack({ ok: { rows: deflateRawSync("[]"), count: 0, last: null } }) }];
      },
    },
    store: {
      loading: async () =>
        [...left].map((shard) => ({ shard, table: "history", after: null, since: null, attempt: "a" })),
      store: async ({ shard }: { shard: number }) => left.delete(shard),
      progress: async () => 1,
    },
    applier: { lost: [], hold: () => undefined, release: async () => undefined },
    partitions: 1,
    state: async () => undefined,
    hasStopped: () => false,
    canRead: async () => false,
    sources: () => ["west"],
    time,
    random: seededRandom(1),
    log: silentLogger,
    active: () => true,
    onJumped: async () => undefined,
    onChunk: () => undefined,
    onDiffers: () => undefined,
  } as unknown as SnapshotsOptions);
  await snapshots.start();
  await time.advance(10_000);
  assert.deepEqual([...left], [0, 1, 2, 3, 4, 5]);
  const tries = [...left].map((shard) => asked.get(shard) ?? 0);
  assert.ok(Math.min(...tries) >= Math.max(...tries) - 1, `each is tried in its turn: ${tries.join(", ")}`);
  const stopped = snapshots.stop();
  await time.advance(1_000);
  await stopped;
});
