import { pageQuery } from "../schemas.js";
import { audited, lag, listOf, ownershipChange, shard, topology } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { missing } from "./missing.js";
import { pageOf, slice } from "./page.js";

/** Who owns what, since when and why; lag; who did what. */
export function viewRoutes({ datacenter, extensions, here }: Backend): Route[] {
  return [
    route({
      method: "GET",
      path: "/v1/topology",
      summary: "Sites, their state, and what they own",
      lane: "admin",
      answers: { 200: topology },
      handle: async () => here(await datacenter.topology()),
    }),
    route({
      method: "GET",
      path: "/v1/shards",
      summary: "Owner, epoch and state of each shard",
      lane: "admin",
      query: pageQuery,
      answers: { 200: listOf(shard) },
      handle: async ({ query }) => here(slice(await datacenter.shards(), pageOf(query))),
    }),
    route({
      method: "GET",
      path: "/v1/lag",
      summary: "How far this datacenter's copies are behind, by shard",
      lane: "admin",
      query: pageQuery,
      answers: { 200: listOf(lag) },
      handle: async ({ query }) => here(slice(await datacenter.lag(), pageOf(query))),
    }),
    route({
      method: "GET",
      path: "/v1/history",
      summary: "Ownership changes, oldest first",
      lane: "admin",
      query: pageQuery,
      answers: { 200: listOf(ownershipChange) },
      handle: async ({ query }) => here(await datacenter.history(pageOf(query))),
    }),
    route({
      method: "GET",
      path: "/v1/audit",
      summary: "What operators did, oldest first",
      lane: "admin",
      scope: "operate",
      query: pageQuery,
      answers: { 200: listOf(audited) },
      problems: ["not_found"],
      handle: async ({ query }) =>
        extensions.audit === undefined ? missing() : here(await extensions.audit(pageOf(query))),
    }),
  ];
}
