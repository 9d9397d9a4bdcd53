import { once } from "node:events";
import type { OutgoingHttpHeaders, ServerResponse } from "node:http";
import { Problem } from "../../infra/errors.js";
import { ndjson } from "./shapes.js";

/**
 * Writes each value as a line, at the client's pace. A failure before the first line is the caller's to answer;
 * after it, and when `signal` aborts, the connection is cut, so that a part is never taken for the whole.
 * @throws Problem draining when `signal` aborted and there was nothing to write
 */
export async function streamLines(
  response: ServerResponse,
  requestId: string,
  values: AsyncIterable<unknown>,
  signal: AbortSignal,
  /** Further headers, by the first value. */
  headers: (first: unknown) => OutgoingHttpHeaders = () => ({}),
): Promise<void> {
  const lines = values[Symbol.asyncIterator]();
  try {
    let next = await lines.next();
    if (next.done === true && signal.aborted) throw new Problem("draining", undefined, { retryAfterSeconds: 1 });
    response.writeHead(200, {
      "Content-Type": ndjson,
      "Cache-Control": "no-store",
      "X-Request-Id": requestId,
      ...headers(next.value),
    });
    while (next.done !== true) {
      if (signal.aborted) return void response.destroy();
      if (!response.write(`${JSON.stringify(next.value)}\n`)) await drained(response, signal);
      next = await lines.next();
    }
    // Its source may have ended because of the signal.
    if (signal.aborted) return void response.destroy();
    response.end();
  } finally {
    await lines.return?.();
  }
}

async function drained(response: ServerResponse, signal: AbortSignal): Promise<void> {
  try {
    await once(response, "drain", { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
