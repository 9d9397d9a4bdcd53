import { idParam, madeId, newToken, pageQuery, putTenant, tenantParam } from "../schemas.js";
import { listOf, madeToken, tenant, token } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";
import { writeProblems } from "./clusters.js";
import { missing } from "./missing.js";
import { pageOf } from "./page.js";

/** Tokens and tenants: for administrators. A token is told once, so its making takes no idempotency key. */
export function accessRoutes({ extensions, here }: Backend): Route[] {
  return [
    route({
      method: "POST",
      path: "/v1/tokens",
      summary: "Make an access token; the answer holds it, and nothing else ever will",
      lane: "admin",
      scope: "admin",
      body: newToken,
      answers: { 201: madeToken },
      problems: [...writeProblems],
      handle: async ({ context, body }) => extensions.addToken?.(context, body) ?? missing(),
    }),
    route({
      method: "GET",
      path: "/v1/tokens",
      summary: "Tokens, without their secrets",
      lane: "admin",
      scope: "admin",
      query: pageQuery,
      answers: { 200: listOf(token) },
      handle: async ({ query }) =>
        extensions.listTokens === undefined ? missing() : here(await extensions.listTokens(pageOf(query))),
    }),
    route({
      method: "DELETE",
      path: "/v1/tokens/{id}",
      summary: "End a token",
      lane: "admin",
      scope: "admin",
      params: idParam(madeId),
      answers: { 204: null },
      problems: ["not_found", ...writeProblems],
      handle: async ({ context, path }) => extensions.removeToken?.(context, path.id) ?? missing(),
    }),
    route({
      method: "PUT",
      path: "/v1/tenants/{id}",
      summary: "Limit what a tenant may use (`default`: callers without a tenant)",
      lane: "admin",
      scope: "admin",
      params: tenantParam,
      body: putTenant,
      answers: { 200: tenant },
      problems: [...writeProblems],
      handle: async ({ context, path, body }) => extensions.putTenant?.(context, path.id, body) ?? missing(),
    }),
    route({
      method: "GET",
      path: "/v1/tenants",
      summary: "Tenants with limits",
      lane: "admin",
      scope: "admin",
      query: pageQuery,
      answers: { 200: listOf(tenant) },
      handle: async ({ query }) =>
        extensions.listTenants === undefined ? missing() : here(await extensions.listTenants(pageOf(query))),
    }),
  ];
}
