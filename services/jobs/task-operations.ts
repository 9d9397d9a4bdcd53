import { Problem } from "../../infra/errors.js";
import type { JobRow, JsonObject, TaskRow } from "../../replication/entities.js";
import type { Operation, Work } from "../../replication/work.js";
import type { ShardId } from "../../shards/ids.js";
import { parseTaskId, parseToken, type TaskIdParts, type Token } from "./ids.js";
import type { OfferedTask } from "./job-events.js";
import { shardOfJob } from "./job-operations.js";
import { backoffMs } from "./plan.js";
import type { JobContext } from "./job-context.js";
import { tailOf } from "./output.js";
import { isVoid, timeOf } from "./rows.js";
import { JobRun } from "./run.js";
import { takenTask, taskView } from "./views.js";

export interface FinishRequest {
  readonly tenant: string;
  readonly taskId: string;
  readonly token: string;
  readonly workerId: string;
  /** Which try of the task it ends (`input.try`); left out: the running one, whichever it is. */
  readonly try?: number | undefined;
  readonly status: "ok" | "failed";
  readonly result?: JsonObject;
  readonly stdout?: string;
  readonly stderr?: string;
}

/** Answer of a heartbeat and of a finish: the lease left to the task, and whether its worker shall stop it. */
export interface LeaseAnswer {
  readonly leaseMs: number;
  readonly stop: boolean;
}

/**
 * What workers do to tasks, as writes for the owner's transaction. None of them makes a record, but that a finish may
 * end a stage or the job. A token that is not the running attempt's changes nothing (invariant 6), wherever it arrives.
 */
export class TaskOperations {
  readonly #context: JobContext;

  constructor(context: JobContext) {
    this.#context = context;
  }

