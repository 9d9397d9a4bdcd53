import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { readConfig, type Config } from "../../infra/config.js";
import { FatalError } from "../../infra/errors.js";
import { silentLogger } from "../../infra/logger.js";
import { LogStreams } from "../../infra/nats/log-streams.js";
import { NatsLink } from "../../infra/nats/nats-link.js";
import { Database } from "../../infra/postgres/database.js";
import { decodeBatch } from "../../replication/record.js";
import { meetDatabase } from "../../shards/incarnation.js";
import { decodeSiteSet } from "../../shards/site-set.js";
import { newGeneration, type NewGenerationPlan } from "../../services/new-generation.js";
import { freshDatabase, startNats, startPostgres, type TestNats, type TestPostgres } from "../harness/servers.js";

const size = { shards: 4, partitions: 2 };
const step = 2 ** 32;
const alone: NewGenerationPlan = { datacenters: ["a"], witnesses: [] };

describe("a new log generation from one datacenter's copy", { timeout: 120_000 }, () => {
  let postgres: TestPostgres;
  let nats: TestNats;
  let link: NatsLink;
  let groups = 0;
  before(async () => {
    [postgres, nats] = await Promise.all([startPostgres(), startNats(1, ["a"])]);
    link = await NatsLink.open({ servers: nats.urls("a"), name: "test", waitMs: 5_000, log: silentLogger });
  });
  after(async () => {
    await link?.close();
    await Promise.all([postgres?.stop(), nats?.stop()]);
  });

  /** Datacenter `a` of a group of two that has worked for a while. */
  async function copyOf(generation = 1) {
    const group = `g${++groups}`;
    const url = await freshDatabase(postgres);
    const database = new Database({ url, log: silentLogger, connections: 2, name: "test" });
    await database.migrate();
    await meetDatabase(
      database,
      { group, datacenter: "a", generation, size },
      { node: "n1", goneMs: 1_000, closing: 1, run: "r", wall: 0, log: silentLogger },
    );
    await database.pool.query(
      `UPDATE shard_head SET owner = CASE WHEN partition = 0 THEN 'a' ELSE 'b' END, epoch = 3, position = 7 + shard, published = 5,
         tenure = 3, state = CASE WHEN partition = 0 THEN 'owned' ELSE 'replica' END`,
    );
    await database.pool.query("UPDATE partition_progress SET sequence = 900");
    const config = (next: number, dc = "a"): Config =>
      readConfig({
        HOTHOT_DC: dc,
        HOTHOT_GROUP: group,
        HOTHOT_DATABASE_URL: url,
        HOTHOT_NATS_URLS: nats.urls("a").join(","),
        HOTHOT_LOG_GENERATION: String(next),
      });
    return {
      database,
      config,
      streams: (next: number) => new LogStreams(group, next, [link]),
      begin: (next: number, plan = alone) => newGeneration(config(next), plan, silentLogger),
      heads: async () =>
        (
          await database.pool.query<{ owner: string; epoch: number; position: number; state: string }>(
            "SELECT owner, epoch, position, state FROM shard_head ORDER BY shard",
          )
        ).rows,
      progress: async () =>
        (
          await database.pool.query<{ sequence: number }>("SELECT sequence FROM partition_progress ORDER BY partition")
        ).rows.map((row) => row.sequence),
    };
  }

  const read = async (streams: LogStreams, partition: number) =>
    (await streams.readFrom(partition, 1, { batch: 100, maxBytes: 1_000_000, timeoutMs: 2_000 }, 0)).map((message) => ({
      sequence: message.sequence,
      ...decodeBatch(message.data),
    }));
  const isWhole = async (copy: Awaited<ReturnType<typeof copyOf>>, generation: number, first: number) => {
    const streams = copy.streams(generation);
    const control = await streams.readControl(2_000, 0);
    assert.ok(control !== undefined);
    assert.deepEqual(decodeSiteSet(control.data).sites, [{ name: "a", witness: false }]);
    assert.deepEqual(
      await copy.heads(),
      [7, 8, 9, 10].map((position) => ({ owner: "a", epoch: first, position, state: "suspended" })),
    );
    const progress = await copy.progress();
    for (const partition of [0, 1]) {
      const messages = await read(streams, partition);
      assert.ok((messages[0]?.sequence ?? 0) > 1, "nobody can begin at the log's first message");
      assert.equal(messages.at(-1)?.sequence, progress[partition]);
      assert.deepEqual(
        messages.map(({ header, open }) => [header.kind, header.shard, header.epoch, header.first, open?.from]),
        [partition, partition + 2].map((shard) => ["statement", shard, first, 8 + shard, partition === 0 ? "a" : "b"]),
      );
      const ends = messages.map(({ open }) => open?.epochEnds.at(-1));
      assert.deepEqual(
        ends.map((end) => [end?.epoch, end?.last]),
        [partition, partition + 2].map((shard) => [3, 7 + shard]),
      );
    }
  };
  const refused = (work: Promise<unknown>, code: string, words: RegExp): Promise<void> =>
    assert.rejects(work, (error: unknown) => {
      assert.ok(error instanceof FatalError, String(error));
      assert.equal(error.code, code);
      assert.match(`${error.message} ${error.wayOut}`, words);
      return true;
    });

  it("owns every shard, 2^32 epochs on; repeated it changes nothing; the next one goes as far again", async () => {
    const copy = await copyOf();
    assert.equal(await copy.begin(2), 2, "shards that the other one had");
    await isWhole(copy, 2, 3 + step);
    assert.equal(await copy.begin(2), 0);
    await isWhole(copy, 2, 3 + step);
    await copy.begin(3);
    for (const head of await copy.heads()) assert.equal(head.epoch, 3 + 2 * step);
    await refused(copy.begin(2), "no_new_generation", /HOTHOT_LOG_GENERATION=4/);
    await copy.database.close();
  });

  it("what an earlier try left half made is begun again", async () => {
    const copy = await copyOf();
    const streams = copy.streams(2);
    await streams.create(size.partitions, 1, 5_000);
    assert.equal((await streams.append(1, 3, new Uint8Array([1, 2, 3]), 0, 2_000, 0)).kind, "stored");
    await copy.begin(2);
    await isWhole(copy, 2, 3 + step);
    await copy.database.close();
  });

  it("ended before the site set was stored, it is brought to its end by a repetition", async () => {
    const copy = await copyOf();
    await copy.begin(2);
    // Nobody has read it, as without a site set no process uses the log.
    const control = copy.streams(2).controlStream;
    await link.request(`$JS.API.STREAM.PURGE.${control}`, new Uint8Array(0), 2_000);
    assert.equal(await copy.streams(2).readControl(2_000, 0), undefined);
    await copy.begin(2);
    await isWhole(copy, 2, 3 + step);
    await copy.database.close();
  });

  it("two at once make one log", async () => {
    const copy = await copyOf();
    assert.deepEqual((await Promise.all([copy.begin(2), copy.begin(2)])).sort(), [0, 2]);
    await isWhole(copy, 2, 3 + step);
    await copy.database.close();
  });

  it("refuses another group's log, a copy that is not whole, and a datacenter that still runs", async () => {
    const copy = await copyOf();
    await refused(copy.begin(2, { datacenters: ["b"], witnesses: [] }), "bad_option", /--sites a,b/);
    await refused(
      newGeneration(copy.config(2, "b"), { ...alone, datacenters: ["b"] }, silentLogger),
      "no_new_generation",
      /belongs to a/,
    );
    await copy.database.pool.query(
      "INSERT INTO nodes (node, seen_at, url, started_at) VALUES ('n1', now(), 'http://x', now())",
    );
    await refused(copy.begin(2), "no_new_generation", /n1.*Stop them/);
    await copy.database.pool.query("DELETE FROM nodes");
    await copy.database.pool.query("UPDATE shard_head SET stopped = 'a gap' WHERE shard = 2");
    await refused(copy.begin(2), "no_new_generation", /\(2\).*another datacenter/);
    await copy.database.pool.query("UPDATE shard_head SET stopped = NULL");
    const streams = copy.streams(2);
    await streams.create(size.partitions, 1, 5_000);
    await streams.appendControl(new TextEncoder().encode("{}"), 0, 2_000, 0);
    await refused(copy.begin(2), "another_group", /not begun here/);
    assert.equal((await copy.heads())[0]?.epoch, 3, "nothing has changed");
    await copy.database.close();
  });
});
