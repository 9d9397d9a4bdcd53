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
    const seen = new Map([...this.#base.jobs, ...this.rows.jobs]);
    return [...seen.values()].find(
      (job) => job.tenant === tenant && job.clusterId === clusterId && unfinished.includes(job.status),
    );
  }

  tasks(jobId: string): readonly TaskRow[] {
    const kept = this.rows.dropped.has(jobId) ? [] : [...this.#base.tasks];
    const seen = new Map([...kept, ...this.rows.tasks]);
    return [...seen.values()]
      .filter((task) => task.jobId === jobId)
      .sort((a, b) => a.stageIndex - b.stageIndex || a.id.localeCompare(b.id, "en", { numeric: true }));
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
    this.rows.tasks.set(task.id, task);
  }

  dropTasks(jobId: string): void {
    this.rows.dropped.add(jobId);
    for (const [id, task] of this.rows.tasks) if (task.jobId === jobId) this.rows.tasks.delete(id);
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

/** Rows by key, with a note of which were changed. */
export class Layer {
  readonly clusters = new Map<string, ClusterRow>();
  readonly jobs = new Map<string, JobRow>();
  readonly tasks = new Map<string, TaskRow>();
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
    tasks: new Set<string>(),
    workers: new Set<string>(),
    documents: new Set<string>(),
  };

  /** Takes a draft's changes over. */
  take(draft: Layer): void {
    for (const jobId of draft.dropped) {
      this.dropped.add(jobId);
      for (const [id, task] of this.tasks)
        if (task.jobId === jobId) {
          this.tasks.delete(id);
          this.#changed.tasks.delete(id);
        }
    }
    for (const table of ["clusters", "jobs", "tasks", "workers", "documents"] as const)
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
      ["t", shapes.tasks, changed(this.tasks, this.#changed.tasks)],
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
