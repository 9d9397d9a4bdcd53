import { systemTime } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import { FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { LogStreams } from "../infra/nats/log-streams.js";
import { Database, type Client } from "../infra/postgres/database.js";
import { systemRandom } from "../infra/random.js";
import { batchId } from "../replication/ownership.js";
import { encodeBatch, type BatchHeader, type EpochEnd, type OpenBody } from "../replication/record.js";
import { epoch, position, shardId, type Epoch, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import { encodeSiteSet, replicasDue, type SiteSet } from "../shards/site-set.js";
import { databaseReady } from "./database-ready.js";
import { goneMs } from "./engine/ground.js";
import { createStreams, jetStreamLeads } from "./init.js";
import { openLinks } from "./links.js";

/** First epochs of a log generation are that much above those of the copy that it begins with, per generation (section 2). */
const generationStep = 2 ** 32;
const patienceMs = 60_000;

export interface NewGenerationPlan {
  readonly datacenters: readonly SiteName[];
  readonly witnesses: readonly SiteName[];
}

/** A shard as this datacenter's copy has it. */
interface Copy {
  readonly shard: ShardId;
  readonly partition: number;
  readonly owner: SiteName | null;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly stopped: string | null;
  readonly epoch_ends: readonly EpochEnd[];
}

/** With its first epoch in the new log. */
type Begun = Copy & { readonly first: Epoch };

interface Meta {
  readonly group_name: string;
  readonly datacenter: string;
  readonly generation: number;
  readonly shards: number;
  readonly partitions: number;
}

/**
 * Break-glass: begins the log anew from this datacenter's copy, after a majority of the sites is gone for good (or one of two
 * datacenters without a witness). This datacenter owns every shard then; what the others hold beyond its copy is divergent,
 * and found there when they return. Its processes must be stopped, and the NATS servers of the sites that stay must run as a
 * cluster of their own, with an empty store. May be repeated after a failure at any step.
 * @param plan the sites that stay; this datacenter is one of them
 * @returns the shards that had another owner
 * @throws FatalError with what is missing
 */
export async function newGeneration(config: Config, plan: NewGenerationPlan, log: Logger): Promise<number> {
  const generation = config.logGeneration;
  if (!plan.datacenters.includes(config.site))
    throw new FatalError(
      "bad_option",
      `${config.site} begins the new log and has to be one of its datacenters`,
      `Add it: --sites ${[config.site, ...plan.datacenters].join(",")}.`,
    );
  const database = new Database({ url: config.databaseUrl ?? "", log, connections: 2, name: "hothot init" });
  let alone: Client | undefined;
  try {
    await databaseReady(database, systemTime, log);
    await database.migrate();
    alone = await onlyOne(database);
    const { meta, copies } = await readCopy(database, config);
    const links = await openLinks(config, log);
    try {
      const streams = new LogStreams(config.group, generation, links.routes);
      const deadline = systemTime.monotonic() + patienceMs;
      await jetStreamLeads(links.main, deadline);
      const sites = [
        ...plan.datacenters.map((name) => ({ name, witness: false })),
        ...plan.witnesses.map((name) => ({ name, witness: true })),
      ];
      const { shards, partitions } = meta;
      const lost = copies.filter((copy) => copy.owner !== config.site).length;
      if (meta.generation < generation) {
        // What an earlier try left was seen by nobody: without a site set no process uses it.
        if (await hasSiteSet(streams)) throw otherLog(config);
        await streams.destroy(partitions, 5_000);
        await createStreams(streams, partitions, replicasDue(sites.length), deadline);
        const begun = copies.map((copy) => ({ ...copy, first: firstEpoch(copy, generation - meta.generation) }));
        const ends = await openAll(streams, config, begun, partitions, deadline);
        await takeAll(database, config, begun, ends);
      } else if ((await streams.stateOf(null, 2_000)) === undefined)
        throw new FatalError(
          "log_not_created",
          `the log of generation ${generation} was begun here, and NATS does not have it`,
          `Begin the next one: HOTHOT_LOG_GENERATION=${generation + 1}.`,
        );
      const set: SiteSet = { number: 1, sites, removed: [], failoverPaused: false, shards, partitions };
      const stored = await streams.appendControl(encodeSiteSet(set), 0, 5_000, 0);
      if (stored.kind !== "stored" && !(await hasSiteSet(streams)))
        throw new FatalError("log_not_created", "the site set could not be stored in the log", "Repeat.");
      return lost;
    } finally {
      await links.close();
    }
  } finally {
    alone?.release(true);
    await database.close();
  }
}

/**
 * One at a time begins a log here: a second one would take the first one's messages for another group's. The lock ends with
 * its connection.
 * @throws FatalError no_new_generation while another one is at it
 */
async function onlyOne(database: Database): Promise<Client> {
  const client = await database.connect();
  const deadline = systemTime.monotonic() + patienceMs;
  for (;;) {
    const { rows } = await client.query<{ mine: boolean }>("SELECT pg_try_advisory_lock(7305130) AS mine");
    if (rows[0]?.mine === true) return client;
    if (systemTime.monotonic() > deadline) {
      client.release(true);
      throw new FatalError(
        "no_new_generation",
        "another `hothot init --new-generation` is at work in this database",
        "Wait until it has ended, then repeat.",
      );
    }
    await systemTime.sleep(200);
  }
}

async function hasSiteSet(streams: LogStreams): Promise<boolean> {
  if ((await streams.stateOf(null, 2_000)) === undefined) return false;
  return (await streams.readControl(2_000, 0)) !== undefined;
}

/** @throws FatalError when the copy can't begin a log */
async function readCopy(database: Database, config: Config): Promise<{ meta: Meta; copies: readonly Copy[] }> {
  const refuse = (message: string, wayOut: string): FatalError => new FatalError("no_new_generation", message, wayOut);
  const { rows: metas } = await database.pool.query<Meta>(
    "SELECT group_name, datacenter, generation, shards, partitions FROM meta",
  );
  const [meta] = metas;
  if (meta === undefined)
    throw refuse("the database is empty", "Run this where a datacenter has its copy; `hothot init` makes a new group.");
  if (meta.group_name !== config.group || meta.datacenter !== config.site)
    throw refuse(
      `the database belongs to ${meta.datacenter} of ${meta.group_name}`,
      "Mend HOTHOT_DATABASE_URL, HOTHOT_GROUP or HOTHOT_DC.",
    );
  if (meta.generation > config.logGeneration)
    throw refuse(
      `the database knows log generation ${meta.generation} already`,
      `Set HOTHOT_LOG_GENERATION=${meta.generation + 1}.`,
    );
  const { rows: alive } = await database.pool.query<{ node: string }>(
    "SELECT node FROM nodes WHERE seen_at > clock_timestamp() - $1 * interval '1 millisecond'",
    [goneMs(config)],
  );
  if (alive.length > 0)
    throw refuse(
      `processes of ${config.site} run: ${alive.map((row) => row.node).join(", ")}`,
      "Stop them first; they serve again once the new log is there.",
    );
  const { rows: copies } = await database.pool.query<Copy>(
    "SELECT shard, partition, owner, epoch, position, stopped, epoch_ends FROM shard_head ORDER BY shard",
  );
  const { rows: waits } = await database.pool.query<{ shard: number }>("SELECT DISTINCT shard FROM restores");
  const incomplete = new Set(waits.map((row) => row.shard));
  const bad = copies.filter((copy) => copy.epoch === 0 || copy.stopped !== null || incomplete.has(copy.shard));
  if (bad.length > 0 || copies.length !== meta.shards)
    throw refuse(
      `the copy of ${bad.length} shard(s) is not whole (${bad
        .slice(0, 5)
        .map((copy) => copy.shard)
        .join(", ")})`,
      "Begin the new log at another datacenter.",
    );
  return { meta, copies };
}

/** No other generation has this epoch, whichever copy it began with. */
const firstEpoch = (copy: Copy, generations: number): Epoch => epoch(copy.epoch + generations * generationStep);

const endsOf = (copy: Copy): EpochEnd[] => [
  ...copy.epoch_ends,
  ...(copy.owner === null ? [] : [{ epoch: copy.epoch, owner: copy.owner, last: copy.position }]),
];

/**
 * Opens every shard and states it again. The first messages are purged, so that nobody can begin to read before what the log
 * holds: whoever comes loads a copy.
 * @returns the last sequence of each partition
 */
async function openAll(
  streams: LogStreams,
  config: Config,
  copies: readonly Begun[],
  partitions: number,
  deadline: number,
): Promise<Map<number, number>> {
  const ends = new Map<number, number>();
  const one = async (partition: number): Promise<void> => {
    const mine = copies.filter((copy) => copy.partition === partition);
    const opened = new Map<ShardId, number>();
    for (const copy of mine) opened.set(copy.shard, await append(streams, config, copy, "open", 0, deadline));
    const states: number[] = [];
    for (const copy of mine)
      states.push(await append(streams, config, copy, "statement", opened.get(copy.shard) ?? 0, deadline));
    ends.set(partition, states.at(-1) ?? 0);
    if (states[0] !== undefined) await streams.purgeBelow(partition, states[0], 5_000);
  };
  const all = Array.from({ length: partitions }, (_, partition) => partition);
  for (let at = 0; at < all.length; at += 16) await Promise.all(all.slice(at, at + 16).map(one));
  return ends;
}

async function append(
  streams: LogStreams,
  config: Config,
  copy: Begun,
  kind: "open" | "statement",
  expected: number,
  deadline: number,
): Promise<number> {
  const header: BatchHeader = {
    kind,
    generation: config.logGeneration,
    shard: shardId(copy.shard),
    epoch: copy.first,
    owner: config.site,
    batchId: batchId(systemRandom),
    first: position(copy.position + 1),
    count: 0,
    committedAt: systemTime.wall(),
  };
  const open: OpenBody = {
    from: copy.owner,
    kind: "takeover",
    reason: `log generation ${config.logGeneration}`,
    by: "init",
    sameTenure: copy.owner === config.site,
    closing: 0,
    phasesMs: {},
    drained: 0,
    epochEnds: endsOf(copy),
  };
  const bytes = encodeBatch({ header, records: [], open });
  for (;;) {
    const answer = await streams.append(copy.partition, copy.shard, bytes, expected, 1_000, 0);
    if (answer.kind === "stored") return answer.sequence;
    if (answer.kind === "refused") {
      // Nobody else writes here: an append whose answer was late is there.
      const last = await streams.readLast(copy.partition, copy.shard, 2_000, 0);
      if (last !== undefined && Buffer.compare(last.data, bytes) === 0) return last.sequence;
      throw otherLog(config);
    }
    if (systemTime.monotonic() > deadline)
      throw new FatalError(
        "log_not_created",
        `the first records of shard ${copy.shard} can't be stored`,
        "The nats-servers of all sites that stay must run; repeat then.",
      );
    await systemTime.sleep(50);
  }
}

/** The database owns all shards in the new log's epochs; an own `open` confirms each before it is served (rule g). */
async function takeAll(
  database: Database,
  config: Config,
  copies: readonly Begun[],
  ends: ReadonlyMap<number, number>,
): Promise<void> {
  await database.transaction(async (client) => {
    await client.query("UPDATE meta SET generation = $1", [config.logGeneration]);
    await client.query(
      "UPDATE partition_progress p SET sequence = v.sequence FROM unnest($1::int[], $2::bigint[]) AS v(partition, sequence) WHERE p.partition = v.partition",
      [[...ends.keys()], [...ends.values()]],
    );
    await client.query(
      `UPDATE shard_head h SET owner = $1, epoch = v.epoch, state = 'suspended', published = h.position, confirmed = false, since = now(),
         kind = 'takeover', reason = $2, epoch_ends = v.ends::jsonb, revision = h.revision + 1,
         tenure = CASE WHEN h.owner = $1 AND h.tenure > 0 THEN h.tenure ELSE v.epoch END
       FROM unnest($3::int[], $4::bigint[], $5::text[]) AS v(shard, epoch, ends) WHERE h.shard = v.shard`,
      [
        config.site,
        `log generation ${config.logGeneration}`,
        copies.map((copy) => copy.shard),
        copies.map((copy) => copy.first),
        copies.map((copy) => JSON.stringify(endsOf(copy))),
      ],
    );
    await client.query(
      `INSERT INTO history (shard, epoch, at, from_dc, to_dc, kind, reason, by, last_position)
       SELECT v.shard, v.epoch, now(), v.owner, $1, 'takeover', $2, 'init', v.last
       FROM unnest($3::int[], $4::bigint[], $5::text[], $6::bigint[]) AS v(shard, epoch, owner, last) ON CONFLICT DO NOTHING`,
      [
        config.site,
        `log generation ${config.logGeneration}`,
        copies.map((copy) => copy.shard),
        copies.map((copy) => copy.first),
        copies.map((copy) => copy.owner),
        copies.map((copy) => copy.position),
      ],
    );
  });
}

const otherLog = (config: Config): FatalError =>
  new FatalError(
    "another_group",
    `there is a log of generation ${config.logGeneration} already, and it was not begun here`,
    `A datacenter whose database is older joins it: start it with HOTHOT_LOG_GENERATION=${config.logGeneration} once it is a member.`,
  );
