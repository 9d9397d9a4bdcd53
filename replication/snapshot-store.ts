import type { Client, Database } from "../infra/postgres/database.js";
import {
  epoch as toEpoch,
  type Epoch,
  type Partition,
  type Position,
  type ShardId,
  type SiteName,
} from "../shards/ids.js";
import { dropCarried } from "./carried.js";
import { copyTables, pageCompare, rowHash, type CopyTable } from "./copy-tables.js";
import type { Chunk, Cut, Folded, FoldedShard } from "./copy-source.js";
import { resetDigest } from "./digest.js";
import { setAside, voidCopies } from "./divergence.js";
import { lockHeads, storeHeads, type FullHead } from "./heads.js";
import { endOfCut, planJump } from "./jump.js";
import { loadingColumns, loadingOf, startLoading, type Loading, type LoadingRow } from "./loading.js";
import { Overtaken } from "./replica-store.js";
import { shapes, type TableShape } from "./rows.js";

/** A shard whose epoch changed by a jump instead of by its record. */
export interface Jumped {
  readonly head: FullHead;
  readonly before: FullHead;
  /** Where the epoch that stood here ended. */
  readonly ended: Position;
  readonly divergent: number;
  readonly loads: boolean;
}

export interface StoppedShard {
  readonly shard: ShardId;
  readonly partition: Partition;
  /** The message that could not be read here. */
  readonly unread: number | null;
  readonly recopy: boolean;
}

/** The rows in a chunk's range are not those of the source. */
export class ChunkDiffers extends Error {
  constructor(
    readonly shard: ShardId,
    readonly table: string,
  ) {
    super(`the rows of ${table} differ from those of the source after they were loaded`);
    this.name = "ChunkDiffers";
  }
}

/** What of a snapshot is stored at the datacenter that loads it: each step is one transaction, so it goes on after any break. */
export class SnapshotStore {
  constructor(
    private readonly database: Database,
    private readonly site: SiteName,
  ) {}

  async progress(partition: Partition): Promise<number> {
    const { rows } = await this.database.pool.query<{ sequence: number }>(
      "SELECT sequence FROM partition_progress WHERE partition = $1",
      [partition],
    );
    return rows[0]?.sequence ?? 0;
  }

  /** Shards that have stopped here. */
  async stopped(): Promise<StoppedShard[]> {
    const { rows } = await this.database.pool.query<StoppedShard>(
      "SELECT shard, partition, unread, recopy FROM shard_head WHERE stopped IS NOT NULL ORDER BY shard",
    );
    return rows;
  }

  /** A shard that has stopped shall be copied again, or (false) that was given up. @returns whether it has stopped */
  async recopy(shard: ShardId, wanted: boolean): Promise<boolean> {
    const { rowCount } = await this.database.pool.query(
      "UPDATE shard_head SET recopy = $2 WHERE shard = $1 AND stopped IS NOT NULL",
      [shard, wanted],
    );
    return rowCount === 1;
  }

  /** How far the recopying of a shard is. `given_up`: it has stopped, and nobody works at it. */
  async recopied(shard: ShardId): Promise<"loads" | "done" | "given_up"> {
    const { rows } = await this.database.pool.query<{ given_up: boolean; loads: boolean }>(
      `SELECT stopped IS NOT NULL AND NOT recopy AS given_up,
         stopped IS NOT NULL OR EXISTS (SELECT 1 FROM restores r WHERE r.shard = h.shard) AS loads
       FROM shard_head h WHERE shard = $1`,
      [shard],
    );
    return rows[0]?.given_up === true ? "given_up" : rows[0]?.loads === true ? "loads" : "done";
  }

  async loading(): Promise<Loading[]> {
    const { rows } = await this.database.pool.query<LoadingRow>(
      `SELECT ${loadingColumns} FROM snapshots ORDER BY shard`,
    );
    return rows.map(loadingOf);
  }

