import { Problem, type FieldError } from "../../infra/errors.js";
import { unfinished, type JsonObject } from "../../replication/entities.js";
import type { Operation, Outcome, Work } from "../../replication/work.js";
import type { ShardId } from "../../shards/ids.js";
import { jobIdOf, parseJobId } from "./ids.js";
import { readNodes } from "./plan.js";
import type { JobContext } from "./job-context.js";
import { bare, isVoid, timeOf } from "./rows.js";
import { JobRun } from "./run.js";
import { kindOf, nextClusterStatus } from "./states.js";
import { jobView, type JobState } from "./views.js";

export interface StartRequest {
  readonly tenant: string;
  readonly clusterId: string;
  /** The shard of the cluster's id. */
  readonly shard: ShardId;
  /** Type of the operation, from the catalog. */
  readonly type: string;
  readonly input: JsonObject;
  /** RFC 3339; null: at once. */
  readonly notBefore: string | null;
}

/**
 * What users and the clock do to jobs, as writes for the owner's transaction. Whatever names a job in its needs
 * expects that job's cluster to be loaded too (and that cluster's unfinished job, with `activeJobs`).
 */
export class JobOperations {
  readonly #context: JobContext;

  constructor(context: JobContext) {
    this.#context = context;
  }

  /**
   * 202 with the job.
   * @throws Problem invalid_request for an unknown type, a wrong time, or nodes that can't be read (in `decide`);
   * in `decide` not_found, job_in_progress, invalid_transition.
   */
  start(request: StartRequest): Operation {
    const { tenant, clusterId, shard, type, input } = request;
    const operation = this.#context.catalog().operation(type);
    if (operation === undefined) {
      const known = [...this.#context.catalog().operations.keys()].join(", ");
      throw invalid([{ path: "/type", message: `must be one of ${known}` }]);
    }
    const due = request.notBefore === null ? 0 : Date.parse(request.notBefore);
    if (Number.isNaN(due)) throw invalid([{ path: "/notBefore", message: "must be a time as in RFC 3339, or null" }]);
    return {
      shard,
      needs: { clusters: [{ tenant, id: clusterId }], activeJobs: true },
      decide: (work) => {
        const cluster = work.cluster(tenant, clusterId);
        if (cluster === undefined || cluster.deleted)
          throw new Problem("not_found", `There is no cluster ${clusterId}.`);
        refuseSecondJob(work, tenant, clusterId);
        const { faults } = readNodes(cluster.spec);
        if (faults.length > 0)
          throw new Problem("invalid_request", "The cluster's nodes can't be read.", { errors: faults });
        // Also what is scheduled is refused now if it could not start now.
        if (cluster.status !== "pending") nextClusterStatus(cluster.status, `start ${kindOf(type)}`);
        const later = due > work.now;
        const job: JobState = {
          id: jobIdOf(work.shard, work.token(16)),
          shard: work.shard,
          tenant,
          clusterId,
          type,
          input,
          status: later ? "queued" : "running",
          attempt: 1,
          epoch: work.epoch,
          stage: null,
          stages: operation.stages.map((stage) => stage.name),
          checkpoint: null,
          startedIn: work.datacenter,
          runsIn: work.datacenter,
          notBefore: due === 0 ? null : timeOf(due),
          createdAt: timeOf(work.now),
          finishedAt: null,
          error: null,
        };
        if (later) {
          work.record({ type: "job.change", job });
          work.afterCommit(() => this.#context.events.jobChanged(jobView(job), job.tenant));
          return { status: 202, body: jobView(job) };
        }
        const run = new JobRun(this.#context, work, job);
        run.start("start");
        return { status: 202, body: jobView(run.job) };
      },
    };
  }

  /** A scheduled job whose time has come. Does nothing when it isn't due. */
  startDue(jobId: string): Operation {
    return this.#internal(jobId, (work) => {
      const run = JobRun.of(this.#context, work, jobId, null);
      const { job } = run;
      if (job.status !== "queued" || (job.notBefore !== null && Date.parse(job.notBefore) > work.now)) return done(run);
      try {
        run.start("due");
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        run.end("failed", `it could not start when it was due: ${error.message}`);
      }
      return done(run);
    });
  }

  /** A cluster whose time is over gets its delete; a job that only waits for its own time gives way to it. */
  startExpiry(tenant: string, clusterId: string, shard: ShardId): Operation {
    const start = this.start({ tenant, clusterId, shard, type: "delete", input: {}, notBefore: null });
    return {
      ...start,
      decide: (work) => {
        const cluster = work.cluster(tenant, clusterId);
        const over = cluster?.expiresAt != null && Date.parse(cluster.expiresAt) <= work.now;
        if (cluster === undefined || cluster.deleted || cluster.status === "terminated" || !over)
          return { status: 204, body: null };
        const waiting = work.activeJob(tenant, clusterId);
        if (waiting?.status === "queued")
          new JobRun(this.#context, work, bare(waiting)).end("cancelled", "its cluster expired");
        return start.decide(work);
      },
    };
  }

  /** 200 with the job. @throws (in `decide`) Problem not_found, invalid_transition. */
  cancel(tenant: string, jobId: string): Operation {
    return this.#user(tenant, jobId, (run) => run.end("cancelled", null));
  }

  /** 202 with the job in its next attempt. @throws (in `decide`) Problem not_found, invalid_transition, job_in_progress. */
  retry(tenant: string, jobId: string): Operation {
    return this.#user(tenant, jobId, (run, work) => {
      const cluster = work.cluster(run.job.tenant, run.job.clusterId);
      if (cluster === undefined || cluster.deleted)
        throw new Problem("not_found", `There is no cluster ${run.job.clusterId} any more.`);
      if (run.job.status === "failed" || run.job.status === "cancelled") {
        refuseSecondJob(work, tenant, run.job.clusterId);
        if (cluster.status === "pending")
          throw new Problem("job_in_progress", "Another job of this cluster is running.");
      }
      run.nextAttempt("retry");
    });
  }

  /** 200 with the job; tasks that are taken go on. @throws (in `decide`) Problem not_found, invalid_transition. */
  pause(tenant: string, jobId: string): Operation {
    return this.#user(tenant, jobId, (run) => run.change("pause"));
  }

  /** 200 with the job. @throws (in `decide`) Problem not_found, invalid_transition. */
  resume(tenant: string, jobId: string): Operation {
    return this.#user(tenant, jobId, (run) => {
      if (run.void) return run.nextAttempt("resume");
      run.change("resume");
      run.offerWaiting();
      run.settle();
    });
  }

  /** After a takeover: the next attempt of a running job whose attempt is an earlier owner's. Else nothing happens. */
  restart(jobId: string): Operation {
    return {
      shard: shardOfJob(jobId),
      // There may be thousands: nothing of the void attempt is looked at.
      needs: { jobs: [jobId] },
      decide: (work) => {
        const run = JobRun.of(this.#context, work, jobId, null);
        if (run.job.status === "running" && isVoid(run.job, work)) run.nextAttempt("restart");
        return done(run);
      },
    };
  }

  #user(tenant: string, jobId: string, action: (run: JobRun, work: Work) => void): Operation {
    return this.#internal(jobId, (work) => {
      const run = JobRun.of(this.#context, work, jobId, tenant);
      const { attempt } = run.job;
      action(run, work);
      return { status: run.job.attempt > attempt ? 202 : 200, body: jobView(run.job) };
    });
  }

  #internal(jobId: string, decide: (work: Work) => Outcome): Operation {
    return { shard: shardOfJob(jobId), needs: { jobs: [jobId], activeJobs: true, tasks: true }, decide };
  }
}

/** @throws Problem not_found for what is no job id. */
export function shardOfJob(jobId: string): ShardId {
  const shard = parseJobId(jobId);
  if (shard === undefined) throw new Problem("not_found", `There is no job ${jobId.slice(0, 128)}.`);
  return shard;
}

const done = (run: JobRun): Outcome => ({ status: 200, body: jobView(run.job) });

function refuseSecondJob(work: Work, tenant: string, clusterId: string): void {
  const active = work.activeJob(tenant, clusterId);
  if (active === undefined || !unfinished.includes(active.status)) return;
  throw new Problem("job_in_progress", `Job ${active.id} (${active.type}) of this cluster is ${active.status}.`);
}

function invalid(errors: readonly FieldError[]): Problem {
  return new Problem("invalid_request", undefined, { errors });
}
