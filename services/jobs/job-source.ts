import { sql } from "kysely";
import type { Db } from "../../infra/postgres/database.js";
import { shardId, type ShardId } from "../../shards/ids.js";
import type { OfferedTask } from "./job-events.js";

export interface Tenure {
  readonly shard: ShardId;
  /** First epoch of the unbroken ownership. */
  readonly tenure: number;
}

export interface Found {
  readonly id: string;
  readonly shard: ShardId;
}

export interface KnownWorker {
  readonly capacity: number;
  readonly labels: Readonly<Record<string, string>>;
  /** Tasks that it has now, in the shards asked for. */
  readonly held: number;
}

/** What the database of this datacenter knows about jobs. Reads only, each bounded by `limit`; times are milliseconds since 1970. */
export interface JobSource {
  /** Tasks that wait, of running jobs in their running attempt; also those whose back-off lies ahead. In id order, behind `after`. */
  availableTasks(shards: readonly Tenure[], after: string | null, limit: number): Promise<OfferedTask[]>;
  /** Running jobs whose attempt began before the tenure, in id order, behind `after`. */
  voidJobs(shards: readonly Tenure[], after: string | null, limit: number): Promise<Found[]>;
  /** Taken tasks whose lease has run out. */
  expiredTasks(shards: readonly ShardId[], now: number, limit: number): Promise<Found[]>;
  /** Queued jobs whose time has come. */
  dueJobs(shards: readonly ShardId[], now: number, limit: number): Promise<Found[]>;
  /** Clusters whose time is over, that no delete has been tried on since. */
  expiredClusters(
    shards: readonly ShardId[],
    now: number,
    limit: number,
  ): Promise<(Found & { readonly tenant: string })[]>;
  /** With the tasks that it, or a worker `<id>/...` of it, holds in these shards. */
  worker(
    registration: { readonly tenant: string; readonly id: string },
    shards: readonly ShardId[],
  ): Promise<KnownWorker | undefined>;
  /** Tasks that workers `<registration>/...` hold. */
  heldTasks(registration: string, shards: readonly ShardId[], limit: number): Promise<Found[]>;
}

export class PostgresJobSource implements JobSource {
  readonly #db: Db;

  constructor(db: Db) {
    this.#db = db;
  }

  async availableTasks(shards: readonly Tenure[], after: string | null, limit: number): Promise<OfferedTask[]> {
    const rows = await this.#db
      .selectFrom("tasks")
      .innerJoin("jobs", "jobs.id", "tasks.jobId")
      .innerJoin("clusters", (join) =>
        join.onRef("clusters.tenant", "=", "jobs.tenant").onRef("clusters.id", "=", "jobs.clusterId"),
      )
      .innerJoin(tenures(shards), (join) => join.onRef("tenures.shard", "=", "tasks.shard"))
      .select([
        "tasks.id",
        "tasks.jobId",
        "tasks.shard",
        "tasks.tenant",
        "tasks.clusterId",
        "tasks.name",
        "tasks.notBefore",
        "jobs.createdAt",
        "clusters.labels",
      ])
      .where("tasks.status", "=", "waiting")
      .where("jobs.status", "=", "running")
      .whereRef("tasks.attempt", "=", "jobs.attempt")
      .whereRef("jobs.epoch", ">=", "tenures.tenure")
      .where("tasks.id", ">", after ?? "")
      .orderBy("tasks.id")
      .limit(limit)
      .execute();
    return rows.map((row) => ({
      id: row.id,
      jobId: row.jobId,
      shard: shardId(row.shard),
      tenant: row.tenant,
      clusterId: row.clusterId,
      name: row.name,
      labels: row.labels,
      notBefore: row.notBefore === null ? 0 : Date.parse(row.notBefore),
      jobSince: Date.parse(row.createdAt),
    }));
  }

  async voidJobs(shards: readonly Tenure[], after: string | null, limit: number): Promise<Found[]> {
    const rows = await this.#db
      .selectFrom("jobs")
      .innerJoin(tenures(shards), (join) => join.onRef("tenures.shard", "=", "jobs.shard"))
      .select(["jobs.id", "jobs.shard"])
      .where("jobs.status", "=", "running")
      .whereRef("jobs.epoch", "<", "tenures.tenure")
      .where("jobs.id", ">", after ?? "")
      .orderBy("jobs.id")
      .limit(limit)
      .execute();
    return rows.map(found);
  }

