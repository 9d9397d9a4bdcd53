import { Problem, type FieldError } from "../../../infra/errors.js";
import type { ClusterFields } from "../../api.js";
import { check } from "../faults.js";
import { parseJson } from "../json.js";
import { streamLines } from "../ndjson.js";
import { bulkCluster } from "../schemas.js";
import { ndjson } from "../shapes.js";
import { route, type Backend, type BulkLine, type BulkRow, type HttpLimits, type Route } from "../types.js";
import { missing } from "./missing.js";

/** NDJSON in, NDJSON out, a line for a line, in order; nothing is held but the line under way. */
export function bulkRoute({ extensions, time }: Backend, limits: HttpLimits, lineLimit: number): Route {
  return route({
    method: "POST",
    path: "/v1/clusters/bulk",
    summary: "Create or replace many clusters",
    lane: "stream",
    write: true,
    streamedBody: ndjson,
    timeoutMs: () => 600_000,
    answers: { 200: ndjson },
    problems: ["not_found", "no_lease", "no_majority"],
    async handle({ request, response, context, signal }) {
      if (extensions.bulk === undefined) return missing();
      // Not destroyed when reading ends early: the refusal still has to be sent over its connection.
      const answers = extensions.bulk(context, rowsOf(request.iterator({ destroyOnReturn: false }), lineLimit), signal);
      const replayed = (first: unknown) =>
        (first as BulkLine | undefined)?.replayed === true ? { "Idempotency-Replayed": "true" } : {};
      await streamLines(response, context.requestId, answers, signal, { time, ...limits }, replayed);
      return undefined;
    },
  });
}

/** The body's lines as rows; empty lines are counted and skipped. @throws Problem payload_too_large for a line beyond `limit` bytes */
export async function* rowsOf(body: AsyncIterable<Buffer>, limit: number): AsyncGenerator<BulkRow> {
  let line = 0;
  let parts: Buffer[] = [];
  let size = 0;
  const rest = (): Buffer => {
    const whole = parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts, size);
    parts = [];
    size = 0;
    return whole;
  };
  for await (const chunk of body) {
    let from = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      parts.push(chunk.subarray(from, end));
      size += end - from;
      from = end + 1;
      line++;
      if (size > limit) throw tooLong(line, limit);
      const row = rowOf(rest(), line);
      if (row !== undefined) yield row;
    }
    if (from < chunk.length) {
      parts.push(chunk.subarray(from));
      size += chunk.length - from;
      if (size > limit) throw tooLong(line + 1, limit);
    }
  }
  if (size > 0) {
    const row = rowOf(rest(), line + 1);
    if (row !== undefined) yield row;
  }
}

function tooLong(line: number, limit: number): Problem {
  return new Problem("payload_too_large", `Line ${line} has more than ${limit} bytes.`);
}

function rowOf(bytes: Buffer, line: number): BulkRow | undefined {
  if (bytes.every((byte) => byte === 0x20 || byte === 0x0d || byte === 0x09)) return undefined;
  const errors: FieldError[] = [];
  try {
    const value = parseJson(bytes);
    const row = check(bulkCluster, value, "body", errors) as ({ id?: string } & ClusterFields) | undefined;
    if (row !== undefined) {
      const { id, ...fields } = row;
      return { line, ...(id === undefined ? {} : { id }), fields };
    }
    const id = (value as { readonly id?: unknown } | null)?.id;
    return typeof id === "string" ? { line, id: id.slice(0, 128), errors } : { line, errors };
  } catch (error) {
    if (!(error instanceof Problem) || error.errors === undefined) throw error;
    return { line, errors: error.errors };
  }
}
