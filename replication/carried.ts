import type { Time } from "../infra/clock.js";
import { gather } from "../infra/gather.js";
import type { Client, Database, Send } from "../infra/postgres/database.js";
import { epoch as toEpoch, shardId, type Epoch, type ShardId } from "../shards/ids.js";
import { shapes } from "./rows.js";

/** Task progress of a shard's running jobs, on its way to the datacenter that a planned move gives the shard to. */
export interface CarriedPart {
  readonly shard: number;
  /** The epoch that the move will open. */
  readonly epoch: number;
  readonly part: number;
  /** The former owner's tenure: attempts that began since then go on. */
  readonly tenure: number;
  readonly tasks: readonly object[];
  readonly stages: Readonly<Record<string, string | null>>;
  /** The former owner's wall clock when it was read, milliseconds since 1970: times in it are moved to the target's. Left out by earlier versions. */
  readonly readAt?: number;
}

/** Of a part as JSON: well below the largest message. */
const partBytes = 400_000;

interface Running {
  readonly id: string;
  readonly shard: number;
  readonly stage: string | null;
}

/**
 * What runs in shards that are held, in parts that fit one message. There is always a first one: it takes the place of what an
 * earlier attempt at the move had brought, and shows that the target is there. Shards that are asked for in one turn share a statement.
 */
export function progressIn(
  database: Database,
  time: Time,
): (shard: ShardId, next: Epoch, tenure: Epoch) => Promise<CarriedPart[]> {
  const running = gather<ShardId, readonly Running[]>(time, async (shards) => {
    const { rows } = await database.pool.query<Running>({
      name: "running_jobs",
      text: "SELECT id, shard, stage FROM jobs WHERE shard = ANY($1::int[]) AND status IN ('running', 'paused')",
      values: [shards],
    });
    return shards.map((shard) => rows.filter((job) => job.shard === shard));
  });
  return async (shard, next, tenure) => {
    const jobs = await running(shard);
    const readAt = time.wall();
    const { rows } =
      jobs.length === 0
        ? { rows: [] }
        : await database.pool.query<Record<string, unknown>>(
            "SELECT * FROM tasks WHERE job_id = ANY($1::text[]) ORDER BY id",
            [jobs.map((job) => job.id)],
          );
    const stages = Object.fromEntries(jobs.map((job) => [job.id, job.stage]));
    return inParts(rows).map((tasks, part) => ({
      shard,
      epoch: next,
      part,
      tenure,
      tasks,
      stages: part === 0 ? stages : {},
      readAt,
    }));
  };
}

/** Tasks in parts of so many bytes; one that is larger, with what it printed, has a part of its own. */
function inParts(tasks: readonly object[]): object[][] {
  const parts: object[][] = [[]];
  let bytes = 0;
  for (const task of tasks) {
    const size = Buffer.byteLength(JSON.stringify(task));
    if (bytes > 0 && bytes + size > partBytes) {
      parts.push([]);
      bytes = 0;
    }
    parts.at(-1)?.push(task);
    bytes += size;
  }
  return parts;
}

/** Keeps what is carried to this datacenter. Parts without anything, of shards where nothing runs, share a statement that writes nothing. */
export function carriedIn(database: Database, time: Time): (part: CarriedPart) => Promise<void> {
  const clear = gather<CarriedPart, null>(time, async (parts) => {
    await database.pool.query({
      name: "no_carried",
      text: `DELETE FROM carried_progress c USING unnest($1::int[], $2::bigint[]) AS v(shard, epoch)
        WHERE c.shard = v.shard AND c.epoch >= v.epoch`,
      values: [parts.map(({ shard }) => shard), parts.map(({ epoch }) => epoch)],
    });
    return parts.map(() => null);
  });
  return async (part) => {
    if (part.part === 0 && Object.keys(part.stages).length === 0) await clear(part);
    else await storeProgress(database, { ...part, tasks: part.tasks.map(timesFrom(part.readAt, time.wall())) });
  };
}

/** Columns of tasks that say when something is due: as long from now as they were at the former owner. */
const dueColumns = ["lease_until", "deadline", "not_before"];

