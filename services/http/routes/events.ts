import type { HttpLimits } from "../types.js";
import { eventStream } from "../shapes.js";
import { route, type Backend, type Route } from "../types.js";

/**
 * A client that is further behind than `limits.eventBytes`, or takes nothing for `limits.stallMs`, is cut off: it reconnects, and reads
 * the present state. So is one whose token ends: it can't come back.
 */
export function eventsRoute({ datacenter, time }: Backend, limits: HttpLimits): Route {
  return route({
    method: "GET",
    path: "/v1/events",
    summary: "Server-sent events: ownership, health, job",
    lane: "events",
    answers: { 200: eventStream },
    async handle({ response, context, allowed, signal }) {
      response.writeHead(200, {
        "Content-Type": eventStream,
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
        "X-Request-Id": context.requestId,
      });
      const send = (text: string): void => {
        if (response.destroyed || response.writableEnded) return;
        response.write(text);
        if (response.writableLength > limits.eventBytes) response.destroy();
      };
      send("retry: 2000\n\n");
      const leave = datacenter.onEvent((event) => {
        if (event.tenant === undefined || event.tenant === context.caller.tenant)
          send(`event: ${event.type}\ndata: ${JSON.stringify(event.data)}\n\n`);
      });
      try {
        let beatAt = time.monotonic() + limits.eventHeartbeatMs;
        let sentAt = time.monotonic();
        while (!signal.aborted) {
          await time.sleep(Math.min(limits.eventCheckMs, limits.eventHeartbeatMs), signal);
          if (signal.aborted || !(await allowed())) break;
          if (response.writableLength === 0) sentAt = time.monotonic();
          else if (time.monotonic() - sentAt > limits.stallMs) return void response.destroy();
          if (time.monotonic() < beatAt) continue;
          send(": still here\n\n");
          beatAt = time.monotonic() + limits.eventHeartbeatMs;
        }
      } finally {
        leave();
        response.end();
      }
      return undefined;
    },
  });
}
