import { seededRandom, type Random } from "../../infra/random.js";
import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { Change, Needs, Operation, ShardWriter, Work, Written } from "../../replication/work.js";
import { unfinished, type ClusterRow, type JobRow, type TaskRow, type WorkerRow } from "../../replication/entities.js";
import { epoch, position, type Epoch, type Position, type ShardId } from "../../shards/ids.js";

/** A record as the log would carry it: a JSON copy, without anything that the owner keeps for itself. */
export interface Recorded {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly change: Change;
}

interface Head {
  epoch: Epoch;
  tenure: Epoch;
  position: Position;
}

interface Rows {
  readonly clusters: Map<string, ClusterRow>;
  readonly jobs: Map<string, JobRow>;
  readonly tasks: Map<string, TaskRow>;
  readonly workers: Map<string, WorkerRow>;
}

const keyOf = (tenant: string, id: string): string => `${tenant}\u0000${id}`;
const copyOf = (rows: Rows): Rows => ({
  clusters: new Map(rows.clusters),
  jobs: new Map(rows.jobs),
  tasks: new Map(rows.tasks),
  workers: new Map(rows.workers),
});

/**
 * The owner's transaction of one datacenter, in memory, with the rules of replication/work.ts: `decide` sees only what
 * it named in its needs (a job brings its cluster), rows are frozen, and what a throwing `decide` did is dropped.
 */
export class MemoryShards implements ShardWriter {
  readonly records: Recorded[] = [];
  datacenter: string;
  rows: Rows = { clusters: new Map(), jobs: new Map(), tasks: new Map(), workers: new Map() };
  /** Called before each write; may throw a Problem, as a shard does that is not owned any more. */
  before: (operation: Operation) => void = () => {};
  /** What is heard of a commit: `late`, that it is in doubt since the lease ran out; `lost`, that, and nothing follows from it here. */
  heard: (operation: Operation) => "told" | "late" | "lost" = () => "told";
  readonly #heads = new Map<ShardId, Head>();
  readonly #time: Pick<Time, "wall">;
  readonly #random: Random;

  constructor(time: Pick<Time, "wall">, datacenter = "east", random: Random = seededRandom(1)) {
    this.#time = time;
    this.datacenter = datacenter;
    this.#random = random;
  }

  head(shard: ShardId): Head {
    let head = this.#heads.get(shard);
    if (head === undefined)
      this.#heads.set(shard, (head = { epoch: epoch(1), tenure: epoch(1), position: position(0) }));
    return head;
  }

  /** Another datacenter owns the shard from here on: records are there, tasks and stages are not. */
  takeOver(shard: ShardId, datacenter: string): void {
    const head = this.head(shard);
    head.epoch = epoch(head.epoch + 1);
    head.tenure = head.epoch;
    this.datacenter = datacenter;
    for (const [id, task] of this.rows.tasks) if (task.shard === shard) this.rows.tasks.delete(id);
    for (const [id, job] of this.rows.jobs)
      if (job.shard === shard) this.rows.jobs.set(id, deepFreeze({ ...job, stage: null }));
  }

  /** The owner goes on in its next epoch, having forgotten nothing. */
  reopen(shard: ShardId): void {
    const head = this.head(shard);
    head.epoch = epoch(head.epoch + 1);
  }

  async write(
    operation: Operation,
    _options: { readonly durability: "local" | "replicated"; readonly deadline: number },
  ): Promise<Written> {
    await Promise.resolve();
    return this.writeNow(operation);
  }

  /** As `write`, at once. */
  writeNow(operation: Operation): Written {
    this.before(operation);
    const { shard } = operation;
    const head = { ...this.head(shard) };
    const rows = copyOf(this.rows);
    const records: Recorded[] = [];
    const afterCommit: (() => void)[] = [];
    const work = this.#work(shard, head, rows, operation.needs, records, afterCommit);
    const outcome = operation.decide(work);
    this.rows = rows;
    this.records.push(...records);
    this.#heads.set(shard, head);
    const heard = this.heard(operation);
    if (heard !== "lost") for (const action of afterCommit) action();
    if (heard !== "told") throw new Problem("outcome_unknown");
    return {
      outcome: structuredClone(outcome),
      epoch: head.epoch,
      position: head.position,
      replayed: false,
      openEpoch: head.epoch,
    };
  }

