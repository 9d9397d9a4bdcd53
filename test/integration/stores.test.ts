import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { pack, unpack } from "msgpackr";
import { systemTime, type Time } from "../../infra/clock.js";
import { isDeepStrictEqual } from "node:util";
import { asError, Problem } from "../../infra/errors.js";
import { until } from "../../infra/local/wait.js";
import { silentLogger } from "../../infra/logger.js";
import { NoAnswer, TooLarge, type Link, type Message, type Messenger } from "../../infra/nats/messaging.js";
import { Database, type Client } from "../../infra/postgres/database.js";
import { seededRandom } from "../../infra/random.js";
import { CopySource, type Chunk, type ChunkRequest, type Folded } from "../../replication/copy-source.js";
import { copyTables } from "../../replication/copy-tables.js";
import { digestShards, resetDigest } from "../../replication/digest.js";
import { DigestKeeper } from "../../replication/digest-keeper.js";
import type { FullHead } from "../../replication/heads.js";
import { startLoading } from "../../replication/loading.js";
import { insertHistory, type HistoryRow } from "../../replication/history.js";
import { KeyExpiry } from "../../replication/key-expiry.js";
import { PostgresOutbox, type Outbox } from "../../replication/outbox.js";
import { lockOwned, PostgresOwnerStore, type OwnerStore } from "../../replication/owner-store.js";
import { decodeBatch, encodeBatch, encodeRecord, type BatchHeader, type OpenBody } from "../../replication/record.js";
import {
  NeedsRecords,
  PostgresReplicaStore,
  type Incoming,
  type ReplicaStore,
} from "../../replication/replica-store.js";
import { PostgresRestoreStore, type RestoreStore } from "../../replication/restore-store.js";
import { SnapshotStore } from "../../replication/snapshot-store.js";
import { Snapshots } from "../../replication/snapshot.js";
import { shapes, upsert } from "../../replication/rows.js";
import { Unit } from "../../replication/unit.js";
import { epoch, partition, position, shardId, type ShardId } from "../../shards/ids.js";
import type { Head, ShardMap } from "../../shards/map.js";
import { close, PostgresShardStore } from "../../shards/postgres-store.js";
import type { ShardStore, VoteStore } from "../../shards/store.js";
import { Repairer, type RepairRequest } from "../../services/repair.js";
import { AuditTrail, type AuditEntry } from "../../services/access/audit.js";
import type { CallClient, Calls } from "../../services/calls.js";
import type { DatacenterParts } from "../../services/datacenter.js";
import { GroupView } from "../../services/group-view.js";
import { HistoryFacts } from "../../services/history-facts.js";
import { Verifier } from "../../services/verify.js";
import { OperationStore, type LongOperation } from "../../services/operation-store.js";
import { FinishStore, type FinishCommand } from "../../services/jobs/finish-store.js";
import { freshDatabase, startPostgres, type TestPostgres } from "../harness/servers.js";
import { MemoryDatabase } from "../simulation/database.js";
import { put } from "../simulation/operations.js";
import { MemoryOwnerStore } from "../simulation/owner.js";
import { MemoryReplicaStore } from "../simulation/replica.js";
import { MemoryRestoreStore } from "../simulation/restores.js";
import { Process, Scheduler } from "../simulation/scheduler.js";
import { MemoryOutbox, MemoryShardStore } from "../simulation/stores.js";

const site = "east";
const shards = [0, 1].map((shard) => shardId(shard));
const now = Date.parse("2026-01-01T00:00:00Z");
let server: TestPostgres;
before(async () => {
  server = await startPostgres();
});
after(() => server.stop());

/** One database of a datacenter behind the product's interfaces. */
interface Side {
  readonly shards: ShardStore & VoteStore;
  readonly replica: ReplicaStore;
  readonly owner: OwnerStore;
  readonly restores: RestoreStore;
  readonly outbox: Outbox;
  /** Carries out what was asked. */
  during<T>(work: () => Promise<T>): Promise<T>;
  rows(): Promise<unknown>;
  /** Fails when the digests that are kept are not those of the rows. */
  sound(): Promise<void>;
  close(): Promise<void>;
}

async function onPostgres(): Promise<
  Side & { readonly database: Database; readonly sql: (text: string) => Promise<unknown> }
> {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
  const database = new Database({ ...options, connections: 3, name: "test" });
  const writes = new Database({ ...options, connections: 1, name: "test writes", pipeline: true });
  await database.migrate();
  await database.pool.query("INSERT INTO partition_progress (partition) VALUES (0)");
  for (const shard of shards)
    await database.pool.query("INSERT INTO shard_head (shard, partition, revision) VALUES ($1, 0, 0)", [shard]);
  const table = async (sql: string): Promise<unknown> => (await database.pool.query<object>(sql)).rows;
  return {
    shards: new PostgresShardStore(database),
    replica: new PostgresReplicaStore(database, writes, site, silentLogger),
    owner: new PostgresOwnerStore(writes),
    restores: new PostgresRestoreStore(database),
    outbox: new PostgresOutbox(database),
    during: (work) => work(),
    database,
    sql: table,
    sound: async () => {
      for (const { shard, expected, digest } of await digestShards(database, [...shards]))
        assert.equal(expected, digest, `the digest of shard ${shard} is that of its rows`);
    },
    rows: async () => ({
      clusters: await table(
        "SELECT id, shard, version, name, changed_epoch AS epoch, changed_position AS position FROM clusters ORDER BY id",
      ),
      keys: await table(
        "SELECT key, shard, changed_epoch AS epoch, changed_position AS position FROM idempotency_keys ORDER BY key, shard",
      ),
      outbox: await table("SELECT shard, epoch, position FROM outbox ORDER BY shard, epoch, position"),
      aside: await table(
        "SELECT shard, epoch, position, idempotency_key AS key, status = 'open' AS open FROM divergent_operations ORDER BY shard, epoch, position",
      ),
      restores: await table(
        "SELECT shard, cluster_id AS id, cut_epoch AS epoch, cut_position AS position FROM restores ORDER BY id",
      ),
    }),
    close: async () => {
      await Promise.all([database.close(), writes.close()]);
    },
  };
}

async function inMemory(): Promise<Side> {
  const s = new Scheduler(1);
  const database = new MemoryDatabase(s, site, { effect: () => undefined, say: () => undefined });
  database.calm = true;
  const process = new Process(s, site, "east-1", 1);
  process.knows = database.incarnation;
  database.tables.progress.set(0, 0);
  for (const shard of shards) database.tables.heads.set(shard, emptyHead(shard));
  const during = async <T>(work: () => Promise<T>): Promise<T> => {
    let settled = false;
    const done = work().finally(() => (settled = true));
    done.catch(() => undefined);
    // Between two of its statements nothing is due: it gets its turn first.
    while (!settled) {
      await new Promise((resolve) => setImmediate(resolve));
      await s.run(s.now + 10);
    }
    return done;
  };
  const { tables } = database;
  const sorted = <T>(list: Iterable<T>, by: (each: T) => string): T[] =>
    [...list].sort((a, b) => (by(a) < by(b) ? -1 : 1));
  return {
    shards: new MemoryShardStore(database, process),
    replica: new MemoryReplicaStore(database, process, { applied: () => undefined }, {}),
    owner: new MemoryOwnerStore(database, process, {}),
    restores: new MemoryRestoreStore(database, process),
    outbox: new MemoryOutbox(database, process),
    during,
    sound: async () => undefined,
    rows: async () => ({
      clusters: sorted(tables.rows.values(), (row) => row.id).map((row) => ({
        id: row.id,
        shard: row.shard,
        version: row.version,
        name: row.name,
        epoch: row.changedEpoch,
        position: row.changedPosition,
      })),
      keys: sorted(tables.keys.values(), (row) => `${row.key} ${row.shard}`).map((row) => ({
        key: row.key,
        shard: row.shard,
        epoch: row.changedEpoch,
        position: row.changedPosition,
      })),
      outbox: sorted(tables.outbox, ([shard]) => String(shard)).flatMap(([shard, rows]) =>
        rows.map((row) => ({ shard, epoch: row.epoch, position: row.position })),
      ),
      aside: [...tables.divergent]
        .map(([at, { key, open }]) => {
          const [shard = 0, ended = 0, last = 0] = at.split("/").map(Number);
          return { shard, epoch: ended, position: last, key, open };
        })
        .sort((a, b) => a.shard - b.shard || a.epoch - b.epoch || a.position - b.position),
      restores: sorted(tables.restores.values(), (row) => row.id).map(({ id, shard, cut }) => ({
        shard,
        id,
        epoch: cut?.epoch ?? null,
        position: cut?.position ?? null,
      })),
    }),
    close: async () => undefined,
  };
}

