import type { z } from "zod";
import { idParam, madeId, moves, nothing, putFailover, repair } from "../schemas.js";
import { copied, failover, longOperation, plan } from "../shapes.js";
import { moveKinds, route, type Backend, type MoveKind, type MoveRequest, type Route } from "../types.js";
import { missing } from "./missing.js";

const refusals = ["not_found", "already_moving", "no_majority", "deadline_exceeded", "outcome_unknown"] as const;
const summaries: Readonly<Record<MoveKind, string>> = {
  switchovers: "Move a shard, or all of a datacenter, as planned",
  drains: "Move all shards away from a datacenter",
  failbacks: "Move shards home that a takeover moved",
  rebalances: "Spread shards evenly",
  takeovers: "Own the shards of a dead datacenter elsewhere",
};

/** Long operations that change ownership, and what else only operators do. */
export function moveRoutes({ extensions }: Backend): Route[] {
  return [
    ...moveKinds.flatMap((kind) => kindRoutes(kind, extensions)),
    route({
      method: "PUT",
      path: "/v1/failover",
      summary: "Pause or resume automatic takeovers",
      lane: "admin",
      write: true,
      body: putFailover,
      answers: { 200: failover },
      problems: [...refusals],
      handle: async ({ context, body }) => extensions.setFailover?.(context, body.paused) ?? missing(),
    }),
    route({
      method: "POST",
      path: "/v1/repair",
      summary: "Copy a shard or a cluster again from a sound copy",
      lane: "admin",
      write: true,
      body: repair,
      timeoutMs: () => 600_000,
      answers: { 200: copied },
      problems: [...refusals],
      handle: async ({ context, body }) =>
        extensions.repair?.(context, {
          ...(body.shard === undefined ? undefined : { shard: body.shard }),
          ...(body.clusterId === undefined ? undefined : { clusterId: body.clusterId }),
          ...(body.from === undefined ? undefined : { from: body.from }),
        }) ?? missing(),
    }),
  ];
}

function kindRoutes(kind: MoveKind, extensions: Backend["extensions"]): Route[] {
  const body: z.ZodType = moves[kind];
  return [
    route({
      method: "POST",
      path: `/v1/${kind}`,
      summary: summaries[kind],
      lane: "admin",
      write: true,
      body,
      bodyOptional: kind === "rebalances",
      answers: { 200: plan, 202: longOperation },
      problems: [...(kind === "takeovers" ? ["owner_reachable" as const] : []), ...refusals, "idempotency_key_reused"],
      async handle(call) {
        const request = call.body as MoveRequest;
        const reply = (await extensions.startMove?.(call.context, kind, request)) ?? missing();
        const made = (reply.body as { readonly id?: unknown } | undefined)?.id;
        return reply.status === 202 && typeof made === "string" ? { ...reply, location: `/v1/${kind}/${made}` } : reply;
      },
    }),
    route({
      method: "GET",
      path: `/v1/${kind}/{id}`,
      summary: "How far a long operation is",
      lane: "admin",
      params: idParam(madeId),
      answers: { 200: longOperation },
      problems: ["not_found", "owner_unreachable"],
      handle: async ({ context, path }) => extensions.getMove?.(context, kind, path.id) ?? missing(),
    }),
    route({
      method: "POST",
      path: `/v1/${kind}/{id}/cancel`,
      summary: "Cancel what hasn't moved yet",
      lane: "admin",
      write: true,
      params: idParam(madeId),
      body: nothing,
      bodyOptional: true,
      answers: { 200: longOperation },
      problems: ["invalid_transition", ...refusals],
      handle: async ({ context, path }) => extensions.cancelMove?.(context, kind, path.id) ?? missing(),
    }),
  ];
}