  #work(shard: ShardId, head: Head, rows: Rows, needs: Needs, records: Recorded[], afterCommit: (() => void)[]): Work {
    const jobs = new Set(needs.jobs ?? []);
    const clusters = new Set((needs.clusters ?? []).map(({ tenant, id }) => keyOf(tenant, id)));
    for (const id of jobs) {
      const job = rows.jobs.get(id);
      if (job !== undefined) clusters.add(keyOf(job.tenant, job.clusterId));
    }
    const activeOf = (key: string): JobRow | undefined =>
      [...rows.jobs.values()].find(
        (job) => keyOf(job.tenant, job.clusterId) === key && unfinished.includes(job.status),
      );
    if (needs.activeJobs === true) for (const key of clusters) jobs.add(activeOf(key)?.id ?? "");
    const workers = new Set((needs.workers ?? []).map(({ tenant, id }) => keyOf(tenant, id)));
    const named = (there: boolean, what: string): void => {
      if (!there) throw new Error(`${what} is not in the operation's needs`);
    };
    const mine = (of: { readonly shard: ShardId }): void => {
      if (of.shard !== shard) throw new Error("a row of another shard");
    };
    return {
      shard,
      epoch: head.epoch,
      tenure: head.tenure,
      datacenter: this.datacenter,
      now: this.#time.wall(),
      token: (length) => this.#random.token(length),
      cluster: (tenant, id) => {
        named(clusters.has(keyOf(tenant, id)), `cluster ${id}`);
        return rows.clusters.get(keyOf(tenant, id));
      },
      job: (id) => {
        named(jobs.has(id), `job ${id}`);
        return rows.jobs.get(id);
      },
      activeJob: (tenant, id) => {
        named(needs.activeJobs === true && clusters.has(keyOf(tenant, id)), `the active job of ${id}`);
        return activeOf(keyOf(tenant, id));
      },
      tasks: (jobId) => {
        named(needs.tasks !== undefined && needs.tasks !== false && jobs.has(jobId), `the tasks of ${jobId}`);
        const seen = tasksOf(rows, jobId);
        if (needs.tasks === "printed") return seen;
        return seen.map((task) => (task.status === "ok" ? { ...task, stdout: null, stderr: null } : task));
      },
      worker: (tenant, id) => {
        named(workers.has(keyOf(tenant, id)), `worker ${id}`);
        return rows.workers.get(keyOf(tenant, id));
      },
      record: (change) => {
        head.position = position(head.position + 1);
        const place = { changedEpoch: head.epoch, changedPosition: head.position };
        const { cluster, job, worker } = change;
        for (const row of [cluster, job, worker]) if (row !== undefined) mine(row);
        if (cluster !== undefined)
          rows.clusters.set(keyOf(cluster.tenant, cluster.id), deepFreeze({ ...structuredClone(cluster), ...place }));
        if (job !== undefined) {
          rows.jobs.set(job.id, deepFreeze({ ...structuredClone(job), ...place }));
          jobs.add(job.id);
        }
        if (worker !== undefined)
          rows.workers.set(keyOf(worker.tenant, worker.id), deepFreeze({ ...structuredClone(worker), ...place }));
        records.push({
          shard,
          epoch: head.epoch,
          position: head.position,
          change: deepFreeze(structuredClone(change)),
        });
        return head.position;
      },
      putTask: (task) => {
        mine(task);
        if (rows.tasks.get(task.id)?.status === "ok") throw new Error("what this task printed was not loaded");
        rows.tasks.set(task.id, deepFreeze(structuredClone(task)));
      },
      dropTasks: (jobId) => {
        for (const task of tasksOf(rows, jobId)) rows.tasks.delete(task.id);
      },
      setStage: (jobId, stage) => {
        const job = rows.jobs.get(jobId);
        if (job !== undefined) rows.jobs.set(jobId, deepFreeze({ ...job, stage }));
      },
      afterCommit: (action) => afterCommit.push(action),
    };
  }
}

/** By stage and number. */
export function tasksOf(rows: Rows, jobId: string): TaskRow[] {
  const number = (task: TaskRow): number => Number(task.id.split(".").at(-1));
  return [...rows.tasks.values()]
    .filter((task) => task.jobId === jobId)
    .sort((a, b) => a.attempt - b.attempt || a.stageIndex - b.stageIndex || number(a) - number(b));
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const each of Object.values(value)) deepFreeze(each);
  }
  return value;
}
