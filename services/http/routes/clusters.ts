import type { ClusterFields, ClusterPatch, ClusterQuery } from "../../api.js";
import { clusterId, clusterQuery, createCluster, idParam, patchCluster, putCluster } from "../schemas.js";
import { cluster, listOf } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { pageOf } from "./page.js";

const refusals = [
  "no_lease",
  "no_majority",
  "owner_unreachable",
  "shard_moving",
  "unpublished_limit",
  "deadline_exceeded",
  // Any request may wait for a position (Hothot-Min-Position).
  "position_lost",
] as const;
/** What any write can meet. */
export const writeProblems = [...refusals, "outcome_unknown", "idempotency_key_reused"] as const;
const id = idParam(clusterId);

/** POST, PUT, GET and DELETE of clusters. PUT comes first: the router tries routes in order. */
export function clusterRoutes({ datacenter }: Backend): Route[] {
  return [
    route({
      method: "PUT",
      path: "/v1/clusters/{id}",
      summary: "Create or replace a cluster",
      lane: "work",
      write: true,
      conditional: true,
      params: id,
      body: putCluster,
      answers: { 200: cluster, 201: cluster },
      problems: ["version_mismatch", "job_in_progress", ...writeProblems],
      handle: ({ context, path, body, condition }) =>
        datacenter.execute(context, { type: "cluster.put", id: path.id, fields: body as ClusterFields, condition }),
    }),
    route({
      method: "GET",
      path: "/v1/clusters/{id}",
      summary: "A cluster, as this datacenter or its owner has it",
      lane: "work",
      params: id,
      answers: { 200: cluster },
      problems: ["not_found", ...refusals],
      handle: ({ context, path }) => datacenter.getCluster(context, path.id),
    }),
    route({
      method: "PATCH",
      path: "/v1/clusters/{id}",
      summary: "Change some fields of a cluster (JSON merge patch, RFC 7396)",
      lane: "work",
      write: true,
      conditional: true,
      params: id,
      body: patchCluster,
      bodyTypes: ["application/merge-patch+json", "application/json"],
      answers: { 200: cluster },
      problems: ["not_found", "version_mismatch", ...writeProblems],
      handle: ({ context, path, body, condition }) =>
        datacenter.execute(context, { type: "cluster.patch", id: path.id, patch: body as ClusterPatch, condition }),
    }),
    route({
      method: "DELETE",
      path: "/v1/clusters/{id}",
      summary: "Remove a cluster, without a job",
      lane: "work",
      write: true,
      conditional: true,
      params: id,
      answers: { 204: null },
      problems: ["not_found", "version_mismatch", "job_in_progress", ...writeProblems],
      handle: ({ context, path, condition }) =>
        datacenter.execute(context, { type: "cluster.delete", id: path.id, condition }),
    }),
    route({
      method: "POST",
      path: "/v1/clusters",
      summary: "Create a cluster; without an id, one of a shard owned here is picked",
      lane: "work",
      write: true,
      body: createCluster,
      answers: { 201: cluster },
      problems: ["already_exists", ...writeProblems],
      async handle({ context, body }) {
        const { id: wanted, ...fields } = body;
        const reply = await datacenter.execute(context, {
          type: "cluster.create",
          ...(wanted === undefined ? undefined : { id: wanted }),
          fields: fields as ClusterFields,
        });
        const made = (reply.body as { readonly id?: unknown } | undefined)?.id;
        return reply.status === 201 && typeof made === "string"
          ? { ...reply, location: `/v1/clusters/${made}` }
          : reply;
      },
    }),
    route({
      method: "GET",
      path: "/v1/clusters",
      summary: "Clusters in the order of their ids, as this datacenter has them",
      lane: "work",
      query: clusterQuery,
      answers: { 200: listOf(cluster) },
      problems: ["deadline_exceeded", "position_lost"],
      handle({ context, query }) {
        const { status, owner, shard, label } = query;
        const filter: ClusterQuery = {
          ...pageOf(query),
          ...(status === undefined ? undefined : { status }),
          ...(owner === undefined ? undefined : { owner }),
          ...(shard === undefined ? undefined : { shard }),
          ...(label === undefined ? undefined : { label: splitLabel(label) }),
        };
        return datacenter.listClusters(context, filter);
      },
    }),
  ];
}

/** `k:v`, split at the first colon. */
function splitLabel(label: string): { name: string; value: string } {
  const at = label.indexOf(":");
  return { name: label.slice(0, at), value: label.slice(at + 1) };
}