  /**
   * Goes on with the partition behind message `folded.sequence` of another datacenter's fold: heads and progress change together,
   * what an ended epoch never published is set aside, and what is missing begins to load.
   * @throws Overtaken when the progress is not `from` any more
   */
  async jump(partition: Partition, from: number, folded: Folded, attempt: string): Promise<Jumped[]> {
    return this.database.transaction(async (client) => {
      const moved = await client.query(
        "UPDATE partition_progress SET sequence = $3 WHERE partition = $1 AND sequence = $2 AND sequence <= $3",
        [partition, from, folded.sequence],
      );
      if (moved.rowCount !== 1) throw new Overtaken();
      const heads = await lockHeads(
        client,
        folded.shards.map((each) => each.shard as ShardId),
      );
      const jumped: Jumped[] = [];
      for (const there of folded.shards) {
        const head = heads.get(there.shard as ShardId);
        if (head !== undefined) jumped.push(await this.#jumpShard(client, head, there, attempt));
      }
      await storeHeads(
        client,
        jumped.map((each) => each.head),
      );
      await client.query(
        "UPDATE shard_head SET unread = NULL, recopy = false WHERE partition = $1 AND stopped IS NULL",
        [partition],
      );
      return jumped;
    });
  }

  async #jumpShard(client: Client, head: FullHead, there: FoldedShard, attempt: string): Promise<Jumped> {
    const known = (
      await client.query<LoadingRow>(`SELECT ${loadingColumns} FROM snapshots WHERE shard = $1`, [head.shard])
    ).rows.map(loadingOf)[0];
    const waits = await client.query("SELECT 1 FROM restores WHERE shard = $1 AND kind = 'shard'", [head.shard]);
    const unsettled = known === undefined && waits.rowCount !== 0;
    const plan = planJump(this.site, head, there);
    let divergent = 0;
    if (plan.divergentAbove !== null) divergent = await setAside(client, this.site, head, plan.divergentAbove);
    if (there.epoch > head.epoch) {
      for (const cut of await cutEpochs(client, head.shard, head.epoch, there.epoch))
        await voidCopies(client, head.shard, cut, endOfCut(cut, head, plan, there));
      await dropCarried(client, [{ shard: head.shard, epoch: toEpoch(there.epoch) }]);
    }
    const loads = plan.loads || known !== undefined || unsettled;
    if (loads)
      await startLoading(client, {
        shard: head.shard,
        // What was half loaded is no base to start from.
        since: known === undefined && !unsettled ? plan.since : null,
        from: { epoch: there.epoch, position: there.position },
        attempt,
      });
    // Its rows are whole; who owned it meanwhile is not known here.
    else if (there.epoch > head.epoch)
      await startLoading(client, {
        shard: head.shard,
        since: null,
        from: { epoch: there.epoch, position: there.position },
        attempt,
        first: "history",
      });
    return { head: plan.head, before: head, ended: plan.ended, divergent, loads };
  }

  /**
   * Stores a chunk, with its rows in JSON, if it still is the one that is wanted and lies in the line of epochs that stands here.
   * @returns false when it is of no use (any more)
   * @throws ChunkDiffers
   */
  async store(loading: Loading, table: CopyTable, since: Cut | null, chunk: Chunk, rows: Buffer): Promise<boolean> {
    return this.database.transaction(async (client) => {
      await client.query("SET LOCAL TIME ZONE 'UTC'");
      const head = (await lockHeads(client, [loading.shard])).get(loading.shard);
      const { rows: found } = await client.query<LoadingRow & { readonly cut_epoch: number | null }>(
        `SELECT ${loadingColumns}, cut_epoch FROM snapshots WHERE shard = $1 FOR UPDATE`,
        [loading.shard],
      );
      const now = found.map(loadingOf)[0];
      if (head === undefined || now === undefined || !samePlace(now, loading)) return false;
      if (chunk.epoch < head.epoch || !notBefore(chunk, now.from)) return false;
      // Whether what is loaded was published is told by the end of its epoch, which is yet to come here.
      const cut = found[0]?.cut_epoch ?? chunk.epoch;
      if (chunk.epoch > head.epoch && chunk.epoch > cut) return false;
      if (since === null && table.placed) await clearRange(client, loading.shard, table, loading.after, chunk);
      await client.query(insertStatement(table), [rows]);
      if (table.compared && !(await sameRange(client, loading.shard, table, loading.after, chunk)))
        throw new ChunkDiffers(loading.shard, table.name);
      const next = chunk.last === null ? copyTables[copyTables.indexOf(table) + 1] : table;
      await client.query(
        `UPDATE snapshots SET table_name = $2, after = $3, rows = rows + $4,
           cut_epoch = CASE WHEN cut_epoch IS NULL OR (cut_epoch, cut_position) < ($5::bigint, $6::bigint) THEN $5 ELSE cut_epoch END,
           cut_position = CASE WHEN cut_epoch IS NULL OR (cut_epoch, cut_position) < ($5::bigint, $6::bigint) THEN $6 ELSE cut_position END
         WHERE shard = $1`,
        [
          loading.shard,
          next?.name ?? table.name,
          chunk.last === null ? null : JSON.stringify(chunk.last),
          chunk.count,
          chunk.epoch,
          chunk.position,
        ],
      );
      if (next === undefined) {
        await resetDigest(client, loading.shard);
        await client.query(
          `WITH done AS (DELETE FROM snapshots WHERE shard = $1 RETURNING cut_epoch, cut_position)
           UPDATE restores r SET cut_epoch = done.cut_epoch, cut_position = done.cut_position FROM done WHERE r.shard = $1 AND r.kind = 'shard'`,
          [loading.shard],
        );
      }
      return true;
    });
  }

