import { seededRandom } from "../../infra/random.js";
import type { ClusterRow, JobRow, TaskRow } from "../../replication/entities.js";
import { shardOf, type ShardId } from "../../shards/ids.js";
import { Catalog } from "../../services/jobs/catalog.js";
import {
  defaultJobSettings,
  JobEvents,
  JobOperations,
  TaskOperations,
  type JobSettings,
  type TakenTask,
} from "../../services/jobs/operations.js";
import type { Found, JobSource, KnownWorker, Tenure } from "../../services/jobs/job-source.js";
import { offeredTask } from "../../services/jobs/rows.js";
import type { OfferedTask } from "../../services/jobs/job-events.js";
import { ManualTime } from "./manual-time.js";
import { MemoryShards, tasksOf } from "./memory-work.js";

export const shards = 8;

/** The job operations on shards in memory, with shorthands for what a test does again and again. */
export class JobWorld {
  readonly time: ManualTime;
  readonly store: MemoryShards;
  readonly events = new JobEvents();
  readonly jobs: JobOperations;
  readonly tasks: TaskOperations;
  catalog: Catalog;

  constructor(options: { catalog?: Catalog; settings?: Partial<JobSettings>; seed?: number; time?: ManualTime } = {}) {
    this.time = options.time ?? new ManualTime();
    this.store = new MemoryShards(this.time, "east", seededRandom(options.seed ?? 1));
    this.catalog = options.catalog ?? Catalog.builtIn();
    const context = {
      catalog: () => this.catalog,
      events: this.events,
      settings: { ...defaultJobSettings, ...options.settings },
    };
    this.jobs = new JobOperations(context);
    this.tasks = new TaskOperations(context);
  }

  shard(clusterId: string): ShardId {
    return shardOf(clusterId, shards);
  }

  /** A cluster without a job, as a plain PUT makes it; not among the records that tests count. */
  cluster(id: string, spec: Record<string, unknown> = { nodes: ["n1", "n2"] }, more: Partial<ClusterRow> = {}): void {
    const now = new Date(this.time.wall()).toISOString();
    const before = this.store.records.length;
    this.store.writeNow({
      shard: this.shard(id),
      needs: {},
      decide: (work) => {
        work.record({
          type: "cluster.put",
          cluster: {
            tenant: "",
            id,
            shard: work.shard,
            status: "active",
            name: id,
            spec,
            state: {},
            labels: {},
            expiresAt: null,
            version: 1,
            createdAt: now,
            updatedAt: now,
            deleted: false,
            ...more,
          },
        });
        return { status: 201, body: null };
      },
    });
    this.store.records.length = before;
  }

  start(
    clusterId: string,
    type = "create",
    notBefore: string | null = null,
    input: Record<string, unknown> = {},
  ): string {
    const request = { tenant: "", clusterId, shard: this.shard(clusterId), type, input, notBefore };
    const { outcome } = this.store.writeNow(this.jobs.start(request));
    return (outcome.body as { id: string }).id;
  }

  job(id: string): JobRow {
    const job = this.store.rows.jobs.get(id);
    if (job === undefined) throw new Error(`no job ${id}`);
    return job;
  }

  clusterRow(id: string): ClusterRow {
    const cluster = this.store.rows.clusters.get(`\u0000${id}`);
    if (cluster === undefined) throw new Error(`no cluster ${id}`);
    return cluster;
  }

  tasksOf(jobId: string): TaskRow[] {
    return tasksOf(this.store.rows, jobId);
  }

  waiting(jobId: string): TaskRow[] {
    return this.tasksOf(jobId).filter((task) => task.status === "waiting");
  }

  /** The task as its worker gets it, or undefined when it can't be taken. */
  take(task: Pick<TaskRow, "id" | "jobId" | "shard">, workerId = "w1"): TakenTask | undefined {
    const { outcome } = this.store.writeNow(this.tasks.take(task, workerId));
    return outcome.status === 200 ? (outcome.body as TakenTask) : undefined;
  }

  finish(
    task: Pick<TakenTask, "id" | "token">,
    status: "ok" | "failed" = "ok",
    more: { workerId?: string; result?: Record<string, unknown>; stdout?: string } = {},
  ): unknown {
    const { workerId = "w1", ...rest } = more;
    return this.store.writeNow(
      this.tasks.finish({ tenant: "", taskId: task.id, token: task.token, workerId, status, ...rest }),
    ).outcome.body;
  }

  heartbeat(task: Pick<TakenTask, "id" | "token">, workerId = "w1"): { leaseMs: number; stop: boolean } {
    const { outcome } = this.store.writeNow(this.tasks.heartbeat("", task.id, task.token, workerId));
    return outcome.body as { leaseMs: number; stop: boolean };
  }

