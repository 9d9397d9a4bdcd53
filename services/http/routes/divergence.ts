import { divergentQuery, idParam, madeId, nothing } from "../schemas.js";
import { cluster, divergent, listOf } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { writeProblems } from "./clusters.js";
import { missing } from "./missing.js";
import { pageOf } from "./page.js";
import { z } from "zod";

const id = idParam(madeId);
const path = "/v1/divergent-operations";

/** What a former owner committed and never published; at the datacenter that held it. */
export function divergenceRoutes({ datacenter, extensions, here }: Backend): Route[] {
  const settle = (verb: "replay" | "discard", summary: string): Route =>
    route({
      method: "POST",
      path: `${path}/{id}/${verb}`,
      summary,
      lane: "admin",
      write: true,
      params: id,
      body: nothing,
      bodyOptional: true,
      answers: { 200: z.union([divergent, cluster, z.looseObject({})]) },
      problems: ["not_found", "version_mismatch", "invalid_transition", "quota_exceeded", ...writeProblems],
      handle: async (call) =>
        (verb === "replay"
          ? extensions.replayDivergent?.(call.context, call.path.id)
          : extensions.discardDivergent?.(call.context, call.path.id)) ?? missing(),
    });
  return [
    route({
      method: "GET",
      scope: "operate",
      path,
      summary: "Divergent operations that this datacenter holds",
      lane: "admin",
      query: divergentQuery,
      answers: { 200: listOf(divergent) },
      handle: async ({ query }) =>
        here(
          await datacenter.divergent({
            ...pageOf(query),
            ...(query.status === undefined ? undefined : { status: query.status }),
          }),
        ),
    }),
    route({
      method: "GET",
      scope: "operate",
      path: `${path}/{id}`,
      summary: "A divergent operation, what is there now, and the difference (RFC 6902)",
      lane: "admin",
      params: id,
      answers: { 200: divergent },
      problems: ["not_found"],
      handle: async (call) => here(await datacenter.divergentById(call.path.id)),
    }),
    settle("replay", "Write it again, on the version that it saw"),
    settle("discard", "Drop it"),
  ];
}
