import { streamLines } from "../ndjson.js";
import { ndjson } from "../shapes.js";
import { route, type Backend, type HttpLimits, type Route } from "../types.js";

/** A line per shard and copy. A failure after the first line cuts the connection, so that a part is never taken for the whole. */
export function verifyRoute({ datacenter, time }: Backend, limits: HttpLimits): Route {
  return route({
    method: "GET",
    path: "/v1/verify",
    summary: "Compare the copies of every shard",
    lane: "stream",
    scope: "operate",
    answers: { 200: ndjson },
    problems: ["not_found", "deadline_exceeded"],
    async handle({ response, context, signal }) {
      await streamLines(response, context.requestId, datacenter.verify(signal), signal, { time, ...limits });
      return undefined;
    },
  });
}
