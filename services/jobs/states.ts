import { Problem, type ProblemCode } from "../../infra/errors.js";
import type { ClusterStatus, JobStatus } from "../../replication/entities.js";

/** A row of a transition table. `refusal` instead of a next state: the event is answered with this problem. */
export interface Transition<State extends string, Event extends string> {
  readonly current: State | "none";
  readonly event: Event;
  readonly next: State | null;
  readonly refusal?: ProblemCode;
  readonly why: string;
}

export type JobEvent =
  "start" | "schedule" | "due" | "pause" | "resume" | "cancel" | "complete" | "fail" | "restart" | "retry";
export type JobTransition = Transition<JobStatus, JobEvent>;

/** Every change of a job's status. What is not here is refused as `invalid_transition`. */
export const jobTransitions: readonly JobTransition[] = [
  { current: "none", event: "start", next: "running", why: "an operation was started" },
  { current: "none", event: "schedule", next: "queued", why: "an operation was started whose notBefore lies ahead" },
  { current: "queued", event: "due", next: "running", why: "its notBefore has come" },
  { current: "queued", event: "cancel", next: "cancelled", why: "cancelled before it began" },
  { current: "queued", event: "fail", next: "failed", why: "its cluster could no longer start it when it was due" },
  { current: "running", event: "pause", next: "paused", why: "no further task is offered" },
  { current: "running", event: "cancel", next: "cancelled", why: "cancelled" },
  { current: "running", event: "complete", next: "complete", why: "every task of the last stage is ok" },
  { current: "running", event: "fail", next: "failed", why: "a task has used up its tries" },
  {
    current: "running",
    event: "restart",
    next: "running",
    why: "its attempt began before this datacenter owned the shard",
  },
  { current: "paused", event: "resume", next: "running", why: "resumed" },
  { current: "paused", event: "cancel", next: "cancelled", why: "cancelled while paused" },
  { current: "failed", event: "retry", next: "running", why: "tried again from its checkpoint" },
  { current: "cancelled", event: "retry", next: "running", why: "tried again from its checkpoint" },
];

/** @throws Problem invalid_transition. */
export function nextJobStatus(current: JobStatus | "none", event: JobEvent): JobStatus {
  const row = jobTransitions.find((candidate) => candidate.current === current && candidate.event === event);
  if (row?.next == null) throw new Problem("invalid_transition", `A job that is ${current} can't ${event}.`);
  return row.next;
}

/** What an operation is to the cluster's status. Types that a catalog adds are changes. */
export type OperationKind = "create" | "delete" | "change";
export const kindOf = (type: string): OperationKind => (type === "create" || type === "delete" ? type : "change");

export type ClusterEvent =
  "put" | `start ${OperationKind}` | `complete ${OperationKind}` | `fail ${OperationKind}` | `cancel ${OperationKind}`;
export type ClusterTransition = Transition<ClusterStatus, ClusterEvent>;

const resting = ["active", "incomplete", "inconsistent"] as const;

/** Every change of a cluster's status. */
export const clusterTransitions: readonly ClusterTransition[] = [
  { current: "none", event: "put", next: "active", why: "a new cluster without a job" },
  ...resting.flatMap((current): ClusterTransition[] => [
    { current, event: "start create", next: "pending", why: "a create began" },
    { current, event: "start change", next: "pending", why: "an operation began" },
    { current, event: "start delete", next: "pending", why: "a delete began" },
  ]),
  { current: "terminated", event: "start create", next: "pending", why: "a create began" },
  {
    current: "terminated",
    event: "start change",
    next: null,
    refusal: "invalid_transition",
    why: "a terminated cluster knows only create and delete",
  },
  { current: "terminated", event: "start delete", next: "pending", why: "a delete began" },
  { current: "pending", event: "start create", next: null, refusal: "job_in_progress", why: "one job at a time" },
  { current: "pending", event: "start change", next: null, refusal: "job_in_progress", why: "one job at a time" },
  { current: "pending", event: "start delete", next: null, refusal: "job_in_progress", why: "one job at a time" },
  { current: "pending", event: "complete create", next: "active", why: "the create is complete" },
  { current: "pending", event: "complete change", next: "active", why: "the operation is complete" },
  { current: "pending", event: "complete delete", next: "terminated", why: "the delete is complete" },
  { current: "pending", event: "fail create", next: "incomplete", why: "the create failed" },
  { current: "pending", event: "fail change", next: "inconsistent", why: "the operation failed" },
  { current: "pending", event: "fail delete", next: "incomplete", why: "the delete failed" },
  { current: "pending", event: "cancel create", next: "incomplete", why: "the create was cancelled" },
  { current: "pending", event: "cancel change", next: "inconsistent", why: "the operation was cancelled" },
  { current: "pending", event: "cancel delete", next: "incomplete", why: "the delete was cancelled" },
];

/** @throws Problem invalid_transition or job_in_progress, as the table says. */
export function nextClusterStatus(current: ClusterStatus | "none", event: ClusterEvent): ClusterStatus {
  const row = clusterTransitions.find((candidate) => candidate.current === current && candidate.event === event);
  if (row?.next == null) {
    throw new Problem(
      row?.refusal ?? "invalid_transition",
      `${event} of a cluster that is ${current}: ${row?.why ?? "not in the table"}.`,
    );
  }
  return row.next;
}