function emptyHead(shard: ShardId): FullHead {
  return {
    shard,
    partition: partition(0),
    owner: null,
    epoch: epoch(0),
    state: "replica",
    position: position(0),
    published: position(0),
    tenure: epoch(0),
    fencedThrough: epoch(0),
    closing: 0,
    confirmed: false,
    since: "",
    kind: "initial",
    reason: "",
    epochEnds: [],
    stopped: null,
    revision: 0,
  };
}

/** What both must agree on. */
const plain = (head: Head | undefined | null): unknown =>
  head == null
    ? null
    : {
        shard: head.shard,
        owner: head.owner,
        epoch: head.epoch,
        state: head.state,
        position: head.position,
        published: head.published,
        tenure: head.tenure,
        closing: head.closing,
        confirmed: head.confirmed,
        kind: head.kind,
        reason: head.reason,
        stopped: head.stopped,
        revision: head.revision,
      };
const plainAll = (heads: readonly Head[]): unknown =>
  [...heads].sort((a, b) => a.shard - b.shard).map((head) => plain(head));

/** The same owner's transaction as the writer makes. */
async function write(side: Side, wanted: Parameters<typeof put>[0]): Promise<unknown> {
  const transaction = await side.owner.begin();
  let failure: Error | undefined;
  try {
    const unit = new Unit({ transaction, site, now, random: seededRandom(1) });
    const operation = put(wanted);
    const [heads] = await Promise.all([transaction.lock([wanted.shard]), unit.load([operation])]);
    unit.hold(heads);
    const head = heads.get(wanted.shard);
    if (head?.state !== "owned" || head.owner !== site) throw new Problem("not_owner");
    const result = unit.decide(operation);
    await unit.commit();
    return result.written ?? String(result.error);
  } catch (error) {
    failure = asError(error);
    if (!(error instanceof Problem)) throw error;
    return error.code;
  } finally {
    await transaction.end(failure);
  }
}

/** Makes up a log, and things that happen beside it; the same for both sides. */
class Story {
  readonly #random;
  readonly #tails = new Map<ShardId, { epoch: number; owner: string; last: number }>();
  #sequence = 0;
  #marks = 0;
  readonly done = new Map<string, number>();

  constructor(
    seed: number,
    private readonly sides: readonly [Side, Side],
  ) {
    this.#random = seededRandom(seed);
  }

