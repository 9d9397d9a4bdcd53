import type { Random } from "../infra/random.js";
import { position as toPosition, type Epoch, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import type { ClusterRow, DocumentRow, JobRow, KeyRow, Placed, TaskRow, WorkerRow } from "./entities.js";
import { unfinished } from "./entities.js";
import { shapes, type TableShape } from "./rows.js";
import type { Change, Work } from "./work.js";

export const clusterKey = (tenant: string, id: string): string => `${tenant}/${id}`;
const keyKey = (tenant: string, key: string): string => `${tenant}/${key}`;

/** One operation's view: its own changes over those of the operations before it. */
export class Draft implements Work {
  readonly rows = new Layer();
  readonly changes: Change[] = [];
  readonly after: (() => void)[] = [];
  readonly epoch: Epoch;
  readonly tenure: Epoch;
  readonly datacenter: SiteName;
  readonly now: number;
  readonly #base: Layer;
  readonly #first: Position;
  readonly #random: Random;

  constructor(
    readonly shard: ShardId,
    head: { readonly epoch: Epoch; readonly tenure: Epoch; readonly next: Position },
    base: Layer,
    context: { readonly site: SiteName; readonly now: number; readonly random: Random },
  ) {
    this.epoch = head.epoch;
    this.tenure = head.tenure;
    this.datacenter = context.site;
    this.now = context.now;
    this.#base = base;
    this.#first = head.next;
    this.#random = context.random;
  }

  token(length: number): string {
    return this.#random.token(length);
  }

  cluster(tenant: string, id: string): ClusterRow | undefined {
    const key = clusterKey(tenant, id);
    return this.rows.clusters.get(key) ?? this.#base.clusters.get(key);
  }

  job(id: string): JobRow | undefined {
    return this.rows.jobs.get(id) ?? this.#base.jobs.get(id);
  }

  activeJob(tenant: string, clusterId: string): JobRow | undefined {
    const wanted = (job: JobRow): boolean =>
      job.clusterId === clusterId && job.tenant === tenant && unfinished.includes(job.status);
    for (const job of this.rows.jobs.values()) if (wanted(job)) return job;
    for (const job of this.#base.jobs.values()) if (wanted(job) && !this.rows.jobs.has(job.id)) return job;
    return undefined;
  }

  tasks(jobId: string): readonly TaskRow[] {
    const before = this.rows.dropped.has(jobId) ? none : this.#base.tasks.of(jobId);
    const own = this.rows.tasks.of(jobId);
    const seen = own.size === 0 ? before : new Map([...before, ...own]);
    return [...seen.values()].sort(
      (a, b) => a.stageIndex - b.stageIndex || a.attempt - b.attempt || numberOf(a.id) - numberOf(b.id),
    );
  }

  worker(tenant: string, id: string): WorkerRow | undefined {
    const key = clusterKey(tenant, id);
    return this.rows.workers.get(key) ?? this.#base.workers.get(key);
  }

  record(change: Change): Position {
    this.changes.push(change);
    const position = toPosition(this.#first + this.changes.length);
    const place: Placed = { changedEpoch: this.epoch, changedPosition: position };
    if (change.cluster !== undefined)
      this.rows.clusters.set(clusterKey(change.cluster.tenant, change.cluster.id), { ...change.cluster, ...place });
    if (change.job !== undefined) this.rows.jobs.set(change.job.id, { ...change.job, ...place });
    if (change.worker !== undefined)
      this.rows.workers.set(clusterKey(change.worker.tenant, change.worker.id), { ...change.worker, ...place });
    if (change.document !== undefined)
      this.rows.documents.set(clusterKey(change.document.kind, change.document.id), { ...change.document, ...place });
    return position;
  }

  putTask(task: TaskRow): void {
    this.rows.tasks.put(task);
  }

  dropTasks(jobId: string): void {
    this.rows.dropped.add(jobId);
    this.rows.tasks.drop(jobId);
  }

  setStage(jobId: string, stage: string | null): void {
    const job = this.rows.jobs.get(jobId);
    if (job !== undefined) this.rows.jobs.set(jobId, { ...job, stage });
    else this.rows.stages.set(jobId, stage);
  }

  afterCommit(action: () => void): void {
    this.after.push(action);
  }
}

const none: ReadonlyMap<string, TaskRow> = new Map();
/** Tasks of a job are numbered within an attempt: `<job>.<attempt>.<number>`. */
const numberOf = (id: string): number => Number(id.slice(id.lastIndexOf(".") + 1));

/** Tasks by job: each write looks at those of one job, in a batch of many. */
export class TaskRows {
  readonly #byJob = new Map<string, Map<string, TaskRow>>();

  put(task: TaskRow): void {
    const known = this.#byJob.get(task.jobId);
    if (known === undefined) this.#byJob.set(task.jobId, new Map([[task.id, task]]));
    else known.set(task.id, task);
  }

  of(jobId: string): ReadonlyMap<string, TaskRow> {
    return this.#byJob.get(jobId) ?? none;
  }

  drop(jobId: string): void {
    this.#byJob.delete(jobId);
  }

  *all(): Iterable<TaskRow> {
    for (const tasks of this.#byJob.values()) yield* tasks.values();
  }
}

/** Rows by key, with a note of which were changed. */
export class Layer {
  readonly clusters = new Map<string, ClusterRow>();
  readonly jobs = new Map<string, JobRow>();
  readonly tasks = new TaskRows();
  readonly workers = new Map<string, WorkerRow>();
  readonly documents = new Map<string, DocumentRow>();
  /** By tenant and key, then by shard. */
  readonly #keys = new Map<string, Map<number, KeyRow>>();
  readonly #changedKeys = new Map<string, KeyRow>();
  readonly dropped = new Set<string>();
  readonly stages = new Map<string, string | null>();
  readonly #changed = {
    clusters: new Set<string>(),
    jobs: new Set<string>(),
    tasks: new TaskRows(),
    workers: new Set<string>(),
    documents: new Set<string>(),
  };

  /** Takes a draft's changes over. */
  take(draft: Layer): void {
    for (const jobId of draft.dropped) {
      this.dropped.add(jobId);
      this.tasks.drop(jobId);
      this.#changed.tasks.drop(jobId);
    }
    for (const task of draft.tasks.all()) {
      this.tasks.put(task);
      this.#changed.tasks.put(task);
    }
    for (const table of ["clusters", "jobs", "workers", "documents"] as const)
      for (const [key, row] of draft[table]) {
        (this[table] as Map<string, unknown>).set(key, row);
        this.#changed[table].add(key);
      }
    for (const [jobId, stage] of draft.stages) {
      this.stages.set(jobId, stage);
      const job = this.jobs.get(jobId);
      if (job !== undefined) this.jobs.set(jobId, { ...job, stage });
    }
  }

  /** Letter of the statement's part, table, rows; tables without a change are left out. */
  changedRows(): (readonly [string, TableShape, readonly object[]])[] {
    const changed = <T>(rows: ReadonlyMap<string, T>, keys: ReadonlySet<string>): T[] =>
      [...keys].flatMap((key) => rows.get(key) ?? []);
    const all: (readonly [string, TableShape, readonly object[]])[] = [
      ["c", shapes.clusters, changed(this.clusters, this.#changed.clusters)],
      ["j", shapes.jobs, changed(this.jobs, this.#changed.jobs)],
      ["w", shapes.workers, changed(this.workers, this.#changed.workers)],
      ["t", shapes.tasks, [...this.#changed.tasks.all()]],
      ["d", shapes.documents, changed(this.documents, this.#changed.documents)],
      ["k", shapes.keys, [...this.#changedKeys.values()]],
    ];
    return all.filter(([, , rows]) => rows.length > 0);
  }

  /** Of jobs of which nothing else changes. */
  stagesAlone(): (readonly [string, string | null])[] {
    return [...this.stages].filter(([jobId]) => !this.#changed.jobs.has(jobId));
  }

  addKey(row: KeyRow): void {
    const at = keyKey(row.tenant, row.key);
    const known = this.#keys.get(at);
    if (known === undefined) this.#keys.set(at, new Map([[row.shard, row]]));
    else known.set(row.shard, row);
  }

  putKey(row: KeyRow): void {
    this.addKey(row);
    this.#changedKeys.set(`${row.shard}/${keyKey(row.tenant, row.key)}`, row);
  }

  /** What the key was used for, at most once in each shard. */
  keysOf(tenant: string, key: string): readonly KeyRow[] {
    return [...(this.#keys.get(keyKey(tenant, key))?.values() ?? [])];
  }
}