  /** Loads the whole of a shard anew, from the place where it stands. */
  async reload(shard: ShardId, attempt: string): Promise<void> {
    await this.database.transaction(async (client) => {
      const head = (await lockHeads(client, [shard])).get(shard);
      if (head !== undefined) await startLoading(client, { shard, since: null, from: head, attempt });
    });
  }
}

/** Of the epochs from `from` to before `to`, those in which some copy of the shard was cut. */
async function cutEpochs(client: Client, shard: ShardId, from: number, to: number): Promise<Epoch[]> {
  const { rows } = await client.query<{ cut_epoch: number }>(
    `SELECT cut_epoch FROM (SELECT shard, cut_epoch FROM restores UNION SELECT shard, cut_epoch FROM snapshots) AS cuts
     WHERE shard = $1 AND cut_epoch >= $2 AND cut_epoch < $3 ORDER BY cut_epoch`,
    [shard, from, to],
  );
  return rows.map((row) => toEpoch(row.cut_epoch));
}

const samePlace = (a: Loading, b: Loading): boolean =>
  a.attempt === b.attempt && a.table === b.table && JSON.stringify(a.after) === JSON.stringify(b.after);

const notBefore = (a: Cut, b: Cut): boolean => a.epoch > b.epoch || (a.epoch === b.epoch && a.position >= b.position);

/** The range of a chunk: behind `after` up to its last row, or to the table's end. */
function rangeOf(
  table: CopyTable,
  shard: ShardId,
  after: readonly (string | number)[] | null,
  last: readonly (string | number)[] | null,
): { readonly where: string; readonly values: unknown[] } {
  const values: unknown[] = [shard];
  let where = `shard = $1 AND ${table.where}`;
  if (after !== null) {
    where += ` AND ${pageCompare(table, ">", values.length + 1)}`;
    values.push(...after);
  }
  if (last !== null) {
    where += ` AND ${pageCompare(table, "<=", values.length + 1)}`;
    values.push(...last);
  }
  return { where, values };
}

/** What stands in the range and is not newer than the chunk goes: the chunk has all of it that is right. */
async function clearRange(
  client: Client,
  shard: ShardId,
  table: CopyTable,
  after: readonly (string | number)[] | null,
  chunk: Chunk,
): Promise<void> {
  const { where, values } = rangeOf(table, shard, after, chunk.last);
  const at = values.length;
  await client.query(
    `DELETE FROM ${table.name} WHERE ${where} AND (changed_epoch, changed_position) <= ($${at + 1}::bigint, $${at + 2}::bigint)`,
    [...values, chunk.epoch, chunk.position],
  );
}

const shapeList: readonly TableShape[] = Object.values(shapes);

function insertStatement(table: CopyTable): string {
  // What is copied is digested as it is stored here.
  const digest = shapeList.find((shape) => shape.table === table.name)?.digest;
  const written = digest === undefined ? table.columns : [...table.columns, "digest"];
  const columns = written.join(", ");
  const values = [...table.columns.map((column) => `v.${column}`), ...(digest === undefined ? [] : [digest("v")])].join(
    ", ",
  );
  const update = written
    .filter((column) => !table.key.includes(column))
    .map((column) => `${column} = excluded.${column}`)
    .join(", ");
  const conflict = table.placed
    ? `DO UPDATE SET ${update} WHERE (${table.name}.changed_epoch, ${table.name}.changed_position) < (excluded.changed_epoch, excluded.changed_position)`
    : "DO NOTHING";
  return `INSERT INTO ${table.name} (${columns}) SELECT ${values} FROM json_populate_recordset(null::${table.name}, $1::json) AS v
    ON CONFLICT (${table.key.join(", ")}) ${conflict}`;
}

/** Whether the rows in the chunk's range are those of the source; where the log has brought newer ones here nothing can be said. */
async function sameRange(
  client: Client,
  shard: ShardId,
  table: CopyTable,
  after: readonly (string | number)[] | null,
  chunk: Chunk,
): Promise<boolean> {
  const { where, values } = rangeOf(table, shard, after, chunk.last);
  const at = values.length;
  const { rows } = await client.query<{ total: number; digest: string; newer: number }>(
    `SELECT count(*)::int AS total, coalesce(sum(${rowHash("t")}), 0)::text AS digest,
       (count(*) FILTER (WHERE (t.changed_epoch, t.changed_position) > ($${at + 1}::bigint, $${at + 2}::bigint)))::int AS newer
     FROM (SELECT ${table.columns.join(", ")} FROM ${table.name} WHERE ${where}) AS t`,
    [...values, chunk.epoch, chunk.position],
  );
  const found = rows[0];
  return found === undefined || found.newer > 0 || (found.total === chunk.total && found.digest === chunk.digest);
}
