import { Problem } from "../../infra/errors.js";
import type { ClusterRow, TaskRow } from "../../replication/entities.js";
import type { Work } from "../../replication/work.js";
import type { JobContext } from "./job-context.js";
import { taskIdOf } from "./ids.js";
import {
  firstStage,
  mergeResults,
  planStage,
  progressOf,
  readNodes,
  stageUnderWay,
  type PlannedTask,
  type Results,
} from "./plan.js";
import { bare, isVoid, nodesOf, offeredTask, restingStatus, timeOf, withoutNodes } from "./rows.js";
import { kindOf, nextClusterStatus, nextJobStatus, type ClusterEvent } from "./states.js";
import { jobView, type ClusterState, type JobState } from "./views.js";

export type Ending = "complete" | "failed" | "cancelled";
const endings = { complete: "complete", failed: "fail", cancelled: "cancel" } as const satisfies Record<Ending, string>;

/**
 * One job inside the owner's transaction: how an attempt begins, goes from stage to stage, and ends. Records: one when
 * it starts or restarts, one per named checkpoint, one at its end. Everything else stays with the owner (invariant 9).
 */
export class JobRun {
  readonly #context: JobContext;
  readonly #work: Work;
  #job: JobState;
  /** Tasks of an attempt that began in this very write, or of none so far. */
  #fresh: TaskRow[] | undefined;

  constructor(context: JobContext, work: Work, job: JobState) {
    this.#context = context;
    this.#work = work;
    this.#job = job;
    if (job.status === "queued") this.#fresh = [];
  }

  /** @throws Problem not_found, also for another tenant's job (`tenant` null: any). */
  static of(context: JobContext, work: Work, jobId: string, tenant: string | null): JobRun {
    const job = work.job(jobId);
    if (job === undefined || (tenant !== null && job.tenant !== tenant))
      throw new Problem("not_found", `There is no job ${jobId}.`);
    return new JobRun(context, work, bare(job));
  }

  get job(): JobState {
    return this.#job;
  }

  /** The running attempt is an earlier owner's: its tokens are void, and it waits for a restart. */
  get void(): boolean {
    return isVoid(this.#job, this.#work);
  }

  /** The restart record of a job that begins to run: the cluster is pending from here on. */
  start(event: "start" | "due"): void {
    const { now, epoch, datacenter } = this.#work;
    const cluster = this.#needCluster();
    const status = nextJobStatus(event === "start" ? "none" : this.#job.status, event);
    const pending = nextClusterStatus(restingStatus(cluster), `start ${kindOf(this.#job.type)}`);
    this.#job = { ...this.#job, status, epoch, runsIn: datacenter };
    this.#fresh = [];
    this.#work.record({
      type: "job.start",
      job: this.#job,
      cluster: { ...bare(cluster), status: pending, version: cluster.version + 1, updatedAt: timeOf(now) },
    });
    this.#changed();
    this.#enter(firstStage(this.#job));
  }

