import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { ndjson } from "./shapes.js";

/**
 * Writes each value as a line, at the client's pace. A failure before the first line is the caller's to answer;
 * after it, and when `signal` aborts, the connection is cut, so that a part is never taken for the whole.
 */
export async function streamLines(
  response: ServerResponse,
  requestId: string,
  values: AsyncIterable<unknown>,
  signal: AbortSignal,
): Promise<void> {
  const lines = values[Symbol.asyncIterator]();
  try {
    let next = await lines.next();
    response.writeHead(200, { "Content-Type": ndjson, "Cache-Control": "no-store", "X-Request-Id": requestId });
    while (next.done !== true) {
      if (signal.aborted) return void response.destroy();
      if (!response.write(`${JSON.stringify(next.value)}\n`)) await drained(response, signal);
      next = await lines.next();
    }
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
