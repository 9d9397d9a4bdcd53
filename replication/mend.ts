import type { Client, Database } from "../infra/postgres/database.js";
import type { ShardId } from "../shards/ids.js";
import { jobsOf } from "./copy-tables.js";
import { lockHeads } from "./heads.js";
import { shapes, type TableShape } from "./rows.js";

/** Which of a shard's rows: all, or those of one cluster. */
export interface Scope {
  readonly shard: number;
  readonly clusterId: string | null;
}

/** A row as a copy has it, without its content. */
export interface Listed {
  readonly key: readonly string[];
  readonly epoch: number;
  readonly position: number;
  readonly digest: number;
  /** It equals its own digest. */
  readonly sound: boolean;
}

/** Rows of a copy, as JSON, cut at one place of the shard. */
export interface Cut {
  readonly epoch: number;
  readonly position: number;
  readonly rows: readonly { readonly key: readonly string[]; readonly listed: Listed; readonly row: string }[];
}

export const mendTables = ["clusters", "jobs", "workers", "documents"] as const;
export type MendTable = (typeof mendTables)[number];

const shapeOf = (table: MendTable): TableShape => shapes[table];
const keyOf = (shape: TableShape): string => `json_build_array(${shape.key.map((column) => `t.${column}`).join(", ")})`;
const digestOf = (shape: TableShape): string => shape.digest?.("t") ?? "0";

function scopeOf(table: MendTable, scope: Scope): { readonly where: string; readonly values: unknown[] } {
  if (scope.clusterId === null) {
    // Jobs are found by their ids alone.
    const where = table === "jobs" ? `t.shard = $1::int AND ${jobsOf("t.id", "$1::int")}` : "t.shard = $1";
    return { where, values: [scope.shard] };
  }
  const column = { clusters: "t.id", jobs: "t.cluster_id", workers: null, documents: null }[table];
  return column === null
    ? { where: "t.shard = $1 AND false", values: [scope.shard] }
    : { where: `t.shard = $1 AND ${column} = $2`, values: [scope.shard, scope.clusterId] };
}

/** A page of what a copy has, in key order, behind `after` and up to `through` (null: the table's end). */
export async function listRows(
  database: Database,
  table: MendTable,
  scope: Scope,
  after: readonly string[] | null,
  limit: number,
  through: readonly string[] | null = null,
): Promise<Listed[]> {
  const shape = shapeOf(table);
  const { where, values } = scopeOf(table, scope);
  const key = `(${shape.key.map((column) => `t.${column}`).join(", ")})`;
  const bound = (operator: ">" | "<=", bounding: readonly string[] | null): string => {
    if (bounding === null) return "";
    const first = values.length + 1;
    values.push(...bounding);
    return ` AND ${key} ${operator} (${bounding.map((_, index) => `$${first + index}`).join(", ")})`;
  };
  const range = bound(">", after) + bound("<=", through);
  const { rows } = await database.pool.query<Listed>(
    `SELECT ${keyOf(shape)} AS key, t.changed_epoch AS epoch, t.changed_position AS position, t.digest, t.digest = ${digestOf(shape)} AS sound
     FROM ${table} t WHERE ${where}${range} ORDER BY ${shape.key.map((column) => `t.${column}`).join(", ")} LIMIT ${limit}`,
    values,
  );
  return rows;
}

/** Whole rows of a copy, at the place where it stands. @throws when one of them is damaged: then nothing can be said of that key */
export async function cutRows(
  database: Database,
  table: MendTable,
  shard: number,
  keys: readonly (readonly string[])[],
): Promise<Cut> {
  return database.transaction(async (client) => {
    await client.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    const head = await client.query<{ epoch: number; position: number }>(
      "SELECT epoch, position FROM shard_head WHERE shard = $1",
      [shard],
    );
    const place = head.rows[0];
    if (place === undefined) throw new Error("there is no such shard");
    const rows = await readKeys(client, table, shard, keys);
    const damaged = rows.find(({ listed }) => !listed.sound);
    if (damaged !== undefined) throw new Error(`${table} ${damaged.key.join("/")} is damaged here too`);
    return { ...place, rows };
  });
}

/**
 * Makes rows what a sound copy says they are. Both were cut in the same epoch; of each row the newer stays, and what the log has yet to
 * bring is left to it. What the shard's rows should add up to stays as it is: a copy that is mended in part must not look like a sound
 * one.
 * @returns how many rows were written or removed, and the keys that can't be judged before the copy is further
 */
