import type { Client, Database } from "../infra/postgres/database.js";
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
}

const tasksPerPart = 200;

/** What runs in the shard, in parts that fit one message. There is always one part: it carries the tenure. */
export async function readProgress(
  database: Database,
  shard: ShardId,
  next: Epoch,
  tenure: Epoch,
): Promise<CarriedPart[]> {
  const { rows: jobs } = await database.pool.query<{ id: string; stage: string | null }>(
    "SELECT id, stage FROM jobs WHERE shard = $1 AND status IN ('running', 'paused')",
    [shard],
  );
  const stages = Object.fromEntries(jobs.map((job) => [job.id, job.stage]));
  const { rows } =
    jobs.length === 0
      ? { rows: [] }
      : await database.pool.query<Record<string, unknown>>(
          "SELECT * FROM tasks WHERE job_id = ANY($1::text[]) ORDER BY id",
          [jobs.map((job) => job.id)],
        );
  const parts: CarriedPart[] = [];
  for (let at = 0; at === 0 || at < rows.length; at += tasksPerPart)
    parts.push({
      shard,
      epoch: next,
      part: parts.length,
      tenure,
      tasks: rows.slice(at, at + tasksPerPart),
      stages: parts.length === 0 ? stages : {},
    });
  return parts;
}

/** Stores a part at the target. The first one replaces what an earlier attempt at this move had brought. */
export async function storeProgress(database: Database, part: CarriedPart): Promise<void> {
  const values = [
    part.shard,
    part.epoch,
    part.part,
    part.tenure,
    JSON.stringify(part.tasks),
    JSON.stringify(part.stages),
  ];
  const insert =
    "INSERT INTO carried_progress (shard, epoch, part, tenure, tasks, stages) VALUES ($1, $2, $3, $4, $5, $6)";
  // One round trip: the shard is held meanwhile.
  await database.pool.query(
    part.part === 0
      ? {
          name: "first_carried",
          text: `WITH gone AS (DELETE FROM carried_progress WHERE shard = $1 AND epoch >= $2 AND (epoch > $2 OR part > 0))
            ${insert} ON CONFLICT (shard, epoch, part) DO UPDATE SET tenure = excluded.tenure, tasks = excluded.tasks, stages = excluded.stages`,
          values,
        }
      : { name: "next_carried", text: insert, values },
  );
}

/**
 * Epochs have come as planned: their progress becomes this datacenter's.
 * @returns the tenure that goes on, by shard; shards of which none was carried are left out
 */
export async function takeCarried(
  client: Client,
  opened: readonly { readonly shard: ShardId; readonly epoch: Epoch }[],
): Promise<Map<ShardId, Epoch>> {
  const tenures = new Map<ShardId, Epoch>();
  if (opened.length === 0) return tenures;
  const { rows } = await client.query<{
    shard: number;
    tenure: number;
    tasks: object[];
    stages: Record<string, string | null>;
  }>({
    name: "read_carried",
    text: `SELECT c.shard, c.tenure, c.tasks, c.stages FROM carried_progress c
      JOIN unnest($1::int[], $2::bigint[]) AS v(shard, epoch) ON c.shard = v.shard AND c.epoch = v.epoch ORDER BY c.shard, c.part`,
    values: [opened.map(({ shard }) => shard), opened.map(({ epoch }) => epoch)],
  });
  if (rows.length === 0) return tenures;
  for (const { shard, tenure } of rows) tenures.set(shardId(shard), toEpoch(tenure));
  await client.query({
    name: "replace_tasks",
    text: `DELETE FROM tasks USING jobs
      WHERE tasks.job_id = jobs.id AND jobs.shard = ANY($1::int[]) AND jobs.status IN ('queued', 'running', 'paused')`,
    values: [[...tenures.keys()]],
  });
  for (const row of rows)
    if (row.tasks.length > 0)
      await client.query(
        `INSERT INTO tasks (${shapes.tasks.columns.join(", ")}) SELECT ${shapes.tasks.columns.join(", ")} FROM jsonb_populate_recordset(null::tasks, $1::jsonb) ON CONFLICT (id) DO NOTHING`,
        [JSON.stringify(row.tasks)],
      );
  const stages = rows.flatMap((row) => Object.entries(row.stages));
  if (stages.length > 0)
    await client.query(
      "UPDATE jobs SET stage = v.stage FROM unnest($1::text[], $2::text[]) AS v(id, stage) WHERE jobs.id = v.id",
      [stages.map(([id]) => id), stages.map(([, stage]) => stage)],
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
