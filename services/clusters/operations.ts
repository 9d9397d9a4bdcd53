import { Problem } from "../../infra/errors.js";
import type { ClusterRow, JsonObject } from "../../replication/entities.js";
import type { Operation, Outcome } from "../../replication/work.js";
import type { ShardId, SiteName } from "../../shards/ids.js";
import type { ClusterFields, ClusterPatch, Condition } from "../api.js";

type ClusterState = Omit<ClusterRow, "changedEpoch" | "changedPosition">;

/** A cluster, as the API shows it; `owner` is today's. */
export function clusterView(row: ClusterState, owner: SiteName | null): JsonObject {
  return {
    id: row.id,
    shard: row.shard,
    owner,
    status: row.status,
    name: row.name,
    spec: row.spec,
    state: row.state,
    labels: row.labels,
    expiresAt: row.expiresAt,
    version: row.version,
    createdAt: row.createdAt,
    updatedAt: row.updatedAt,
  };
}

interface Target {
  readonly tenant: string;
  readonly id: string;
  readonly shard: ShardId;
}

/** 201 with the cluster. @throws (in `decide`) Problem already_exists. */
export function createCluster(target: Target, fields: ClusterFields): Operation {
  return {
    shard: target.shard,
    needs: { clusters: [target] },
    decide: (work) => {
      const known = work.cluster(target.tenant, target.id);
      if (known !== undefined && !known.deleted)
        throw new Problem("already_exists", `There is a cluster ${target.id} already.`);
      const row = fresh(target, fields, work.now);
      work.record({ type: "cluster.put", cluster: row });
      return answer(201, row, work.datacenter);
    },
  };
}

/** 201 or 200 with the cluster. @throws (in `decide`) Problem version_mismatch. */
export function putCluster(target: Target, fields: ClusterFields, condition: Condition): Operation {
  return {
    shard: target.shard,
    needs: { clusters: [target] },
    decide: (work) => {
      const found = work.cluster(target.tenant, target.id);
      const known = found?.deleted === true ? undefined : found;
      check(known, condition);
      if (known === undefined) {
        const row = fresh(target, fields, work.now);
        work.record({ type: "cluster.put", cluster: row });
        return answer(201, row, work.datacenter);
      }
      const row: ClusterState = {
        ...unplaced(known),
        ...given(fields),
        version: known.version + 1,
        updatedAt: new Date(work.now).toISOString(),
      };
      work.record({ type: "cluster.put", cluster: row });
      return answer(200, row, work.datacenter);
    },
  };
}

/** 200 with the cluster. @throws (in `decide`) Problem not_found, version_mismatch. */
export function patchCluster(target: Target, patch: ClusterPatch, condition: Condition): Operation {
  return {
    shard: target.shard,
    needs: { clusters: [target] },
    decide: (work) => {
      const known = work.cluster(target.tenant, target.id);
      if (known === undefined || known.deleted) throw new Problem("not_found", `There is no cluster ${target.id}.`);
      check(known, condition);
      const { name, spec, state, labels, expiresAt } = known;
      const merged = mergePatch({ name, spec, state, labels, expiresAt }, patch) as Partial<ClusterFields>;
      const row: ClusterState = {
        ...unplaced(known),
        ...given({ name, spec: {}, ...merged }),
        version: known.version + 1,
        updatedAt: new Date(work.now).toISOString(),
      };
      work.record({ type: "cluster.put", cluster: row });
      return answer(200, row, work.datacenter);
    },
  };
}

/** RFC 7396. */
function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isObject(patch)) return patch;
  const merged: Record<string, unknown> = isObject(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch))
    if (value === null) delete merged[name];
    else merged[name] = mergePatch(merged[name], value);
  return merged;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** 204; a tombstone stays, so that a late record can't revive the row. @throws (in `decide`) Problem not_found, version_mismatch, job_in_progress. */
export function deleteCluster(target: Target, condition: Condition): Operation {
  return {
    shard: target.shard,
    needs: { clusters: [target], activeJobs: true },
    decide: (work) => {
      const known = work.cluster(target.tenant, target.id);
      if (known === undefined || known.deleted) throw new Problem("not_found", `There is no cluster ${target.id}.`);
      check(known, condition);
      const job = work.activeJob(target.tenant, target.id);
      if (job !== undefined) throw new Problem("job_in_progress", `Job ${job.id} of this cluster is not finished.`);
      const row: ClusterState = {
        ...unplaced(known),
        spec: {},
        state: {},
        labels: {},
        expiresAt: null,
        version: known.version + 1,
        updatedAt: new Date(work.now).toISOString(),
        deleted: true,
      };
      work.record({ type: "cluster.delete", cluster: row });
      return { status: 204, body: null };
    },
  };
}

function check(known: ClusterRow | undefined, condition: Condition): void {
  if (condition.absent === true && known !== undefined) throw new Problem("version_mismatch", "The cluster exists.");
  if (condition.version !== undefined && known?.version !== condition.version)
    throw new Problem(
      "version_mismatch",
      known === undefined ? "The cluster does not exist." : `The version is ${known.version}.`,
    );
}

function given(fields: ClusterFields): Pick<ClusterState, "name" | "spec" | "state" | "labels" | "expiresAt"> {
  return {
    name: fields.name,
    spec: fields.spec,
    state: fields.state ?? {},
    labels: fields.labels ?? {},
    expiresAt: fields.expiresAt == null ? null : new Date(fields.expiresAt).toISOString(),
  };
}

function fresh(target: Target, fields: ClusterFields, now: number): ClusterState {
  const at = new Date(now).toISOString();
  return { ...target, status: "active", ...given(fields), version: 1, createdAt: at, updatedAt: at, deleted: false };
}

function unplaced(row: ClusterRow): ClusterState {
  const { changedEpoch: _epoch, changedPosition: _position, ...rest } = row;
  return rest;
}

const answer = (status: number, row: ClusterState, owner: SiteName): Outcome => ({
  status,
  body: clusterView(row, owner),
  version: row.version,
});
