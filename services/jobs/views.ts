import type { ClusterRow, JobRow, JsonObject, TaskRow, WorkerRow } from "../../replication/entities.js";
import { fenceOf, tokenOf } from "./ids.js";
import { readNodes, type Results } from "./plan.js";

export type JobState = Omit<JobRow, "changedEpoch" | "changedPosition">;
export type ClusterState = Omit<ClusterRow, "changedEpoch" | "changedPosition">;
export type WorkerState = Omit<WorkerRow, "changedEpoch" | "changedPosition">;

/** A job, as the API shows it. */
export function jobView(job: JobState): JsonObject {
  return {
    id: job.id,
    clusterId: job.clusterId,
    type: job.type,
    input: job.input,
    status: job.status,
    attempt: job.attempt,
    epoch: job.epoch,
    stage: job.stage,
    stages: job.stages,
    startedIn: job.startedIn,
    runsIn: job.runsIn,
    notBefore: job.notBefore,
    createdAt: job.createdAt,
    finishedAt: job.finishedAt,
    error: job.error,
  };
}

/** A task as its worker gets it. */
export interface TakenTask {
  readonly id: string;
  readonly jobId: string;
  readonly clusterId: string;
  readonly name: string;
  readonly node: string | null;
  readonly stage: string;
  readonly attempt: number;
  readonly token: string;
  readonly input: JsonObject;
  readonly leaseMs: number;
}

/** `input` of a taken task: what it is about, and what earlier stages gave. */
export function takenTask(
  task: TaskRow,
  job: JobState,
  cluster: ClusterState,
  results: Results,
  leaseMs: number,
): TakenTask {
  const node =
    task.node === null
      ? null
      : (readNodes(cluster.spec).nodes?.find((each) => each.name === task.node) ?? { name: task.node });
  return {
    id: task.id,
    jobId: job.id,
    clusterId: job.clusterId,
    name: task.name,
    node: task.node,
    stage: task.stage,
    attempt: job.attempt,
    token: tokenOf(job),
    leaseMs,
    input: {
      operation: job.type,
      cluster: { id: cluster.id, name: cluster.name, labels: cluster.labels, spec: cluster.spec },
      node,
      ...(task.service === null ? {} : { service: task.service }),
      job: job.input,
      results,
      try: task.tries,
      fence: fenceOf(job),
    },
  };
}

/** A task, as the list of a job's tasks shows it. */
export function taskView(task: TaskRow): JsonObject {
  return {
    id: task.id,
    jobId: task.jobId,
    clusterId: task.clusterId,
    name: task.name,
    node: task.node,
    service: task.service,
    stage: task.stage,
    attempt: task.attempt,
    status: task.status,
    tries: task.tries,
    workerId: task.workerId,
    leaseUntil: task.leaseUntil,
    deadline: task.deadline,
    notBefore: task.notBefore,
    result: task.result,
    stdout: task.stdout,
    stderr: task.stderr,
    finishedAt: task.finishedAt,
  };
}

/** A worker's registration, as the API shows it. */
export function workerView(worker: WorkerState): JsonObject {
  return {
    id: worker.id,
    shard: worker.shard,
    capacity: worker.capacity,
    labels: worker.labels,
    registeredAt: worker.registeredAt,
  };
}
