import { addDatacenter, datacenterParam } from "../schemas.js";
import { members } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { missing } from "./missing.js";

/** Datacenters that come and go, one at a time. */
export function memberRoutes({ extensions }: Backend): Route[] {
  return [
    route({
      method: "POST",
      path: "/v1/datacenters",
      summary: "Make a datacenter a member; its NATS server has joined, its process starts afterwards",
      lane: "admin",
      scope: "admin",
      body: addDatacenter,
      timeoutMs: () => 30_000,
      answers: { 200: members },
      problems: ["no_majority", "deadline_exceeded"],
      handle: async ({ context, body }) => extensions.addDatacenter?.(context, body.name) ?? missing(),
    }),
    route({
      method: "DELETE",
      path: "/v1/datacenters/{name}",
      summary: "Let a drained datacenter leave; answers when nothing of the log is kept there",
      lane: "admin",
      scope: "admin",
      params: datacenterParam,
      timeoutMs: () => 30_000,
      answers: { 200: members },
      problems: ["not_found", "invalid_transition", "no_majority", "deadline_exceeded"],
      handle: async ({ context, path }) => extensions.removeDatacenter?.(context, path.name) ?? missing(),
    }),
  ];
}