  /** 200 with the task as its worker gets it; 204 when it can't be taken any more, and nothing changed. */
  take(
    offered: Pick<OfferedTask, "id" | "jobId" | "shard">,
    workerId: string,
    lease = this.#context.settings.leaseMs,
  ): Operation {
    return this.#unlogged(offered.jobId, offered.shard, (work) => {
      const job = work.job(offered.jobId);
      const task = work.tasks(offered.jobId).find((each) => each.id === offered.id);
      if (job?.status !== "running" || isVoid(job, work) || task?.status !== "waiting" || task.attempt !== job.attempt)
        return nothing;
      if (task.notBefore !== null && Date.parse(task.notBefore) > work.now) return nothing;
      const cluster = work.cluster(job.tenant, job.clusterId);
      if (cluster === undefined) throw new Error(`the cluster of job ${job.id} was not loaded`);
      const stage = this.#context.catalog().stage(job.type, task.stage);
      const deadline = work.now + (stage?.timeoutMs ?? 30 * 60_000);
      const leaseMs = Math.min(lease, deadline - work.now);
      const taken: TaskRow = {
        ...task,
        status: "taken",
        tries: task.tries + 1,
        workerId,
        leaseUntil: timeOf(work.now + leaseMs),
        deadline: timeOf(deadline),
        notBefore: null,
      };
      work.putTask(taken);
      const run = JobRun.of(this.#context, work, job.id, null);
      return { status: 200, body: takenTask(taken, job, cluster, run.resultsSoFar(), leaseMs) };
    });
  }

  /**
   * Gives back a task that was taken for a worker which did not get it: as if it had not been taken. With `leaseUntil` only if it
   * was taken until then.
   */
  release(taskId: string, workerId: string, leaseUntil?: string): Operation {
    const { jobId, shard } = this.#parse(taskId);
    return this.#unlogged(jobId, shard, (work) => {
      const task = work.tasks(jobId).find((each) => each.id === taskId);
      const job = work.job(jobId);
      if (task?.status !== "taken" || task.workerId !== workerId || job === undefined) return nothing;
      if (leaseUntil !== undefined && task.leaseUntil !== leaseUntil) return nothing;
      const back: TaskRow = {
        ...task,
        status: "waiting",
        tries: task.tries - 1,
        workerId: null,
        leaseUntil: null,
        deadline: null,
      };
      work.putTask(back);
      const run = JobRun.of(this.#context, work, jobId, null);
      if (job.status === "running" && !run.void) run.offer(back);
      return nothing;
    });
  }

  /** 200 with a LeaseAnswer. @throws (in `decide`) Problem stale_token: the task is not this worker's any more. */
  heartbeat(tenant: string, taskId: string, token: string, workerId: string): Operation {
    const parts = this.#parse(taskId);
    const given = this.#token(token, parts);
    return this.#unlogged(parts.jobId, parts.shard, (work) => {
      const { job, task } = this.#fenced(work, tenant, parts, given);
      // The attempt is the job's last, but over: the worker shall drop what it does.
      if (job.status !== "running" && job.status !== "paused") return leaseAnswer(0, true);
      if (task === undefined || !isOpen(task) || task.workerId !== workerId)
        throw stale(`The task is not taken by ${workerId}.`);
      const left = deadlineOf(task) - work.now;
      if (left <= 0) return leaseAnswer(0, true);
      const leaseMs = Math.min(this.#context.settings.leaseMs, left);
      work.putTask({ ...task, status: "taken", leaseUntil: timeOf(work.now + leaseMs) });
      return leaseAnswer(leaseMs, false);
    });
  }

  /** From now on the task has this lease, milliseconds, if somebody of whom `isHolder` is true has it; 0 ends it. */
  setLease(taskId: string, isHolder: (workerId: string) => boolean, lease: number): Operation {
    const { jobId, shard } = this.#parse(taskId);
    return this.#unlogged(jobId, shard, (work) => {
      const job = work.job(jobId);
      const task = work.tasks(jobId).find((each) => each.id === taskId);
      if (job === undefined || task?.status !== "taken" || task.workerId === null || !isHolder(task.workerId))
        return nothing;
      if (job.attempt !== task.attempt || isVoid(job, work)) return nothing;
      if (job.status !== "running" && job.status !== "paused") return nothing;
      work.putTask({ ...task, leaseUntil: timeOf(Math.min(work.now + lease, deadlineOf(task))) });
      return nothing;
    });
  }

  /**
   * 200 with a LeaseAnswer, again when the same finish is repeated.
   * @throws Problem payload_too_large; (in `decide`) stale_token, and nothing changed.
   */
  finish(request: FinishRequest): Operation {
    const { taskId, workerId, status } = request;
    const parts = this.#parse(taskId);
    const given = this.#token(request.token, parts);
    const { resultLimit, outputLimit, backoffMs: base } = this.#context.settings;
    if (request.result !== undefined && Buffer.byteLength(JSON.stringify(request.result)) > resultLimit) {
      throw new Problem("payload_too_large", `A task's result may have ${resultLimit} bytes.`);
    }
    return this.#operation(parts.jobId, parts.shard, (work) => {
      const { job, task } = this.#fenced(work, request.tenant, parts, given);
      if (task === undefined) {
        // Its tasks are not kept here; that this attempt completed says that this one was ok.
        if (job.status === "complete" && status === "ok") return leaseAnswer(0, false);
        throw stale("The task is not known.");
      }
      if (task.workerId !== workerId) throw stale(`The task is not ${workerId}'s any more.`);
      if (request.try !== undefined && request.try !== task.tries) throw stale(`Try ${request.try} is over.`);
      // The first finish was stored, its answer lost. A failed try waits for its next one, or is final.
      const repeated = task.status === status || (task.status === "waiting" && status === "failed");
      if (!isOpen(task) && repeated) return leaseAnswer(0, false);
      if (!isOpen(task) || (job.status !== "running" && job.status !== "paused")) throw stale("The task is over.");
      const finished: TaskRow = {
        ...task,
        status,
        leaseUntil: null,
        deadline: null,
        result: status === "ok" ? (request.result ?? null) : null,
        stdout: tail(request.stdout, outputLimit),
        stderr: tail(request.stderr, outputLimit),
        finishedAt: timeOf(work.now),
      };
      const run = JobRun.of(this.#context, work, job.id, null);
      if (status === "failed") this.#failed(work, run, finished, work.now + backoffMs(task.id, task.tries, base));
      else {
        work.putTask(finished);
        run.settle(finished);
      }
      return leaseAnswer(0, false);
    });
  }

  /** The lease of a task has run out: it is offered again at once, or has failed when its tries are used up. */
  expire(taskId: string): Operation {
    const parts = this.#parse(taskId);
    return this.#operation(parts.jobId, parts.shard, (work) => {
      const job = work.job(parts.jobId);
      const task = work.tasks(parts.jobId).find((each) => each.id === taskId);
      if (job === undefined || task?.status !== "taken") return nothing;
      const over =
        job.attempt !== task.attempt || isVoid(job, work) || (job.status !== "running" && job.status !== "paused");
      if (over) {
        work.putTask({ ...task, status: "cancelled", leaseUntil: null, deadline: null, finishedAt: timeOf(work.now) });
        return nothing;
      }
      if (task.leaseUntil !== null && Date.parse(task.leaseUntil) > work.now) return nothing;
      const tooLong = deadlineOf(task) <= work.now;
      const lost: TaskRow = {
        ...task,
        status: "failed",
        leaseUntil: null,
        // Until somebody else takes it, a worker that was silent may still come back to it.
        ...(tooLong ? { workerId: null, deadline: null } : {}),
        stderr: `worker ${task.workerId ?? "?"} ${tooLong ? "took longer than the stage allows" : "was silent"}`,
        finishedAt: timeOf(work.now),
      };
      this.#failed(work, JobRun.of(this.#context, work, job.id, null), lost, 0);
      return nothing;
    });
  }

  /**
   * 200 with the tasks of the job's last attempt and what they printed: a read at the owner. None where that attempt ended in
   * another datacenter; what an earlier attempt left here is not shown.
   * @throws (in `decide`) Problem not_found.
   */
  list(tenant: string, jobId: string): Operation {
    const shard = shardOfJob(jobId);
    const decide: Operation["decide"] = (work) => {
      const { job } = JobRun.of(this.#context, work, jobId, tenant);
      const tasks = work.tasks(jobId).filter((task) => task.attempt === job.attempt);
      return { status: 200, body: { items: tasks.map(taskView), nextCursor: null } };
    };
    return { shard, needs: { jobs: [jobId], tasks: "printed" }, decide, unlogged: true };
  }

  #failed(work: Work, run: JobRun, task: TaskRow, againAt: number): void {
    const retries = this.#context.catalog().stage(run.job.type, task.stage)?.retries ?? 1;
    if (task.tries >= retries) {
      work.putTask({ ...task, deadline: null });
      run.settle(task);
      return;
    }
    const again: TaskRow = {
      ...task,
      status: "waiting",
      notBefore: againAt === 0 ? null : timeOf(againAt),
      finishedAt: null,
    };
    work.putTask(again);
    if (run.job.status === "running") run.offer(again);
  }

  /** The job, if the token is its attempt's and that attempt is not void; with the task, if it is here. */
  #fenced(work: Work, tenant: string, parts: TaskIdParts, token: Token): { job: JobRow; task: TaskRow | undefined } {
    const job = work.job(parts.jobId);
    if (job === undefined || job.tenant !== tenant) throw stale("The job is not known.");
    const over = job.status === "complete" || job.status === "failed" || job.status === "cancelled";
    if (
      token.attempt !== job.attempt ||
      token.epoch !== job.epoch ||
      job.status === "queued" ||
      (!over && isVoid(job, work))
    ) {
      throw stale(`The token is not that of attempt ${job.attempt}, epoch ${job.epoch}.`);
    }
    const id = `${parts.jobId}.${parts.attempt}.${parts.number}`;
    return { job, task: work.tasks(job.id).find((each) => each.id === id && each.attempt === job.attempt) };
  }

  #parse(taskId: string): TaskIdParts {
    const parts = parseTaskId(taskId);
    if (parts === undefined) throw stale("This is no task's id.");
    return parts;
  }

  #token(text: string, parts: TaskIdParts): Token {
    const token = parseToken(text);
    if (token === undefined || token.shard !== parts.shard || token.attempt !== parts.attempt)
      throw stale("The token is not one of this task.");
    return token;
  }

  /** Which task is whose never enters the log. */
  #unlogged(jobId: string, shard: ShardId, decide: Operation["decide"]): Operation {
    return { ...this.#operation(jobId, shard, decide), unlogged: true };
  }

  #operation(jobId: string, shard: ShardId, decide: Operation["decide"]): Operation {
    return { shard, needs: { jobs: [jobId], tasks: true }, decide };
  }
}

const nothing = { status: 204, body: null } as const;
const leaseAnswer = (leaseMs: number, stop: boolean): { status: number; body: LeaseAnswer } => ({
  status: 200,
  body: { leaseMs, stop },
});
const stale = (detail: string): Problem => new Problem("stale_token", detail);
const tail = (text: string | undefined, limit: number): string | null =>
  text === undefined ? null : tailOf(text, limit);

/** A try of it is under way: its worker has it, or was silent and nobody else has taken it since. */
const isOpen = (task: TaskRow): boolean =>
  task.status === "taken" || (task.status === "waiting" && task.deadline !== null);

/** When the running try of a task is too long, milliseconds since 1970. */
function deadlineOf(task: TaskRow): number {
  return task.deadline === null ? Number.POSITIVE_INFINITY : Date.parse(task.deadline);
}