  /** The next attempt, from the last checkpoint. After a takeover the cluster is pending already; a retry makes it so. */
  nextAttempt(event: "restart" | "retry" | "resume"): void {
    const { now, epoch, datacenter } = this.#work;
    const status = nextJobStatus(this.#job.status, event);
    let cluster: ClusterState | undefined;
    if (event === "retry") {
      const row = this.#needCluster();
      const kind = kindOf(this.#job.type);
      const resting = restingStatus(row);
      const pending = nextClusterStatus(resting, `start ${kind}`);
      // Where another operation has been at the cluster since, what this one had reached counts no more.
      if (resting !== nextClusterStatus("pending", `fail ${kind}`)) this.#job = { ...this.#job, checkpoint: null };
      cluster = { ...bare(row), status: pending, version: row.version + 1, updatedAt: timeOf(now) };
    }
    this.#job = {
      ...this.#job,
      status,
      attempt: this.#job.attempt + 1,
      epoch,
      runsIn: datacenter,
      stage: null,
      finishedAt: null,
      error: null,
    };
    this.#work.record({ type: "job.restart", job: this.#job, ...(cluster === undefined ? {} : { cluster }) });
    this.#work.dropTasks(this.#job.id);
    this.#fresh = [];
    const { id } = this.#job;
    if (event !== "retry") this.#work.afterCommit(() => this.#context.events.restarted(id));
    this.#changed();
    this.#enter(firstStage(this.#job));
  }

  /** A change of status without a new attempt, as a record. */
  change(event: "pause" | "resume"): void {
    this.#job = { ...this.#job, status: nextJobStatus(this.#job.status, event) };
    const { id, stage } = this.#job;
    this.#work.record({ type: "job.change", job: { ...this.#job, stage: null } });
    this.#work.setStage(id, stage);
    this.#changed();
  }

  /**
   * Looks whether the stage under way is through: then its checkpoint and the next stage, or the end. `touched` is the
   * row just put, as it is now.
   */
  settle(touched?: TaskRow): void {
    if (this.#job.status !== "running" || this.void) return;
    const tasks = this.#tasks(touched);
    const index = stageUnderWay(tasks, this.#job.attempt);
    if (index === undefined) return;
    const progress = progressOf(tasks, this.#job.attempt, index);
    if (progress.kind === "open") return;
    if (progress.kind === "failed") {
      const { name, node, tries } = progress.task;
      this.end(
        "failed",
        `${name}${node === null ? "" : ` on ${node}`} failed after ${tries} tries; its tasks say why`,
        touched,
      );
      return;
    }
    const stage = this.#context.catalog().stage(this.#job.type, this.#job.stages[index] ?? "");
    const next = index + 1;
    if (stage?.checkpoint === true && next < this.#job.stages.length) {
      const results = this.#results(touched);
      if (!this.#fits(results)) return this.#tooLarge(touched);
      this.#job = { ...this.#job, stage: null, checkpoint: { stages: next, results } };
      this.#work.record({ type: "job.checkpoint", job: this.#job });
    }
    this.#enter(next, touched);
  }

  /** The completion record: the job's end, and the cluster's new status with what the tasks gave. */
  end(ending: Ending, error: string | null, touched?: TaskRow): void {
    const before = this.#job;
    const results = this.#results(touched);
    if (ending === "complete" && !this.#fits(results)) return this.#tooLarge(touched);
    const open = this.#tasks(touched).filter((task) => task.status === "waiting" || task.status === "taken");
    const cluster = this.#clusterAfter(ending, results);
    this.#job = {
      ...before,
      status: nextJobStatus(before.status, endings[ending]),
      stage: null,
      // Kept where a retry may go on from it.
      checkpoint: ending === "complete" ? null : before.checkpoint,
      finishedAt: timeOf(this.#work.now),
      error: error === null ? null : error.slice(0, 500),
    };
    this.#work.record({ type: "job.end", job: this.#job, ...(cluster === undefined ? {} : { cluster }) });
    if (this.void) this.#work.dropTasks(before.id);
    const over = { leaseUntil: null, deadline: null, notBefore: null, finishedAt: timeOf(this.#work.now) };
    for (const task of open) this.#work.putTask({ ...task, ...over, status: "cancelled" });
    this.#work.setStage(before.id, null);
    this.#changed();
  }

  /** Tasks that wait in the running attempt are offered (again). */
  offerWaiting(): void {
    this.#offer(this.#tasks().filter((task) => task.status === "waiting"));
  }

  offer(task: TaskRow): void {
    this.#offer([task]);
  }

  /** Of all nodes, from the stages that are through: the cluster's own, the checkpoint's, and this attempt's. */
  resultsSoFar(): Results {
    return this.#results();
  }

  /** Undefined where the job leaves its cluster as it is: it never began, or the cluster is gone. */
  #clusterAfter(ending: Ending, results: Results): ClusterState | undefined {
    const row = this.#needCluster();
    if (this.#job.status === "queued" || row.deleted) return undefined;
    const kind = kindOf(this.#job.type);
    const event: ClusterEvent = `${endings[ending]} ${kind}`;
    const gone = ending === "complete" && kind === "delete";
    const state = gone ? withoutNodes(row.state) : this.#fits(results) ? { ...row.state, nodes: results } : row.state;
    return {
      ...bare(row),
      status: nextClusterStatus("pending", event),
      state,
      version: row.version + 1,
      updatedAt: timeOf(this.#work.now),
    };
  }

  /** A stage whose plan is empty is passed; after the last one the job is complete. */
  #enter(from: number, touched?: TaskRow): void {
    const cluster = this.#needCluster();
    if (cluster.deleted) return this.end("failed", "its cluster was deleted", touched);
    const { nodes, faults } = readNodes(cluster.spec);
    for (let index = from; index < this.#job.stages.length; index++) {
      const name = this.#job.stages[index] ?? "";
      const stage = this.#context.catalog().stage(this.#job.type, name);
      if (stage === undefined)
        return this.end("failed", `the catalog has no stage ${name} of ${this.#job.type} any more`, touched);
      if (faults[0] !== undefined)
        return this.end("failed", `the cluster's nodes can't be read: ${faults[0].path} ${faults[0].message}`, touched);
      const planned = planStage(stage, nodes);
      if (planned.length === 0) continue;
      const before = this.#tasks(touched).length;
      const tasks = planned.map((task, i) => this.#taskRow(task, before + i + 1, name, index));
      for (const task of tasks) this.#work.putTask(task);
      this.#fresh?.push(...tasks);
      this.#work.setStage(this.#job.id, name);
      this.#job = { ...this.#job, stage: name };
      this.#offer(tasks);
      return;
    }
    this.end("complete", null, touched);
  }

  /** `number`: from 1 within the attempt. */
  #taskRow({ name, node, service }: PlannedTask, number: number, stage: string, stageIndex: number): TaskRow {
    const { id: jobId, attempt, tenant, clusterId } = this.#job;
    return {
      id: taskIdOf(jobId, attempt, number),
      jobId,
      shard: this.#work.shard,
      tenant,
      clusterId,
      name,
      node,
      service,
      stage,
      stageIndex,
      attempt,
      status: "waiting",
      tries: 0,
      workerId: null,
      leaseUntil: null,
      deadline: null,
      notBefore: null,
      result: null,
      stdout: null,
      stderr: null,
      finishedAt: null,
    };
  }

  #offer(tasks: readonly TaskRow[]): void {
    const labels = this.#needCluster().labels;
    const offered = tasks.map((task) => offeredTask(task, this.#job, labels));
    this.#work.afterCommit(() => this.#context.events.offered(offered));
  }

  #changed(): void {
    const job = this.#job;
    this.#work.afterCommit(() => this.#context.events.jobChanged(jobView(job), job.tenant));
  }

  /** Of the running attempt; none where the attempt is an earlier owner's. */
  #tasks(touched?: TaskRow): TaskRow[] {
    if (this.#fresh !== undefined) return this.#fresh;
    if (this.void) return [];
    const mine = this.#work.tasks(this.#job.id).filter((task) => task.attempt === this.#job.attempt);
    return touched === undefined ? mine : mine.map((task) => (task.id === touched.id ? touched : task));
  }

  #results(touched?: TaskRow): Results {
    const { checkpoint, attempt } = this.#job;
    const base = (checkpoint?.results ?? nodesOf(this.#needCluster())) as Results;
    return mergeResults(base, this.#tasks(touched), attempt, firstStage(this.#job));
  }

  #fits(results: Results): boolean {
    return Buffer.byteLength(JSON.stringify(results)) <= this.#context.settings.resultsLimit;
  }

  #tooLarge(touched?: TaskRow): void {
    this.end("failed", `the results of its tasks are more than ${this.#context.settings.resultsLimit} bytes`, touched);
  }

  #needCluster(): ClusterRow {
    // As it is now: an earlier record of the same write may have changed it.
    const cluster = this.#work.cluster(this.#job.tenant, this.#job.clusterId);
    if (cluster === undefined) throw new Error(`the cluster of job ${this.#job.id} was not loaded`);
    return cluster;
  }
}