export async function mendRows(
  database: Database,
  table: MendTable,
  shard: ShardId,
  keys: readonly (readonly string[])[],
  cut: Cut,
): Promise<{ readonly mended: number; readonly wait: readonly (readonly string[])[] }> {
  const shape = shapeOf(table);
  return database.transaction(async (client) => {
    const head = (await lockHeads(client, [shard])).get(shard);
    if (head === undefined || head.epoch !== cut.epoch) return { mended: 0, wait: keys };
    const here = new Map((await readKeys(client, table, shard, keys)).map((each) => [text(each.key), each]));
    const there = new Map(cut.rows.map((each) => [text(each.key), each]));
    const remove: (readonly string[])[] = [];
    const write: string[] = [];
    const wait: (readonly string[])[] = [];
    for (const key of keys) {
      const mine = here.get(text(key));
      const verdict = judge(mine?.listed, there.get(text(key))?.listed, cut, head);
      if (verdict === "wait") wait.push(key);
      if (verdict === "remove" || verdict === "replace") remove.push(key);
      // What is local to this datacenter stays.
      const row = there.get(text(key))?.row;
      if (verdict === "replace" && row !== undefined) write.push(table === "jobs" ? withStage(row, mine?.row) : row);
    }
    for (const key of remove)
      await client.query(
        `DELETE FROM ${table} t WHERE ${shape.key.map((column, index) => `t.${column} = $${index + 1}`).join(" AND ")}`,
        [...key],
      );
    if (write.length > 0) {
      const columns = shape.columns.join(", ");
      await client.query(
        `INSERT INTO ${table} (${columns}, digest) SELECT ${columns}, ${digestOf(shape)}
         FROM json_populate_recordset(null::${table}, $1::json) AS t`,
        [`[${write.join(",")}]`],
      );
    }
    return { mended: Math.max(remove.length, write.length), wait };
  });
}

type Verdict = "keep" | "replace" | "remove" | "wait";
type Seen = Pick<Listed, "epoch" | "position" | "digest" | "sound">;

/** What becomes of a row: pure. */
export function judge(
  mine: Seen | undefined,
  theirs: Seen | undefined,
  cut: { readonly epoch: number; readonly position: number },
  head: { readonly epoch: number; readonly position: number },
): Verdict {
  const newer = (a: { epoch: number; position: number }, b: { epoch: number; position: number }): boolean =>
    a.epoch > b.epoch || (a.epoch === b.epoch && a.position > b.position);
  if (theirs === undefined) {
    if (mine === undefined) return "keep";
    if (newer(mine, cut)) return mine.sound ? "keep" : "wait";
    return "remove";
  }
  // The log has yet to bring that change; then it overwrites what is here.
  if (newer(theirs, head)) return mine?.sound === false ? "wait" : "keep";
  if (mine === undefined) return "replace";
  if (newer(mine, theirs)) return mine.sound ? "keep" : newer(mine, cut) ? "wait" : "replace";
  if (mine.sound && mine.digest === theirs.digest) return "keep";
  return "replace";
}

async function readKeys(
  client: Client,
  table: MendTable,
  shard: number,
  keys: readonly (readonly string[])[],
): Promise<{ readonly key: readonly string[]; readonly listed: Listed; readonly row: string }[]> {
  const shape = shapeOf(table);
  const { rows } = await client.query<Listed & { row: string }>(
    `SELECT ${keyOf(shape)} AS key, t.changed_epoch AS epoch, t.changed_position AS position, t.digest, t.digest = ${digestOf(shape)} AS sound,
       row_to_json(t)::text AS row
     FROM ${table} t JOIN json_array_elements($2::json) AS k ON ${shape.key.map((column, index) => `t.${column} = k ->> ${index}`).join(" AND ")}
     WHERE t.shard = $1`,
    [shard, JSON.stringify(keys)],
  );
  return rows.map(({ row, ...listed }) => ({ key: listed.key, listed, row }));
}

const text = (key: readonly string[]): string => JSON.stringify(key);

function withStage(row: string, mine: string | undefined): string {
  const stage = mine === undefined ? null : (JSON.parse(mine) as { readonly stage: unknown }).stage;
  return JSON.stringify({ ...(JSON.parse(row) as object), stage });
}
