import type { ClusterRow, JobRow, TaskRow } from "../../replication/entities.js";
import type { Work } from "../../replication/work.js";
import type { OfferedTask } from "./job-events.js";
import type { Results } from "./plan.js";

/** The attempt began before this datacenter's present, unbroken ownership of the shard. */
export const isVoid = (job: Pick<JobRow, "epoch">, work: Pick<Work, "tenure">): boolean => job.epoch < work.tenure;

export const timeOf = (ms: number): string => new Date(ms).toISOString();

export function offeredTask(
  task: TaskRow,
  job: Pick<JobRow, "createdAt">,
  labels: Readonly<Record<string, string>>,
): OfferedTask {
  const { id, jobId, shard, tenant, clusterId, name, notBefore } = task;
  return {
    id,
    jobId,
    shard,
    tenant,
    clusterId,
    name,
    labels,
    notBefore: notBefore === null ? 0 : Date.parse(notBefore),
    jobSince: Date.parse(job.createdAt),
  };
}

/** A record gets its own place. */
export function bare<T extends { readonly changedEpoch: unknown; readonly changedPosition: unknown }>(
  row: T,
): Omit<T, "changedEpoch" | "changedPosition"> {
  const { changedEpoch: _epoch, changedPosition: _position, ...rest } = row;
  return rest;
}

/** A cluster that is pending without a job (its job was set aside) counts as inconsistent. */
export const restingStatus = (cluster: ClusterRow): ClusterRow["status"] =>
  cluster.status === "pending" ? "inconsistent" : cluster.status;

/** What operations have learnt of the cluster's nodes so far: `state.nodes`, by name. */
export function nodesOf(cluster: ClusterRow): Results {
  const nodes = cluster.state["nodes"];
  if (typeof nodes !== "object" || nodes === null || Array.isArray(nodes)) return {};
  return Object.fromEntries(
    Object.entries(nodes).filter(([, value]) => typeof value === "object" && value !== null && !Array.isArray(value)),
  );
}

/** After a delete there are none. */
export function withoutNodes(state: ClusterRow["state"]): ClusterRow["state"] {
  const { nodes: _nodes, ...rest } = state;
  return rest;
}
