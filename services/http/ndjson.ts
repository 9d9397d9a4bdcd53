import { once } from "node:events";
import type { OutgoingHttpHeaders, ServerResponse } from "node:http";
import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import { ndjson } from "./shapes.js";

/**
 * Writes each value as a line, at the client's pace. A failure before the first line is the caller's to answer;
 * after it, when `signal` aborts, and when the client takes nothing for `stallMs`, the connection is cut, so that a part is never
 * taken for the whole.
 * @throws Problem draining when `signal` aborted and there was nothing to write
 */
export async function streamLines(
  response: ServerResponse,
  requestId: string,
  values: AsyncIterable<unknown>,
  signal: AbortSignal,
  pace: { readonly time: Time; readonly stallMs: number },
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
      if (!response.write(`${JSON.stringify(next.value)}\n`)) await drained(response, signal, pace);
      // What can't be sent is of no use to anybody.
      if (response.writableNeedDrain) return void response.destroy();
      next = await lines.next();
    }
    // Its source may have ended because of the signal.
    if (signal.aborted) return void response.destroy();
    response.end();
  } finally {
    await lines.return?.();
  }
}

/** Returns when what was written is sent, when `signal` aborts, and after `stallMs`. */
async function drained(
  response: ServerResponse,
  signal: AbortSignal,
  { time, stallMs }: { readonly time: Time; readonly stallMs: number },
): Promise<void> {
  const over = new AbortController();
  const end = (): void => over.abort();
  const timer = time.after(stallMs, end);
  signal.addEventListener("abort", end, { once: true });
  if (signal.aborted) end();
  try {
    await once(response, "drain", { signal: over.signal });
  } catch (error) {
    if (!over.signal.aborted) throw error;
  } finally {
    timer.cancel();
    signal.removeEventListener("abort", end);
  }
}