  async expiredTasks(shards: readonly ShardId[], now: number, limit: number): Promise<Found[]> {
    const rows = await this.#db
      .selectFrom("tasks")
      .innerJoin("jobs", "jobs.id", "tasks.jobId")
      .select(["tasks.id", "tasks.shard"])
      .where("tasks.shard", "in", among(shards))
      .where("tasks.status", "=", "taken")
      .where("tasks.leaseUntil", "<=", time(now))
      .limit(limit)
      .execute();
    return rows.map(found);
  }

  async dueJobs(shards: readonly ShardId[], now: number, limit: number): Promise<Found[]> {
    const rows = await this.#db
      .selectFrom("jobs")
      .select(["id", "shard"])
      .where("shard", "in", among(shards))
      .where("status", "=", "queued")
      .where("notBefore", "<=", time(now))
      .orderBy("notBefore")
      .limit(limit)
      .execute();
    return rows.map(found);
  }

  async expiredClusters(
    shards: readonly ShardId[],
    now: number,
    limit: number,
  ): Promise<(Found & { readonly tenant: string })[]> {
    const rows = await this.#db
      .selectFrom("clusters")
      .select(["clusters.id", "clusters.shard", "clusters.tenant"])
      .where("clusters.shard", "in", among(shards))
      .where("clusters.expiresAt", "<=", time(now))
      .where("clusters.deleted", "=", false)
      .where("clusters.status", "not in", ["pending", "terminated"])
      .where((eb) =>
        eb.not(
          eb.exists(
            eb
              .selectFrom("jobs")
              .select("jobs.id")
              .whereRef("jobs.tenant", "=", "clusters.tenant")
              .whereRef("jobs.clusterId", "=", "clusters.id")
              .where("jobs.type", "=", "delete")
              .whereRef("jobs.createdAt", ">=", "clusters.expiresAt"),
          ),
        ),
      )
      .orderBy("clusters.expiresAt")
      .limit(limit)
      .execute();
    return rows.map((row) => ({ ...found(row), tenant: row.tenant }));
  }

  async heldTasks(registration: string, shards: readonly ShardId[], limit: number): Promise<Found[]> {
    const rows = await this.#db
      .selectFrom("tasks")
      .select(["id", "shard"])
      .where("shard", "in", among(shards))
      .where("status", "=", "taken")
      .where(sql<boolean>`starts_with(worker_id, ${`${registration}/`})`)
      .limit(limit)
      .execute();
    return rows.map(found);
  }

  async worker(
    { tenant, id }: { readonly tenant: string; readonly id: string },
    shards: readonly ShardId[],
  ): Promise<KnownWorker | undefined> {
    const row = await this.#db
      .selectFrom("workers")
      .select(["capacity", "labels"])
      .select((eb) =>
        eb
          .selectFrom("tasks")
          .select((inner) => inner.fn.countAll<number>().as("n"))
          .where("tasks.shard", "in", among(shards))
          .where("tasks.status", "=", "taken")
          .where(
            sql<boolean>`(tasks.worker_id = ${id} AND tasks.tenant = ${tenant} OR starts_with(tasks.worker_id, ${`${id}/`}))`,
          )
          .as("held"),
      )
      .where("tenant", "=", tenant)
      .where("id", "=", id)
      .where("deleted", "=", false)
      .executeTakeFirst();
    return row === undefined ? undefined : { capacity: row.capacity, labels: row.labels, held: row.held ?? 0 };
  }
}

const found = (row: { readonly id: string; readonly shard: number }): Found => ({
  id: row.id,
  shard: shardId(row.shard),
});
const time = (ms: number): string => new Date(ms).toISOString();

/** `in ()` is no SQL: an empty list becomes one that nothing is in. */
const among = (shards: readonly ShardId[]): number[] => (shards.length === 0 ? [-1] : [...shards]);

function tenures(shards: readonly Tenure[]) {
  const numbers = shards.map(({ shard }) => shard as number);
  const first = shards.map(({ tenure }) => tenure);
  return sql<{ shard: number; tenure: number }>`unnest(${numbers}::int[], ${first}::bigint[])`.as<"tenures">(
    sql`tenures (shard, tenure)`,
  );
}
