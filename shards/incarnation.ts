import { asError, FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { incarnationOf, readIdentity, type Database, type Identity } from "../infra/postgres/database.js";
import type { SiteName } from "./ids.js";
import { close, lockHeads } from "./postgres-store.js";

export interface GroupFacts {
  readonly group: string;
  readonly datacenter: SiteName;
  readonly generation: number;
  /** Null: not known yet; the database says, if it is not new. */
  readonly size: { readonly shards: number; readonly partitions: number } | null;
}

/**
 * The first statement of every process in its database (rule i): makes the rows of a new database, refuses one that belongs
 * to another group, datacenter or log generation, and closes the datacenter when the database is another incarnation than
 * what is stored in it.
 * @param closing a number never used before
 * @param run names this run of the datacenter, in case this is its first process
 * @returns the identity that later statements are meant for; null: the database is new, and the group's size not known yet
 */
export async function meetDatabase(
  database: Database,
  facts: GroupFacts,
  options: {
    readonly node: string;
    readonly goneMs: number;
    readonly closing: number;
    readonly run: string;
    readonly wall: number;
    readonly log: Logger;
  },
): Promise<Identity | null> {
  const identity = await database.meet(async (client) => {
    await client.query("SELECT pg_advisory_xact_lock(7305129)");
    // Read behind the lock: another process may have raised the restore number meanwhile.
    let found = await readIdentity(client);
    const { size } = facts;
    if (size !== null)
      await client.query(
        `INSERT INTO meta (group_name, datacenter, generation, shards, partitions, system_id, timeline) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
        [facts.group, facts.datacenter, facts.generation, size.shards, size.partitions, found.systemId, found.timeline],
      );
    const { rows } = await client.query<{
      group_name: string;
      datacenter: string;
      generation: number;
      shards: number;
      partitions: number;
      system_id: string;
      restore_number: number;
      met_restore_number: number;
      timeline: number;
    }>("SELECT * FROM meta FOR UPDATE");
    const meta = rows[0];
    if (meta === undefined) return null;
    for (const [what, here, there] of [
      ["group", facts.group, meta.group_name],
      ["datacenter", facts.datacenter, meta.datacenter],
      ["number of shards", size?.shards ?? meta.shards, meta.shards],
      ["number of partitions", size?.partitions ?? meta.partitions, meta.partitions],
    ] as const)
      if (here !== there)
        throw new FatalError(
          "wrong_database",
          `the database belongs to ${what} '${there}', this process to '${here}'`,
          "Mend HOTHOT_DATABASE_URL, HOTHOT_GROUP or HOTHOT_DC: each datacenter has a database of its own.",
        );
    if (meta.generation > facts.generation)
      throw new FatalError(
        "wrong_generation",
        `the database follows the log's generation ${meta.generation}, this process generation ${facts.generation}`,
        `Set HOTHOT_LOG_GENERATION=${meta.generation}.`,
      );
    // A new log was begun while this datacenter was away. Nothing is served by what the old one said; a copy is loaded, and
    // what the new log's beginning does not hold is found to be divergent on the way.
    if (meta.generation < facts.generation && size !== null) {
      options.log.warn("the log has a new generation: this datacenter's copy is brought to it", {
        from: meta.generation,
        to: facts.generation,
      });
      await client.query("UPDATE meta SET generation = $1", [facts.generation]);
      await client.query("UPDATE partition_progress SET sequence = 0");
      await close(client, options.closing);
    }
    await client.query(
      "INSERT INTO shard_head (shard, partition) SELECT s, s % $2 FROM generate_series(0, $1 - 1) AS s ON CONFLICT DO NOTHING",
      [meta.shards, meta.partitions],
    );
    await client.query(
      "INSERT INTO partition_progress (partition) SELECT p FROM generate_series(0, $1 - 1) AS p ON CONFLICT DO NOTHING",
      [meta.partitions],
    );
    if (meta.system_id !== found.systemId)
      found = { ...found, restoreNumber: Math.max(meta.restore_number + 1, Math.floor(options.wall / 1000)) };
    const stored: Identity = {
      systemId: meta.system_id,
      restoreNumber: meta.met_restore_number,
      timeline: meta.timeline,
    };
    if (stored.systemId !== found.systemId || incarnationOf(stored) !== incarnationOf(found)) {
      options.log.error("the database is a new incarnation: what it says it owns is closed until the log confirms it", {
        stored,
        found,
      });
      await client.query(
        "UPDATE meta SET system_id = $1, restore_number = $2, met_restore_number = $2, timeline = $3",
        [found.systemId, found.restoreNumber, found.timeline],
      );
      await close(client, options.closing);
      // The coordinator's lock is nobody's: whoever takes it keeps the silence of a fresh one.
      await client.query("DELETE FROM locks");
    }
    const alive = await client.query(
      "SELECT 1 FROM nodes WHERE node <> $1 AND seen_at > clock_timestamp() - $2 * interval '1 millisecond'",
      [options.node, options.goneMs],
    );
    if (alive.rowCount === 0) {
      // The first process of the datacenter: the log confirms anew what is owned, before it is served (rule g).
      await client.query("UPDATE meta SET run = $1", [options.run]);
      await lockHeads(client);
      await client.query(
        "UPDATE shard_head SET confirmed = false, revision = revision + 1 WHERE confirmed AND state <> 'replica'",
      );
    }
    return found;
  });
  if (identity !== null) database.adopt(identity);
  return identity;
}

/** Repeats `meetDatabase` until the database answers, since a failover may be under way. */
export async function meetAgain(
  meet: () => Promise<Identity | null>,
  sleep: () => Promise<void>,
  log: Logger,
  stopped: () => boolean,
): Promise<Identity | undefined> {
  while (!stopped()) {
    try {
      return (await meet()) ?? undefined;
    } catch (error) {
      if (error instanceof FatalError) throw error;
      log.warn("the new incarnation of the database can't be met yet", { error: asError(error) });
      await sleep();
    }
  }
  return undefined;
}