  /** Takes and finishes every task of the stage under way. */
  runStage(
    jobId: string,
    result: (task: TakenTask) => Record<string, unknown> | undefined = () => undefined,
  ): TakenTask[] {
    const done: TakenTask[] = [];
    for (const task of this.waiting(jobId)) {
      const taken = this.take(task);
      if (taken === undefined) throw new Error(`${task.id} can't be taken`);
      const value = result(taken);
      this.finish(taken, "ok", value === undefined ? {} : { result: value });
      done.push(taken);
    }
    return done;
  }

  runToEnd(jobId: string): void {
    for (let i = 0; i < 100 && this.job(jobId).status === "running"; i++) this.runStage(jobId);
  }

  recordTypes(): string[] {
    return this.store.records.map((record) => record.change.type);
  }
}

/** What a database would answer, from shards in memory. */
export class MemoryJobSource implements JobSource {
  readonly #store: MemoryShards;
  reads = 0;

  constructor(store: MemoryShards) {
    this.#store = store;
  }

  async availableTasks(tenures: readonly Tenure[], after: string | null, limit: number): Promise<OfferedTask[]> {
    this.reads++;
    const found: OfferedTask[] = [];
    for (const task of [...this.#store.rows.tasks.values()].sort((a, b) => (a.id < b.id ? -1 : 1))) {
      const job = this.#store.rows.jobs.get(task.jobId);
      const tenure = tenures.find((each) => each.shard === task.shard)?.tenure;
      if (task.status !== "waiting" || job?.status !== "running" || job.attempt !== task.attempt) continue;
      if (tenure === undefined || job.epoch < tenure || (after !== null && task.id <= after)) continue;
      const cluster = this.#store.rows.clusters.get(`${task.tenant}\u0000${task.clusterId}`);
      found.push(offeredTask(task, job, cluster?.labels ?? {}));
    }
    return found.slice(0, limit);
  }

  async voidJobs(tenures: readonly Tenure[], after: string | null, limit: number): Promise<Found[]> {
    return [...this.#store.rows.jobs.values()]
      .filter((job) => job.status === "running" && (after === null || job.id > after))
      .filter((job) => tenures.some((each) => each.shard === job.shard && job.epoch < each.tenure))
      .sort((a, b) => (a.id < b.id ? -1 : 1))
      .slice(0, limit)
      .map(({ id, shard }) => ({ id, shard }));
  }

  async expiredTasks(owned: readonly ShardId[], now: number, limit: number): Promise<Found[]> {
    return [...this.#store.rows.tasks.values()]
      .filter(
        (task) => task.status === "taken" && owned.includes(task.shard) && Date.parse(task.leaseUntil ?? "") <= now,
      )
      .slice(0, limit)
      .map(({ id, shard }) => ({ id, shard }));
  }

  async dueJobs(owned: readonly ShardId[], now: number, limit: number): Promise<Found[]> {
    return [...this.#store.rows.jobs.values()]
      .filter((job) => job.status === "queued" && owned.includes(job.shard) && Date.parse(job.notBefore ?? "") <= now)
      .slice(0, limit)
      .map(({ id, shard }) => ({ id, shard }));
  }

  async expiredClusters(
    owned: readonly ShardId[],
    now: number,
    limit: number,
  ): Promise<(Found & { tenant: string })[]> {
    const tried = (cluster: ClusterRow): boolean =>
      [...this.#store.rows.jobs.values()].some(
        (job) =>
          job.clusterId === cluster.id &&
          job.type === "delete" &&
          Date.parse(job.createdAt) >= Date.parse(cluster.expiresAt ?? ""),
      );
    return [...this.#store.rows.clusters.values()]
      .filter(
        (cluster) => owned.includes(cluster.shard) && !cluster.deleted && Date.parse(cluster.expiresAt ?? "") <= now,
      )
      .filter((cluster) => cluster.status !== "pending" && cluster.status !== "terminated" && !tried(cluster))
      .slice(0, limit)
      .map(({ id, shard, tenant }) => ({ id, shard, tenant }));
  }

  async heldTasks(registration: string, owned: readonly ShardId[], limit: number): Promise<Found[]> {
    return [...this.#store.rows.tasks.values()]
      .filter((task) => task.status === "taken" && owned.includes(task.shard))
      .filter((task) => task.workerId?.startsWith(`${registration}/`) === true)
      .slice(0, limit)
      .map(({ id, shard }) => ({ id, shard }));
  }

  async worker(
    { tenant, id }: { readonly tenant: string; readonly id: string },
    owned: readonly ShardId[],
  ): Promise<KnownWorker | undefined> {
    const worker = this.#store.rows.workers.get(`${tenant}\u0000${id}`);
    if (worker === undefined || worker.deleted) return undefined;
    const held = [...this.#store.rows.tasks.values()].filter(
      (task) => task.status === "taken" && task.workerId === id && owned.includes(task.shard),
    );
    return { capacity: worker.capacity, labels: worker.labels, held: held.length };
  }
}