  #chance(share: number): boolean {
    return this.#random.next() < share;
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#random.next() * list.length)] as T;
  }

  /** Asks both the same and compares the answers. */
  async both(what: string, ask: (side: Side) => Promise<unknown>): Promise<unknown> {
    this.done.set(what, (this.done.get(what) ?? 0) + 1);
    const [real, memory] = await Promise.all(this.sides.map((side) => side.during(() => ask(side))));
    assert.deepEqual({ [what]: memory }, { [what]: real });
    return real;
  }

  async step(): Promise<void> {
    const shard = this.#pick(shards);
    const tail = this.#tails.get(shard);
    const at = epoch((tail?.epoch ?? 0) + this.#pick([0, 0, 0, 1, -1].filter((by) => (tail?.epoch ?? 0) + by >= 0)));
    const kind = this.#random.next();
    if (tail === undefined || kind < 0.3) await this.#message(shard);
    else if (kind < 0.6) await this.#write(shard);
    else if (kind < 0.66) {
      const voter = { site: this.#pick(["west", "central"]), incarnation: this.#pick([1, 1, 1, 1, 2]) };
      const closing = 1_000 + this.#marks++;
      const epochs = this.#chance(0.2) ? {} : { [String(shard)]: at };
      await this.both("fence", async (side) => plainAll(await side.shards.fence(epochs, voter, closing)));
    } else if (kind < 0.7) await this.both("confirm", async (side) => plain(await side.shards.confirm(shard, at)));
    else if (kind < 0.74)
      await this.both("begin move", async (side) => {
        const begun = await side.shards.beginMove(shard, at, "east-1", 1_000_000);
        return begun === null ? null : [plain(begun.head), [...begun.nodes].sort()];
      });
    else if (kind < 0.78) await this.both("end move", async (side) => plain(await side.shards.endMove(shard, at)));
    else if (kind < 0.8)
      await this.both("suspend move", async (side) => plain(await side.shards.suspendMove(shard, at)));
    else if (kind < 0.81) await this.both("renounce", async (side) => plain(await side.shards.renounce(shard, at)));
    else if (kind < 0.83) {
      const node = this.#pick(["east-1", "east-2", "east-3"]);
      await this.both("canary", async (side) => (await side.shards.refreshNode(node, "", 1_000_000)).sort());
    } else if (kind < 0.86) {
      const holder = this.#pick(["a", "b"]);
      await this.both("lock", (side) => side.shards.lock("coordinator", holder, 1_000_000));
      if (this.#chance(0.5)) await this.both("unlock", (side) => side.shards.unlock("coordinator", holder));
    } else if (kind < 0.88) {
      const target = this.#pick(["west", "central"]);
      await this.both("vote", (side) => side.shards.vote(target, { [String(shard)]: at }));
      await this.both("votes", async (side) => [...(await side.shards.load())].sort());
    } else await this.#restore(shard);
  }

  async compare(): Promise<void> {
    await this.both("heads", async (side) => plainAll(await side.shards.heads()));
    await this.both("progress", async (side) => [...(await side.replica.progress())]);
    await this.both("incarnations", async (side) => [...(await side.shards.incarnations())].sort());
    await this.both("rows", (side) => side.rows());
    for (const side of this.sides) await side.sound();
  }

  async #write(shard: ShardId): Promise<void> {
    const wanted = {
      shard,
      id: `c${shard}-${this.#pick([0, 1, 2])}`,
      mark: `w${++this.#marks}`,
      ...(this.#chance(0.5) ? { key: `k${this.#pick([0, 1, 2, 3, 4, 5, 6, 7])}` } : {}),
    };
    await this.both("write", (side) => write(side, wanted));
  }

  async #message(shard: ShardId): Promise<void> {
    const tail = this.#tails.get(shard) ?? { epoch: 0, owner: "", last: 0 };
    const opens = tail.epoch === 0 || this.#chance(0.35);
    const header = {
      generation: 1,
      shard,
      batchId: (++this.#marks).toString(16).padStart(16, "0"),
      committedAt: now,
    };
    if (opens) {
      const owner = this.#pick([site, site, "west", "central"]);
      const heads = await this.sides[0].shards.heads();
      const known = heads.find((head) => head.shard === shard)?.closing ?? 0;
      const open: OpenBody = {
        from: tail.owner === "" ? null : tail.owner,
        kind: this.#pick(["takeover", "switchover"]),
        reason: "made up",
        by: owner,
        sameTenure: this.#chance(0.5),
        closing: this.#chance(0.7) ? known : 0,
        phasesMs: {},
        drained: 0,
        epochEnds: [],
      };
      await this.#apply(
        { ...header, kind: "open", epoch: epoch(tail.epoch + 1), owner, first: position(tail.last + 1), count: 0 },
        [],
        open,
      );
      this.#tails.set(shard, { epoch: tail.epoch + 1, owner, last: tail.last });
      return;
    }
    let records: Uint8Array[] = [];
    if (tail.owner === site) {
      const rows = (await this.both("outbox", (side) =>
        side.outbox
          .read(shard, epoch(tail.epoch), position(tail.last), 3)
          .then((list) => list.map((row) => [row.position, Buffer.from(row.record).toString("hex")])),
      )) as [number, string][];
      records = rows.map(([, hex]) => Buffer.from(hex, "hex"));
    } else records = Array.from({ length: 1 + Math.floor(this.#random.next() * 3) }, () => this.#foreign(shard));
    if (records.length === 0) return;
    const last = tail.last + records.length;
    await this.#apply(
      {
        ...header,
        kind: "records",
        epoch: epoch(tail.epoch),
        owner: tail.owner,
        first: position(tail.last + 1),
        count: records.length,
      },
      records,
      null,
    );
    this.#tails.set(shard, { ...tail, last });
  }

  #foreign(shard: ShardId): Uint8Array {
    const mark = `f${++this.#marks}`;
    const at = new Date(now).toISOString();
    const key = this.#chance(0.4) ? `k${this.#pick([0, 1, 2, 3, 4, 5, 6, 7])}` : null;
    return encodeRecord({
      type: "cluster.put",
      at: now,
      cluster: {
        tenant: "",
        id: `c${shard}-${this.#pick([0, 1, 2])}`,
        shard,
        status: "active",
        name: mark,
        spec: {},
        state: {},
        labels: {},
        expiresAt: null,
        version: this.#marks,
        createdAt: at,
        updatedAt: at,
        deleted: false,
      },
      ...(key === null
        ? {}
        : { key: { tenant: "", key, shard, fingerprint: mark, status: 200, body: {}, version: null, createdAt: at } }),
    });
  }

  /** Through the applier's interface; own records are left out at first, as the applier does. */
  async #apply(header: BatchHeader, records: readonly Uint8Array[], open: OpenBody | null): Promise<void> {
    const sequence = ++this.#sequence;
    const batch = decodeBatch(encodeBatch({ header, records, open }));
    const own = header.kind === "records" && header.owner === site;
    const message: Incoming = { sequence, shard: header.shard, header: batch.header, batch: own ? null : batch };
    const apply = (incoming: Incoming) => async (side: Side) => {
      try {
        const applied = await side.replica.apply([
          { partition: partition(0), from: sequence - 1, messages: [incoming] },
        ]);
        return {
          // Without a change of owner the fast way tells heads as they were last known: a view never takes that for news.
          heads: applied.heads.map((head) =>
            applied.adoptions.length > 0
              ? plain(head)
              : [head.shard, head.epoch, head.published, head.owner === site ? null : head.position],
          ),
          adoptions: applied.adoptions.map((each) => [plain(each.head), each.divergent]),
          stopped: plainAll(applied.stopped),
        };
      } catch (error) {
        if (error instanceof NeedsRecords) return "needs records";
        throw error;
      }
    };
    const first = await this.both(`apply ${header.kind}`, apply(message));
    if (first === "needs records") await this.both("apply with records", apply({ ...message, batch }));
  }

  async #restore(shard: ShardId): Promise<void> {
    const byId = <T extends { readonly id: string }>(list: readonly T[]): T[] =>
      [...list].sort((a, b) => (a.id < b.id ? -1 : 1));
    await this.both("waiting", async (side) => byId(await side.restores.waiting()));
    const wanted = (await this.both("wanted", async (side) => byId(await side.restores.wanted(shard, 10)))) as {
      kind: string;
      tenant: string;
      id: string;
    }[];
    const tail = this.#tails.get(shard);
    if (wanted.length > 0 && tail !== undefined && this.#chance(0.6)) {
      const at = new Date(now).toISOString();
      const cut = { epoch: tail.epoch - (this.#chance(0.2) ? 1 : 0), position: tail.last + this.#pick([0, 0, 1, 2]) };
      const clusters = wanted.map(({ id }) => ({
        tenant: "",
        id,
        shard,
        status: "active" as const,
        name: "copied",
        spec: {},
        state: {},
        labels: {},
        expiresAt: null,
        version: 1,
        createdAt: at,
        updatedAt: at,
        deleted: false,
        changedEpoch: epoch(cut.epoch),
        changedPosition: position(cut.position),
      }));
      const copy = { ...cut, clusters, jobs: [], workers: [], documents: [] };
      await this.both("take", (side) => side.restores.take(shard, wanted, copy));
    }
    if (this.#chance(0.7)) await this.both("settle", (side) => side.restores.settle());
    const request = { shard, clusters: [{ tenant: "", id: `c${shard}-0` }], workers: [], documents: [] };
    await this.both("copy", (side) =>
      side.restores.copy(request).then(
        (copy) => [copy.epoch, copy.position, copy.clusters.map((row) => [row.id, row.name, row.version])],
        () => "refused",
      ),
    );
  }
}

test("the stores on PostgreSQL and those of the simulation do the same", async (t) => {
  const done = new Map<string, number>();
  for (let seed = 1; seed <= 12; seed++) {
    const sides = [await onPostgres(), await inMemory()] as const;
    const story = new Story(seed, sides);
    try {
      for (let n = 0; n < 60; n++) {
        await story.step();
        if (n % 10 === 9) await story.compare();
      }
    } catch (error) {
      throw new Error(`seed ${seed}: ${asError(error).message}`, { cause: error });
    } finally {
      await Promise.all(sides.map((side) => side.close()));
    }
    for (const [what, times] of story.done) done.set(what, (done.get(what) ?? 0) + times);
  }
  t.diagnostic([...done].map(([what, times]) => `${what} ${times}`).join(", "));
});

test("what can't be set aside for the moment is tried again; only a tail that is not whole stops its shard", async () => {
  const side = await onPostgres();
  const [shard = shardId(0), other = shardId(1)] = shards;
  let sequence = 0;
  const opens = (of: ShardId, at: number, owner: string): Incoming => {
    const open: OpenBody = {
      from: at === 1 ? null : site,
      kind: "takeover",
      reason: "made up",
      by: owner,
      sameTenure: false,
      closing: 0,
      phasesMs: {},
      drained: 0,
      epochEnds: [],
    };
    const header: BatchHeader = {
      generation: 1,
      shard: of,
      batchId: `${of}${at}`.padStart(16, "0"),
      committedAt: now,
      kind: "open",
      epoch: epoch(at),
      owner,
      first: position(1),
      count: 0,
    };
    const batch = decodeBatch(encodeBatch({ header, records: [], open }));
    return { sequence: ++sequence, shard: of, header: batch.header, batch };
  };
  const apply = (...messages: Incoming[]) =>
    side.replica.apply([{ partition: partition(0), from: (messages[0]?.sequence ?? 0) - 1, messages }]);
  try {
    await apply(opens(shard, 1, site), opens(other, 1, site));
    // Large enough to be read in more than one piece.
    for (let n = 0; n < 12; n++) await write(side, { shard, id: `c${n}`, mark: "x".repeat(500_000) });
    for (let n = 0; n < 2; n++) await write(side, { shard: other, id: `o${n}`, mark: "w" });
    await side.sql("DELETE FROM outbox WHERE shard = 1 AND position = 1");
    await side.sql(`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = 'disk_full'; END $$`);
    await side.sql("CREATE TRIGGER full_disk BEFORE INSERT ON divergent_operations EXECUTE FUNCTION full_disk()");
    const ended = [opens(shard, 2, "west"), opens(other, 2, "west")];
    await assert.rejects(apply(...ended), /the disk is full/);
    assert.deepEqual(
      (await side.shards.heads()).map((head) => [head.epoch, head.stopped]),
      [
        [1, null],
        [1, null],
      ],
    );
    await side.sql("DROP TRIGGER full_disk ON divergent_operations");
    const { adoptions, stopped } = await apply(...ended);
    assert.deepEqual(
      adoptions.map(({ head, divergent }) => [head.shard, divergent]),
      [[shard, 12]],
    );
    assert.deepEqual(
      stopped.map((head) => head.shard),
      [other],
    );
  } finally {
    await side.close();
  }
});

test("a jump voids what was cut above the end of any epoch that it passes; a load counts, and supersedes, only at its end", async () => {
  const side = await onPostgres();
  const [shard = shardId(0)] = shards;
  const snapshots = new SnapshotStore(side.database, site);
  const at = new Date(now).toISOString();
  const clusters = ["kept", "void"].map((id, n) => ({
    ...{
      tenant: "",
      id,
      shard,
      status: "active",
      name: id,
      spec: {},
      state: {},
      labels: {},
      expiresAt: null,
      version: 1,
    },
    ...{ createdAt: at, updatedAt: at, deleted: false, changedEpoch: epoch(2), changedPosition: position(100 + n) },
  }));
  const key = { tenant: "", key: "k", shard, fingerprint: "f", status: 200, body: {}, version: 1, created_at: at };
  const there = { owner: "central", since: at, kind: "takeover", reason: "" };
  const ended = [1, 2].map((each) => ({ epoch: epoch(each), owner: "west", last: position(100) }));
  const folded: Folded = {
    sequence: 5,
    shards: [{ ...there, shard, epoch: 3, position: 120, epochEnds: ended }],
  };
  const chunk = (cut: number, rows: readonly object[] = []): [Chunk, Buffer] => [
    {
      ...{ epoch: cut, position: 130, count: rows.length, total: rows.length, digest: "0" },
      rows: Buffer.of(),
      last: null,
    },
    Buffer.from(JSON.stringify(rows)),
  ];
  try {
    await side.sql("UPDATE shard_head SET owner = 'west', epoch = 1, position = 100, published = 100 WHERE shard = 0");
    await side.database.transaction((client) => upsert(client, shapes.clusters, clusters));
    await side.sql(`INSERT INTO restores (shard, tenant, cluster_id, kind, cut_epoch, cut_position)
      SELECT 0, '', id, 'cluster', changed_epoch, changed_position FROM clusters`);
    await side.sql(`INSERT INTO divergent_operations
      SELECT k, 'east', 0, 1, n, 0, '', 'c', 'cluster.put', 1, '{}', k, '', now(), now(), 'open' FROM unnest('{k,other}'::text[]) WITH ORDINALITY AS k(k, n)`);
    const [jumped] = await snapshots.jump(partition(0), 0, folded, "first");
    assert.deepEqual([jumped?.head.epoch, jumped?.loads], [3, true]);
    await side.restores.settle();
    assert.deepEqual(
      await side.sql("SELECT id FROM clusters"),
      [{ id: "kept" }],
      "what epoch 2 never published is gone, also for one that has not seen that epoch",
    );
    assert.deepEqual(await side.sql("SELECT cluster_id AS id, cut_epoch AS cut FROM restores WHERE kind = 'cluster'"), [
      { id: "void", cut: null },
    ]);
    await side.sql("DELETE FROM restores WHERE kind = 'cluster'; DELETE FROM clusters");
    const take = async (cut: number): Promise<boolean> => {
      const [loading] = await snapshots.loading();
      const table = copyTables.find((each) => each.name === loading?.table);
      assert.ok(loading !== undefined && table !== undefined);
      const rows = table.name === "idempotency_keys" ? [{ ...key, changed_epoch: 4, changed_position: 125 }] : [];
      return snapshots.store(loading, table, null, ...chunk(cut, rows));
    };
    assert.equal(await take(4), true, "a later epoch than is known here");
    assert.equal(await take(5), false, "where epoch 4 ended isn't known here");
    while ((await snapshots.loading()).length > 0) assert.equal(await take(4), true);
    const aside = (): Promise<unknown> =>
      side.sql("SELECT idempotency_key AS key, status FROM divergent_operations ORDER BY key");
    await side.restores.settle();
    assert.deepEqual(await aside(), [
      { key: "k", status: "open" },
      { key: "other", status: "open" },
    ]);
    await side.sql("UPDATE shard_head SET epoch = 4, position = 130, published = 130 WHERE shard = 0");
    await side.restores.settle();
    assert.deepEqual(await aside(), [
      { key: "k", status: "superseded" },
      { key: "other", status: "open" },
    ]);
  } finally {
    await side.close();
  }
});

test("a shard's digest is taken from its own jobs alone", async () => {
  const side = await onPostgres();
  const at = new Date(now).toISOString();
  const job = (shard: ShardId, n: number): object => ({
    ...{ id: `j${shard}-abcdefgh${n}`, shard, tenant: "", clusterId: `c${n}`, type: "t", input: {}, status: "done" },
    ...{ attempt: 1, epoch: 1, stage: null, stages: [], checkpoint: null, startedIn: site, runsIn: site },
    ...{
      notBefore: null,
      createdAt: at,
      finishedAt: at,
      error: null,
      changedEpoch: epoch(1),
      changedPosition: position(n),
    },
  });
  const jobs = [1, 10, 12].flatMap((shard) => [1, 2, 3].map((n) => job(shardId(shard), n)));
  try {
    await side.sql("INSERT INTO shard_head (shard, partition, revision) VALUES (10, 0, 0), (12, 0, 0)");
    await side.database.transaction((client) => upsert(client, shapes.jobs, jobs));
    const digests = () => side.sql("SELECT shard, digest FROM shard_head ORDER BY shard");
    const kept = await digests();
    await side.database.transaction(async (client) => {
      // Statements of earlier transactions may not have been counted yet.
      const scans = async (): Promise<unknown> =>
        (await client.query("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")).rows;
      // So few rows are read as a whole otherwise.
      await client.query("SET LOCAL enable_seqscan = off");
      const before = await scans();
      for (const shard of [0, 1, 10, 12]) await resetDigest(client, shard);
      assert.deepEqual(await scans(), before);
    });
    assert.deepEqual(await digests(), kept, "as it was kept row by row");
    for (const some of [null, [1], [10, 1, 10, 0]])
      for (const { expected, digest } of await digestShards(side.database, some)) assert.equal(digest, expected);
  } finally {
    await side.close();
  }
});

/** Databases of some datacenters with the same shards in each, that the first owns, and what carries questions between them. */
interface Copies {
  readonly databases: ReadonlyMap<string, Database>;
  readonly urls: ReadonlyMap<string, string>;
  readonly verifiers: ReadonlyMap<string, Verifier>;
  readonly messenger: Messenger;
  /** By subject. */
  readonly handlers: ReadonlyMap<string, (message: Message) => void>;
  /** Questions for which it says true get no answer. */
  lost: (question: Readonly<Record<string, unknown>>) => boolean;
  at(dc: string, sql: string): Promise<unknown[]>;
  /** What `verify` says of each copy: whether it is equal, and clusters that are not. */
  verify(): Promise<unknown[]>;
  close(): Promise<void>;
}

/** @param count clusters of each shard */
async function copiesOf(names: readonly string[], count: number, shardCount = 1): Promise<Copies> {
  const handlers = new Map<string, (message: Message) => void>();
  const messenger: Messenger = {
    publish: () => assert.fail("nothing is published"),
    subscribe: (subject, handler) => {
      handlers.set(subject, handler);
      return Object.assign(() => undefined, { drain: () => Promise.resolve() });
    },
    request: (subject, data) =>
      new Promise((resolve, reject) => {
        if (copies.lost(unpack(data) as Record<string, unknown>)) reject(new NoAnswer(subject));
        const respond = (answer: Uint8Array): void =>
          answer.length > 1_000_000 ? reject(new TooLarge(subject, answer.length)) : resolve(answer);
        handlers.get(subject)?.({ subject, data, respond });
      }),
  };
  const databases = new Map<string, Database>();
  const urls = new Map<string, string>();
  const verifiers = new Map<string, Verifier>();
  const copies: Copies = {
    databases,
    urls,
    verifiers,
    messenger,
    handlers,
    lost: () => false,
    at: async (dc, sql) => (await databases.get(dc)?.pool.query<object>(sql))?.rows ?? [],
    verify: async () => {
      const all: unknown[] = [];
      for await (const { dc, equal, clusters } of verifiers.get(names[0] ?? "")?.run(new AbortController().signal) ??
        [])
        all.push([dc, equal, [...clusters].sort()]);
      return all;
    },
    close: async () => void (await Promise.all([...databases.values()].map((database) => database.close()))),
  };
  for (const name of names) {
    const url = await freshDatabase(server);
    urls.set(name, url);
    const database = new Database({ url, log: silentLogger, connections: 2, name });
    databases.set(name, database);
    await database.migrate();
    await copies.at(name, "INSERT INTO partition_progress (partition) VALUES (0)");
    await copies.at(
      name,
      `INSERT INTO shard_head (shard, partition, owner, epoch, position, revision)
       SELECT s, 0, 'east', 1, 100000, 0 FROM generate_series(0, ${shardCount - 1}) AS s`,
    );
    await copies.at(
      name,
      `INSERT INTO clusters SELECT '', 'a-cluster-with-a-usual-name-' || n, n % ${shardCount}, 'active', 'n', '{}', '{}', '{}', NULL, 1, 'epoch', 'epoch', false, 1, n, 0
       FROM generate_series(1, ${count * shardCount}) AS n`,
    );
    await copies.at(name, `UPDATE clusters v SET digest = ${shapes.clusters.digest?.("v") ?? ""}`);
    for (let shard = 0; shard < shardCount; shard++) await database.transaction((client) => resetDigest(client, shard));
    const verifier = new Verifier({
      group: "test",
      site: name,
      shards: shardCount,
      database,
      messenger,
      time: systemTime,
      log: silentLogger,
      datacenters: () => names,
      owner: () => names[0] ?? null,
      onMismatch: () => undefined,
      tell: () => Promise.resolve(new Map()),
    });
    verifiers.set(name, verifier);
    await verifier.start();
  }
  return copies;
}

test("verify names what differs in a shard of any size, in messages that fit", async () => {
  const copies = await copiesOf(["east", "west"], 40_000);
  try {
    assert.deepEqual(await copies.verify(), [
      ["east", true, []],
      ["west", true, []],
    ]);
    const [changed, gone] = ["a-cluster-with-a-usual-name-17", "a-cluster-with-a-usual-name-39999"];
    await copies.at("west", `UPDATE clusters SET name = 'x' WHERE id = '${changed}'`);
    await copies.at("west", `DELETE FROM clusters WHERE id = '${gone}'`);
    assert.deepEqual(await copies.verify(), [
      ["east", true, []],
      ["west", false, [changed, gone]],
    ]);
  } finally {
    await copies.close();
  }
});

test("a shard whose rows can't be read, or not quickly, is said to give no answer, and holds up no other", async () => {
  const copies = await copiesOf(["east", "west"], 1, 3);
  const west = copies.databases.get("west") as Database;
  const found: number[] = [];
  const scrub = new DigestKeeper({
    site: "west",
    database: west,
    map: { all: () => [0, 1, 2].map((shard) => ({ shard })) } as unknown as ShardMap,
    gate: { enter: () => epoch(1) },
    events: { committed: () => undefined },
    place: () => ({ position: position(0) }),
    time: systemTime,
    log: silentLogger,
    everyMs: 1_000_000,
    scrubMs: 1,
    active: () => true,
    onDamage: (shard) => void found.push(shard),
  });
  const lines = async (): Promise<unknown[]> => {
    const all: unknown[] = [];
    for await (const line of copies.verifiers.get("east")?.run(new AbortController().signal) ?? [])
      all.push([line.shard, line.dc, line.epoch, line.equal]);
    return all;
  };
  const shardsAre = (...equal: readonly (readonly [number, boolean])[]): unknown[] =>
    equal.flatMap(([epoch, same], shard) => [
      [shard, "east", 1, true],
      [shard, "west", epoch, same],
    ]);
  const slow = new Database({
    url: copies.urls.get("west") ?? "",
    log: silentLogger,
    connections: 1,
    name: "slow",
    statementTimeoutMs: 1_000,
  });
  try {
    const reading = (what: string): Promise<unknown> =>
      copies.at(
        "west",
        `CREATE OR REPLACE FUNCTION readable(shard int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN ${what}; RETURN true; END $$`,
      );
    await reading("IF shard = 0 THEN RAISE 'could not read block 7'; END IF");
    await copies.at("west", "ALTER TABLE clusters RENAME TO stored");
    await copies.at("west", "CREATE VIEW clusters AS SELECT * FROM stored WHERE readable(shard)");
    assert.deepEqual(await lines(), shardsAre([0, false], [1, true], [1, true]));
    await copies.at("west", "UPDATE stored SET name = 'x' WHERE shard = 2");
    assert.deepEqual(await lines(), shardsAre([0, false], [1, true], [1, false]));
    await scrub.start();
    assert.ok(await until(() => found.length > 0, 20_000), "the scrub finds what is damaged behind that shard");
    await scrub.stop();
    assert.deepEqual(found, [2]);
    // Longer than other statements may take.
    await reading("PERFORM pg_sleep(1.2)");
    assert.equal((await digestShards(slow, [0]))[0]?.clusters, 1);
  } finally {
    await scrub.stop();
    await slow.close();
    await copies.close();
  }
});

test("a load goes on where it was stored, from whoever answers, and loses nothing that was open at a cut", async () => {
  const copies = await copiesOf(["east", "central", "west"], 5_000);
  const [east, central, west] = [...copies.databases.values()] as [Database, Database, Database];
  const store = new SnapshotStore(west, "west");
  const restores = new PostgresRestoreStore(west);
  const asked: { readonly dc: string; readonly after: string | null; readonly since: unknown }[] = [];
  let differing = 0;
  /** Whether the chunk gets an answer, and what is done to it. */
  let answers: (dc: string, after: string | null) => boolean = () => true;
  let altered: (dc: string, chunk: Chunk) => Chunk = (_dc, chunk) => chunk;
  const collect: Link["collect"] = async (subject, data) => {
    const [, dc = ""] = /dc\.(.*)\.snapshot/.exec(subject) ?? [];
    const request = unpack(data) as ChunkRequest;
    const after = request.after === null ? null : String(request.after.at(-1));
    if (request.table === "clusters") {
      asked.push({ dc, after, since: request.since });
      if (!answers(dc, after)) throw new NoAnswer(subject);
    }
    const parts: Uint8Array[] = [];
    await new Promise<void>((resolve) => {
      const respond = (part: Uint8Array): void => void (part.length === 0 ? resolve() : parts.push(part));
      copies.handlers.get(subject)?.({ subject, data, respond });
    });
    const { ok } = unpack(Buffer.concat(parts)) as { ok: Chunk };
    const whole = request.table === "clusters" ? altered(dc, ok) : ok;
    return [{ data: pack({ ok: whole }) }] as unknown as Awaited<ReturnType<Link["collect"]>>;
  };
  const loader = (): Snapshots =>
    new Snapshots({
      group: "test",
      link: { collect },
      store,
      applier: { lost: [], hold: () => undefined, release: () => Promise.resolve() },
      partitions: 1,
      state: () => Promise.resolve(undefined),
      hasStopped: () => false,
      canRead: () => Promise.resolve(false),
      sources: () => ["east", "central"],
      time: systemTime,
      random: seededRandom(1),
      log: silentLogger,
      active: () => true,
      onJumped: () => Promise.resolve(),
      onChunk: () => undefined,
      onDiffers: () => void differing++,
    });
  const place = async (): Promise<string | null | undefined> => {
    const [loading] = await store.loading();
    return loading === undefined ? undefined : loading.after === null ? null : String(loading.after.at(-1));
  };
  const load = async (): Promise<void> => {
    const snapshots = loader();
    await snapshots.start();
    assert.ok(await until(async () => (await place()) === undefined, 30_000), "the shard is loaded");
    await snapshots.stop();
  };
  const waits = async (): Promise<boolean> => {
    await restores.settle();
    return (await restores.waiting()).length > 0;
  };
  const at = new Date(now).toISOString();
  const late = {
    ...{ tenant: "", id: "a-cluster-0", shard: 0, status: "active", name: "late", spec: {}, state: {}, labels: {} },
    ...{ expiresAt: null, version: 1, createdAt: at, updatedAt: at, deleted: false },
    ...{ changedEpoch: epoch(1), changedPosition: position(100_001) },
  };
  const writeLate = async (client: Client): Promise<void> => {
    await client.query("SET LOCAL idle_in_transaction_session_timeout = 0");
    await client.query("UPDATE shard_head SET position = 100001");
    await upsert(client, shapes.clusters, [late]);
  };
  const equal = ["east", "central", "west"].map((dc) => [dc, true, []]);
  const open = await east.connect();
  try {
    for (const [dc, database] of copies.databases)
      await new CopySource({
        group: "test",
        site: dc,
        database,
        messenger: copies.messenger,
        log: silentLogger,
      }).start();
    // The first chunk is cut beside an open transaction at the owner, then nobody answers, and the loader is gone.
    await open.query("BEGIN");
    await writeLate(open);
    await copies.at("west", "DELETE FROM clusters");
    await store.reload(shardId(0), "first");
    answers = (_dc, after) => after === null;
    const killed = loader();
    await killed.start();
    assert.ok(await until(async () => (await place()) !== null, 30_000), "a chunk is stored");
    await killed.stop();
    const stored = await place();
    assert.ok(typeof stored === "string");
    await open.query("COMMIT");
    await central.transaction(writeLate);

    // The next one goes on there. The owner fails in the middle of the table, then another's rows arrive damaged once.
    asked.length = 0;
    answers = (dc, after) => dc !== "east" || after === stored;
    let damaged: string | null | undefined;
    altered = (dc, chunk) => {
      if (dc !== "central" || damaged !== undefined) return chunk;
      damaged = asked.findLast((each) => each.dc === dc)?.after;
      return { ...chunk, digest: `${BigInt(chunk.digest) + 1n}` };
    };
    await load();
    assert.deepEqual(asked[0], { dc: "east", after: stored, since: null });
    assert.equal(asked.filter(({ after }) => after === null).length, 0, "nothing is loaded from the start again");
    assert.equal(differing, 1);
    assert.ok(asked.filter(({ dc, after }) => dc === "central" && after === damaged).length > 1, "the range again");
    // Later chunks were cut behind that transaction: the copy counts once the log has brought it here, too.
    assert.equal(await waits(), true);
    assert.deepEqual(await copies.at("west", "SELECT count(*)::int AS n FROM clusters"), [{ n: 5_000 }]);
    await west.transaction(writeLate);
    assert.equal(await waits(), false);
    assert.deepEqual(await copies.verify(), equal);

    // Only what has changed is asked for; where the rest is not what it was, the whole range is.
    await copies.at("west", "UPDATE clusters SET name = 'x' WHERE id = 'a-cluster-with-a-usual-name-17'");
    const since = { epoch: epoch(1), position: position(4_000) };
    await west.transaction((client) =>
      startLoading(client, { shard: shardId(0), since, from: since, attempt: "second" }),
    );
    asked.length = 0;
    answers = () => true;
    await load();
    const whole = new Set(asked.filter((each) => each.since === null).map(({ after }) => after));
    assert.equal(whole.size, 1);
    assert.ok(asked.some((each) => each.since !== null && whole.has(each.after)));
    assert.equal(await waits(), false);
    assert.deepEqual(await copies.verify(), equal);
  } finally {
    open.release(true);
    await copies.close();
  }
});

test("a repair that is broken off can be repeated, and takes nothing from anybody", async () => {
  const names = ["east", "west", "central"];
  const copies = await copiesOf(names, 5_000);
  const id = (n: number): string => `a-cluster-with-a-usual-name-${n}`;
  const equal = names.map((dc) => [dc, true, []]);
  /** Of what the operator's `dc` is asked to do. */
  const repairer = (dc: string, time: Time): Repairer =>
    new Repairer({
      group: "test",
      site: dc,
      shards: 1,
      database: copies.databases.get(dc) as Database,
      messenger: copies.messenger,
      time,
      log: silentLogger,
      owner: () => "east",
      copies: { recopy: () => assert.fail(), recopied: () => assert.fail() },
      digests: async (shard) => (await copies.verifiers.get(dc)?.digests(shard)) ?? new Map(),
      tell: () => Promise.resolve(99_000),
    });
  const repair = (what: RepairRequest): Promise<{ readonly copied: number }> =>
    repairer("central", systemTime).repair(what);
  const everywhere = async (sql: string): Promise<void> =>
    void (await Promise.all(names.map((dc) => copies.at(dc, sql))));
  const counts = (): Promise<unknown[]> =>
    Promise.all(names.map(async (dc) => (await copies.at(dc, "SELECT count(*)::int AS n FROM clusters"))[0]));
  const all = names.map(() => ({ n: 5_000 }));
  try {
    for (const dc of names) await repairer(dc, systemTime).start();
    // The owner has lost rows of several pages, and the connection breaks while they are copied.
    await copies.at("east", "DELETE FROM clusters WHERE changed_position % 20 = 7");
    let asked = 0;
    copies.lost = ({ kind }) => kind === "rows" && ++asked > 1;
    await assert.rejects(repair({ shard: 0 }), { code: "outcome_unknown" });
    copies.lost = () => false;
    assert.deepEqual(await repair({ shard: 0 }), { copied: 150 });
    assert.deepEqual(await counts(), all);
    assert.deepEqual(await copies.verify(), equal);
    // One of two lost clusters.
    await copies.at("east", `DELETE FROM clusters WHERE id IN ('${id(1)}', '${id(2)}')`);
    assert.deepEqual(await repair({ clusterId: id(1) }), { copied: 1 });
    assert.deepEqual(await copies.verify(), [
      ["east", false, [id(2)]],
      ["west", true, []],
      ["central", true, []],
    ]);
    assert.deepEqual(await repair({ shard: 0 }), { copied: 1 });
    assert.deepEqual(await counts(), all);

    // A write on a row that was lost: what the rows should add up to is wrong from then on, where it was lost.
    const at = new Date(now).toISOString();
    for (const lost of ["west", "east"]) {
      await copies.at(lost, `DELETE FROM clusters WHERE id = '${id(3)}'`);
      await everywhere("UPDATE shard_head SET position = position + 1");
      const [{ position: last } = { position: 0 }] = (await copies.at("east", "SELECT position FROM shard_head")) as {
        position: number;
      }[];
      const row = {
        ...{ tenant: "", id: id(3), shard: 0, status: "active", name: "again", spec: {}, state: {}, labels: {} },
        ...{ expiresAt: null, version: 2, createdAt: at, updatedAt: at, deleted: false },
        ...{ changedEpoch: 1, changedPosition: last },
      };
      for (const database of copies.databases.values())
        await database.transaction((client) => upsert(client, shapes.clusters, [row]));
      assert.notDeepEqual(await copies.verify(), equal);
      assert.deepEqual(await repair({ shard: 0 }), { copied: 0 });
      assert.deepEqual(await copies.verify(), equal);
    }

    // An owner whose rows are what it says that they should be, against two that agree on something else.
    await copies.at("east", `DELETE FROM clusters WHERE id = '${id(4)}'`);
    await copies.databases.get("east")?.transaction((client) => resetDigest(client, 0));
    await assert.rejects(repair({ shard: 0 }), { code: "invalid_request" });
    assert.deepEqual(await counts(), [{ n: 4_999 }, { n: 5_000 }, { n: 5_000 }]);
    assert.deepEqual(await repair({ shard: 0, from: "west" }), { copied: 1 });
    assert.deepEqual(await copies.verify(), equal);

    // Copies that never stand at the same place: the log's comparison tells that one differs.
    await everywhere("UPDATE shard_head SET compared_epoch = epoch, compared_position = position");
    await copies.at("west", `UPDATE clusters v SET name = 'wrong' WHERE id = '${id(5)}'`);
    await copies.at(
      "west",
      `UPDATE clusters v SET digest = ${shapes.clusters.digest?.("v") ?? ""} WHERE id = '${id(5)}'`,
    );
    await copies.databases.get("west")?.transaction((client) => resetDigest(client, 0));
    await copies.at("west", "UPDATE shard_head SET compared_equal = false, position = position + 1");
    const faster = 20;
    const hurried: Time = {
      ...systemTime,
      monotonic: () => systemTime.monotonic() * faster,
      sleep: (ms, signal) => systemTime.sleep(ms / faster, signal),
    };
    await repairer("west", hurried).start();
    assert.deepEqual(await repairer("central", hurried).repair({ shard: 0 }), { copied: 1 });
    await copies.at("west", "UPDATE shard_head SET position = position - 1");
    assert.deepEqual(await copies.verify(), equal);
  } finally {
    await copies.close();
  }
});

test("of the finishes that are kept, those of the shards asked for are due, the oldest first", async () => {
  const side = await onPostgres();
  const finishes = new FinishStore(side.database);
  try {
    for (const task of ["j1-abcdefgh.1.1", "j12-abcdefgh.1.2", "j2-abcdefgh.1.3", "j1-abcdefgh.1.4"]) {
      const command: FinishCommand = { type: "task.finish", taskId: task, token: "1.1.1", workerId: "w", status: "ok" };
      await finishes.keep({ tenant: "", principal: "test" }, command, 0);
    }
    await finishes.keep(
      { tenant: "", principal: "test" },
      { type: "task.finish", taskId: "j3-abcdefgh.1.5", token: "3.1.1", workerId: "w", status: "ok" },
      60_000,
    );
    assert.deepEqual((await finishes.shards()).sort(), [1, 12, 2]);
    const due = async (limit: number, of: readonly number[]): Promise<string[]> =>
      (await finishes.due(limit, of)).map(({ command }) => command.taskId);
    assert.deepEqual(await due(10, [1, 2, 3]), ["j1-abcdefgh.1.1", "j2-abcdefgh.1.3", "j1-abcdefgh.1.4"]);
    assert.deepEqual(await due(1, [1, 2]), ["j1-abcdefgh.1.1"]);
  } finally {
    await side.close();
  }
});

test("old idempotency keys go in small steps, the others stay, and only the replicator removes any", async () => {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
  const database = new Database({ ...options, connections: 2, name: "test" });
  const retentionMs = 3_600_000;
  /** Of three shards. */
  const insert = (prefix: string, count: number, ageMs: number, since = 0): Promise<unknown> =>
    database.pool.query(
      `INSERT INTO idempotency_keys (tenant, key, shard, fingerprint, status, created_at, changed_epoch, changed_position)
       SELECT '', $1 || n, 3 * (n % 3), 'f', 200, now() - $3::int * interval '1 millisecond', 1, $4::int + n FROM generate_series(1, $2::int) AS n`,
      [prefix, count, ageMs, since],
    );
  const left = async (): Promise<number> =>
    (await database.pool.query<{ n: number }>("SELECT count(*)::int AS n FROM idempotency_keys")).rows[0]?.n ?? -1;
  const steps: number[] = [];
  let active = false;
  // Its rounds come a thousand times as often as they would.
  const time = { ...systemTime, sleep: (ms: number, signal?: AbortSignal) => systemTime.sleep(ms / 1_000, signal) };
  const pool = {
    query: async (statement: { text: string; values: unknown[] }) => {
      const done = await database.pool.query(statement);
      steps.push(done.rowCount ?? 0);
      return done;
    },
  };
  const expiry = new KeyExpiry({
    database: { pool } as unknown as Database,
    time,
    log: silentLogger,
    retentionMs,
    active: () => active,
  });
  try {
    await database.migrate();
    await insert("old-", 1_700, retentionMs + 60_000);
    await insert("young-", 20, retentionMs - 600_000, 1_700);
    await expiry.start();
    await systemTime.sleep(200);
    assert.equal(await left(), 1_720);
    active = true;
    while ((await left()) > 20) await systemTime.sleep(10);
    assert.deepEqual(
      steps.filter((rows) => rows > 0),
      [500, 500, 500, 200],
    );
    await insert("old-again-", 1, retentionMs + 60_000);
    while ((await left()) > 20) await systemTime.sleep(10);
    const { rows } = await database.pool.query("SELECT 1 FROM idempotency_keys WHERE key LIKE 'young-%'");
    assert.equal(rows.length, 20);
  } finally {
    await expiry.stop();
    await database.close();
  }
});

test("a late record does not bring back what was removed, whatever its position in an earlier epoch", async () => {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
  const database = new Database({ ...options, connections: 1, name: "test" });
  const row = (at: number, where: number, deleted: boolean): object => ({
    tenant: "",
    id: "removed",
    shard: 0,
    status: "active",
    name: deleted ? "" : "late",
    spec: {},
    state: {},
    labels: {},
    expiresAt: null,
    version: 1,
    createdAt: "2026-01-01T00:00:00Z",
    updatedAt: "2026-01-01T00:00:00Z",
    deleted,
    changedEpoch: epoch(at),
    changedPosition: position(where),
  });
  const write = (one: object): Promise<void> =>
    database.transaction((client) => upsert(client, shapes.clusters, [one]));
  const shown = async (): Promise<unknown> =>
    (await database.pool.query("SELECT name, deleted FROM clusters WHERE id = 'removed'")).rows;
  try {
    await database.migrate();
    await write(row(2, 5, true));
    for (const [at, where] of [
      [2, 4],
      [2, 5],
      [1, 900],
    ] as const) {
      await write(row(at, where, false));
      assert.deepEqual(await shown(), [{ name: "", deleted: true }], `epoch ${at}, position ${where}`);
    }
    await write(row(2, 6, false));
    assert.deepEqual(await shown(), [{ name: "late", deleted: false }]);
  } finally {
    await database.close();
  }
});

test("a transaction that stands still gives its locks back", async () => {
  const side = await onPostgres();
  const stuck = await side.owner.begin();
  try {
    await stuck.lock([shards[0] as ShardId]);
    const began = performance.now();
    await side.shards.fence({}, { site: "west", incarnation: 1 }, 1);
    assert.ok(performance.now() - began < 4_500, "waited for the lock");
    await assert.rejects(stuck.commit({ moved: [], records: [], now, tables: [], dropped: [], stages: [] }));
  } finally {
    await stuck.end(new Error("stood still")).catch(() => undefined);
    await side.close();
  }
});

test("a datacenter is closed beside a writer that locks one shard after the other", async () => {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 10_000 };
  const database = new Database({ ...options, connections: 3, name: "test" });
  const [first = shardId(0), second = shardId(1)] = shards;
  try {
    await database.migrate();
    for (const shard of [second, first])
      // The first one lies behind the second: whoever takes them as they lie takes them the other way round.
      await database.pool.query("INSERT INTO shard_head (shard, partition, revision) VALUES ($1, 0, 0)", [shard]);
    let closed: Promise<void> = Promise.resolve();
    await database.transaction(async (writer) => {
      await lockOwned(writer, [first]);
      closed = database.transaction((client) => close(client, 7));
      closed.catch(() => undefined);
      const waits = async (): Promise<boolean | undefined> =>
        (
          await database.pool.query(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
          )
        ).rowCount === 1 || undefined;
      assert.ok(await until(waits, 5_000), "the closing waits for the writer");
      await lockOwned(writer, [second]);
    });
    await closed;
    const { rows } = await database.pool.query("SELECT DISTINCT closing FROM shard_head");
    assert.deepEqual(rows, [{ closing: 7 }]);
  } finally {
    await database.close();
  }
});

test("records are applied again where the database went back behind them", async () => {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
  const database = new Database({ ...options, connections: 2, name: "test" });
  const writes = new Database({ ...options, connections: 1, name: "test writes", pipeline: true });
  const replica = new PostgresReplicaStore(database, writes, site, silentLogger);
  const [shard = shardId(0)] = shards;
  const message = (sequence: number, kind: "open" | "records"): Incoming => {
    const header: BatchHeader = {
      kind,
      generation: 1,
      shard,
      epoch: epoch(1),
      owner: "west",
      batchId: String(sequence).padStart(16, "0"),
      first: position(Math.max(1, sequence - 1)),
      count: kind === "open" ? 0 : 1,
      committedAt: now,
    };
    const cluster = {
      tenant: "",
      id: `c${sequence}`,
      shard,
      status: "active",
      name: "n",
      spec: {},
      state: {},
      labels: {},
      expiresAt: null,
      version: 1,
      createdAt: "2026-01-01T00:00:00Z",
      updatedAt: "2026-01-01T00:00:00Z",
      deleted: false,
    };
    const open: OpenBody = {
      from: null,
      kind: "initial",
      reason: "",
      by: "",
      sameTenure: false,
      closing: 0,
      phasesMs: {},
      drained: 0,
      epochEnds: [],
    };
    const records = kind === "open" ? [] : [encodeRecord({ type: "cluster.put", at: now, cluster } as never)];
    return { sequence, shard, header, batch: { header, records, open: kind === "open" ? open : null } };
  };
  const apply = (from: number, ...messages: Incoming[]): Promise<unknown> =>
    replica.apply([{ partition: partition(0), from, messages }]);
  const ids = async (): Promise<string[]> =>
    (await database.pool.query<{ id: string }>("SELECT id FROM clusters ORDER BY id")).rows.map(({ id }) => id);
  try {
    await database.migrate();
    await database.pool.query("INSERT INTO partition_progress (partition) VALUES (0)");
    await database.pool.query("INSERT INTO shard_head (shard, partition, revision) VALUES ($1, 0, 0)", [shard]);
    await apply(0, message(1, "open"));
    await apply(1, message(2, "records"));
    await apply(2, message(3, "records"), message(4, "records"));
    assert.deepEqual(await ids(), ["c2", "c3", "c4"]);
    // A standby is promoted that had not heard of the last transaction.
    await database.pool.query("DELETE FROM clusters WHERE id IN ('c3', 'c4')");
    await database.pool.query(
      "UPDATE shard_head SET position = 1, published = 1, digest = (SELECT digest FROM clusters)",
    );
    await database.pool.query("UPDATE partition_progress SET sequence = 2");
    const [[, sequence = -1] = []] = await replica.progress();
    assert.equal(sequence, 2);
    await apply(2, message(3, "records"));
    await apply(3, message(4, "records"));
    assert.deepEqual(await ids(), ["c2", "c3", "c4"]);
  } finally {
    await Promise.all([database.close(), writes.close()]);
  }
});

test("a long operation is shown and cancelled by any process, and fails when its own is gone", async () => {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
  const database = new Database({ ...options, connections: 2, name: "test" });
  const nodes = new PostgresShardStore(database);
  const [one, two] = [new OperationStore(database, "n1", 60_000), new OperationStore(database, "n2", 60_000)];
  const operation = (id: string): LongOperation => ({
    id,
    kind: "drain",
    status: "running",
    progress: { done: 0, total: 2 },
    shards: [0, 1].map((shard) => ({ shard, from: "east", to: "west", status: "waiting", error: null })),
    error: null,
    by: "test",
    startedAt: "2026-01-01T00:00:00Z",
    finishedAt: null,
  });
  try {
    await database.migrate();
    for (const node of ["n1", "n2"]) await nodes.refreshNode(node, "", 60_000);
    const drain = operation("op-east-a");
    assert.equal(await one.begin(drain, "f"), undefined);
    assert.deepEqual(await two.begin(operation("op-east-a"), "g"), { body: drain, fingerprint: "f" });
    const half = { ...drain, progress: { done: 1, total: 2 } };
    assert.equal(await one.save(half), false);
    assert.deepEqual((await two.find(drain.id))?.body, half);
    assert.deepEqual(await two.running(), [half]);
    // Another one that starts or looks does not take it for lost.
    assert.deepEqual([...(await two.endLost(true)), ...(await two.endLost(false))], []);
    assert.equal(await two.cancel(drain.id), true);
    assert.equal(await one.save(half), true);
    assert.equal(await one.save({ ...half, status: "cancelled" }), true);
    assert.equal(await two.cancel(drain.id), false);
    // Its own process began anew, or is not listed any more.
    for (const [lost, end] of [
      [operation("op-east-b"), () => one.endLost(true)],
      [operation("op-east-c"), async () => (await nodes.removeNode("n1"), two.endLost(false))],
    ] as const) {
      await one.begin(lost, null);
      await one.save({ ...lost, shards: lost.shards.map((s, n) => (n === 0 ? { ...s, status: "complete" } : s)) });
      assert.deepEqual(
        (await end()).map(({ id, status, finishedAt, shards }) => [
          ...[id, status, finishedAt !== null && Date.parse(finishedAt) > 0],
          ...shards.map((shard) => shard.status),
        ]),
        [[lost.id, "failed", true, "complete", "failed"]],
      );
    }
  } finally {
    await database.close();
  }
});

test("what an operator began is in the audit trail though its process died, and so is a long operation that nobody noted", async () => {
  const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
  const database = new Database({ ...options, connections: 2, name: "test" });
  const published = new Map<string, unknown>();
  const trail = (active: boolean): AuditTrail =>
    new AuditTrail({
      database,
      time: systemTime,
      log: silentLogger,
      publish: async (id, body) =>
        void published.set(id, `${String(body["result"])} ${JSON.stringify(body["target"])}`),
      active: () => active,
    });
  const [one, two] = [trail(false), trail(true)];
  const entry = (id: string, result: string, target: object = { shard: 1 }): AuditEntry => ({
    ...{ id, at: "2026-01-01T00:00:00.000Z", who: "admin", dc: "east", action: "repair" },
    ...{ target: { ...target }, result, requestId: null },
  });
  const listed = async (): Promise<unknown[]> =>
    (await two.list({ limit: 10 })).items.map((item) => {
      const { id, result } = item as { id: string; result: string };
      return [id, result];
    });
  try {
    await database.migrate();
    await one.begin(entry("a-1", "begun"));
    await one.begin(entry("a-2", "begun"));
    assert.deepEqual(await listed(), [
      ["a-1", "begun"],
      ["a-2", "begun"],
    ]);
    assert.equal(published.size, 0, "it goes into the log with what came of it");
    await one.note(entry("a-2", "ok"));
    assert.equal(published.get("a-2"), 'ok {"shard":1}');
    // Its process is gone: another one of the datacenter brings it.
    await database.pool.query("UPDATE audit_pending SET noted_at = now() - interval '1 minute'");
    await two.start();
    assert.ok(await until(async () => published.get("a-1") === 'begun {"shard":1}', 10_000, 25));
    await two.ended(entry("a-op-east-x", "failed", { operation: "op-east-x" }), "its process stopped");
    assert.equal(published.get("a-op-east-x"), 'failed {"operation":"op-east-x"}');
    // What was noted keeps what it said.
    await one.begin(entry("a-op-east-y", "running", { dc: "west" }));
    await two.ended(entry("a-op-east-y", "complete", { operation: "op-east-y" }), null);
    assert.equal(published.get("a-op-east-y"), 'complete {"dc":"west"}');
  } finally {
    await two.stop();
    await database.close();
  }
});

test("every datacenter's history says the same: what is known after a change's record is told, or asked for", async () => {
  const side = async (name: string) => {
    const options = { url: await freshDatabase(server), log: silentLogger, statementTimeoutMs: 5_000 };
    const database = new Database({ ...options, connections: 2, name });
    await database.migrate();
    return { name, database, reached: true };
  };
  const sides = await Promise.all(["east", "central", "west"].map(side));
  const [east, central, west] = sides as [Side3, Side3, Side3];
  type Side3 = (typeof sides)[number];
  const factsAt = new Map<string, HistoryFacts>();
  const calls = {
    call: async (dc: string, name: keyof Calls, argument: never) => {
      const facts = factsAt.get(dc);
      if (facts === undefined || sides.find((each) => each.name === dc)?.reached !== true)
        throw new Problem("owner_unreachable");
      return name === "historyTold" ? facts.told(argument) : facts.known(argument);
    },
  } as unknown as CallClient;
  for (const { name, database } of sides) {
    const others = (): string[] => sides.map((each) => each.name).filter((dc) => dc !== name);
    factsAt.set(name, new HistoryFacts({ database, calls, others, time: systemTime, log: silentLogger }));
  }
  const change = (shard: number, at: number, place: number, way: string, divergent = 0): HistoryRow => {
    const [from = "", to = "", kind = ""] = way.split(" ");
    const open = { kind, reason: "r", by: "b", phasesMs: { votes: 4 }, drained: 2 } as unknown as OpenBody;
    const owners = { from: from === "-" ? null : from, to };
    return { shard: shardId(shard), epoch: epoch(at), at: now + place, ...owners, open, divergent, last: position(7) };
  };
  const insert = async ({ database }: Side3, ...rows: HistoryRow[]): Promise<void> => {
    const client = await database.connect();
    await insertHistory(client, rows);
    client.release();
  };
  const pages = async ({ name, database }: Side3, limit: number) => {
    const parts = { control: database, facts: factsAt.get(name) } as unknown as DatacenterParts;
    const view = new GroupView(parts, { lag: { medianMs: 0 } } as never);
    const items: Record<string, unknown>[] = [];
    for (let cursor: string | null | undefined; cursor !== null;) {
      const page = await view.history({ limit, ...(cursor === undefined ? {} : { cursor }) });
      items.push(...(page.items as typeof items));
      cursor = page.nextCursor;
    }
    return items;
  };
  try {
    const takeover = [0, 2, 5_000, "west east takeover"] as const;
    for (const each of sides)
      await insert(
        each,
        change(0, 1, 0, "- west initial"),
        change(1, 1, 0, "- east initial"),
        // Only the former owner knows what it set aside, and its clock is behind.
        ...(each === central ? [] : [change(...takeover, each === west ? 3 : 0)]),
        change(0, 3, 3_000, "east west failback"),
        change(1, 2, 4_000, "east west switchover"),
      );
    // Its own phases; one other can't be reached, and to the other one it is told before the change itself is there.
    west.reached = false;
    factsAt.get("east")?.add({ shard: 0, epoch: 2, phasesMs: { open: 9 } });
    factsAt.get("east")?.add({ shard: 0, epoch: 2, phasesMs: { serve: 21 } });
    const phases = ({ database }: Side3): Promise<unknown> =>
      database.pool
        .query<{ phases: unknown }>("SELECT phases_ms AS phases FROM history WHERE shard = 0 AND epoch = 2")
        .then(({ rows }) => rows[0]?.phases);
    const whole = { votes: 4, open: 9, serve: 21 };
    const known = (each: Side3) => async () => isDeepStrictEqual(await phases(each), whole);
    assert.ok(await until(known(east), 10_000), "east keeps it");
    await insert(central, change(...takeover));
    assert.ok(await until(known(central), 10_000), "central was told");
    assert.deepEqual(await phases(west), { votes: 4 });
    west.reached = true;
    const all = await Promise.all(sides.map((each) => pages(each, 100)));
    for (const items of all) {
      assert.deepEqual(items, all[0]);
      // Of a shard no epoch comes before the one that it followed, whatever the owners' clocks said.
      assert.deepEqual(
        items.map(({ id }) => id),
        ["0-1", "1-1", "1-2", "0-2", "0-3"],
      );
      const { phasesMs, drained, divergent } = items[3] ?? {};
      assert.deepEqual({ phasesMs, drained, divergent }, { phasesMs: whole, drained: 2, divergent: 3 });
    }
    for (const limit of [1, 2]) assert.deepEqual(await pages(central, limit), all[0]);
    // It stays where it was asked for, also when those who knew are gone.
    east.reached = west.reached = false;
    assert.deepEqual(await pages(central, 100), all[0]);
  } finally {
    await Promise.all(sides.map(({ database }) => database.close()));
  }
});