/** Pure. A task's times by another clock: `from` there is `to` here, milliseconds since 1970. */
export const timesFrom =
  (from: number | undefined, to: number) =>
  (task: object): object => {
    if (from === undefined) return task;
    const due = dueColumns.flatMap((column) => {
      const at: unknown = (task as Readonly<Record<string, unknown>>)[column];
      return typeof at === "string" ? [[column, new Date(Date.parse(at) + to - from).toISOString()]] : [];
    });
    return { ...task, ...(Object.fromEntries(due) as Readonly<Record<string, string>>) };
  };

/** Stores a part at the target. The first one replaces what an earlier attempt at this move had brought. */
async function storeProgress(database: Database, part: CarriedPart): Promise<void> {
  const insert =
    "INSERT INTO carried_progress (shard, epoch, part, tenure, tasks, stages) VALUES ($1, $2, $3, $4, $5, $6)";
  // One round trip: the shard is held meanwhile.
  await database.pool.query({
    ...(part.part === 0
      ? {
          name: "first_carried",
          text: `WITH gone AS (DELETE FROM carried_progress WHERE shard = $1 AND epoch >= $2 AND (epoch > $2 OR part > 0))
            ${insert} ON CONFLICT (shard, epoch, part) DO UPDATE SET tenure = excluded.tenure, tasks = excluded.tasks, stages = excluded.stages`,
        }
      : { name: "next_carried", text: insert }),
    values: [part.shard, part.epoch, part.part, part.tenure, JSON.stringify(part.tasks), JSON.stringify(part.stages)],
  });
}

/** A part as it lies at the target. */
export type StoredPart = Omit<CarriedPart, "part">;

/** The parts that are there for these epochs, in order. */
export async function readCarried(
  client: Client,
  opened: readonly { readonly shard: ShardId; readonly epoch: Epoch }[],
): Promise<readonly StoredPart[]> {
  if (opened.length === 0) return [];
  const { rows } = await client.query<StoredPart>({
    name: "read_carried",
    text: `SELECT c.shard, c.epoch, c.tenure, c.tasks, c.stages FROM carried_progress c
      JOIN unnest($1::int[], $2::bigint[]) AS v(shard, epoch) ON c.shard = v.shard AND c.epoch = v.epoch ORDER BY c.shard, c.part`,
    values: [opened.map(({ shard }) => shard), opened.map(({ epoch }) => epoch)],
  });
  return rows;
}

/**
 * Epochs have come as planned: their progress becomes this datacenter's.
 * @returns the tenure that goes on, by shard
 */
export function takeCarried(client: Client, send: Send, parts: readonly StoredPart[]): Map<ShardId, Epoch> {
  const tenures = new Map(parts.map(({ shard, tenure }) => [shardId(shard), toEpoch(tenure)] as const));
  if (parts.length === 0) return tenures;
  send(
    client.query({
      name: "replace_tasks",
      text: `DELETE FROM tasks USING jobs
        WHERE tasks.job_id = jobs.id AND jobs.shard = ANY($1::int[]) AND jobs.status IN ('queued', 'running', 'paused')`,
      values: [[...tenures.keys()]],
    }),
  );
  for (const part of parts)
    if (part.tasks.length > 0)
      send(
        client.query(
          `INSERT INTO tasks (${shapes.tasks.columns.join(", ")}) SELECT ${shapes.tasks.columns.join(", ")} FROM jsonb_populate_recordset(null::tasks, $1::jsonb) ON CONFLICT (id) DO NOTHING`,
          [JSON.stringify(part.tasks)],
        ),
      );
  const stages = parts.flatMap((part) => Object.entries(part.stages));
  if (stages.length > 0)
    send(
      client.query(
        "UPDATE jobs SET stage = v.stage FROM unnest($1::text[], $2::text[]) AS v(id, stage) WHERE jobs.id = v.id",
        [stages.map(([id]) => id), stages.map(([, stage]) => stage)],
      ),
    );
  return tenures;
}

/** Progress for epochs that came, in whatever way, is of no use any more. */
export async function dropCarried(
  client: Client,
  opened: readonly { readonly shard: ShardId; readonly epoch: Epoch }[],
): Promise<void> {
  if (opened.length === 0) return;
  await client.query({
    name: "drop_carried",
    text: `DELETE FROM carried_progress c USING unnest($1::int[], $2::bigint[]) AS v(shard, epoch)
      WHERE c.shard = v.shard AND c.epoch <= v.epoch`,
    values: [opened.map(({ shard }) => shard), opened.map(({ epoch }) => epoch)],
  });
}
