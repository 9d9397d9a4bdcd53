import { z } from "zod";
import { sendText } from "../answer.js";
import { readyQuery } from "../schemas.js";
import { ready } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";

export function probeRoutes({ datacenter, here, draining, document }: Backend): Route[] {
  return [
    route({
      method: "GET",
      path: "/livez",
      summary: "This process answers",
      lane: "probe",
      answers: { 200: z.looseObject({ live: z.boolean() }) },
      handle: async () => here({ live: true }),
    }),
    route({
      method: "GET",
      path: "/readyz",
      summary: "This process should get requests; with `lagMs`, only while its copies are not further behind",
      lane: "probe",
      query: readyQuery,
      answers: { 200: ready, 503: ready },
      async handle({ query, response }) {
        const state = datacenter.readiness();
        const limit = query.lagMs;
        let reason = state.ready ? null : (state.reason ?? "not ready");
        if (reason === null && limit !== undefined && state.lagMs > limit)
          reason = `lag of ${Math.round(state.lagMs)} ms is above ${limit} ms`;
        if (draining()) reason = "draining";
        if (reason !== null) response.setHeader("Retry-After", 1);
        return here({ ready: reason === null, reason, lagMs: state.lagMs }, reason === null ? 200 : 503);
      },
    }),
    route({
      method: "GET",
      path: "/metrics",
      summary: "Prometheus metrics",
      lane: "probe",
      answers: { 200: "text/plain" },
      async handle({ response, context }) {
        const { contentType, text } = await datacenter.metrics();
        sendText(response, 200, contentType, text, context.requestId);
        return undefined;
      },
    }),
    route({
      method: "GET",
      path: "/openapi.json",
      summary: "This document",
      lane: "probe",
      answers: { 200: z.looseObject({ openapi: z.string() }) },
      handle: async () => here(document()),
    }),
  ];
}
