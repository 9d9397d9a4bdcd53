import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from "node:http";
import { Problem, problems } from "../../infra/errors.js";
import { awayProblem, isAway, isTooLong } from "../../infra/postgres/faults.js";
import type { Answer } from "./types.js";

const jsonType = "application/json; charset=utf-8";

/** Writes head and body at once. `close` ends the connection after it. */
export function sendAnswer(response: ServerResponse, answer: Answer, requestId: string, close: boolean): void {
  const headers: OutgoingHttpHeaders = { "X-Request-Id": requestId, "Hothot-Served-By": answer.servedBy };
  if (answer.owner !== undefined) headers["Hothot-Owner"] = answer.owner;
  if (answer.place !== undefined)
    headers["Hothot-Position"] = `${answer.place.shard}:${answer.place.epoch}:${answer.place.position}`;
  if (answer.lagMs !== undefined) headers["Hothot-Lag-Ms"] = Math.max(0, Math.round(answer.lagMs));
  if (answer.stale === true) headers["Hothot-Stale"] = "true";
  if (answer.version !== undefined) headers["ETag"] = `"${answer.version}"`;
  if (answer.replayed === true) headers["Idempotency-Replayed"] = "true";
  if (answer.location !== undefined) headers["Location"] = answer.location;
  write(
    response,
    answer.status,
    answer.body === undefined ? undefined : JSON.stringify(answer.body),
    jsonType,
    headers,
    close,
  );
}

/**
 * RFC 9457. What isn't a Problem is answered as `internal`, without a word of it; but of the database's absence it is said that it
 * will pass, of a read that it gave up, that it took too long, and of what may have been written before, that nobody knows.
 */
export function sendProblem(response: ServerResponse, error: unknown, requestId: string, close: boolean): void {
  const problem = problemOf(error, response.req.method);
  const headers: OutgoingHttpHeaders = { "X-Request-Id": requestId };
  const retryAfter = problem.retryAfterSeconds ?? (problem.status === 503 || problem.status === 429 ? 1 : undefined);
  if (retryAfter !== undefined) headers["Retry-After"] = Math.max(1, Math.ceil(retryAfter));
  const { owner, servedBy, lagMs, stale } = problem.extras;
  if (owner !== undefined) headers["Hothot-Owner"] = owner;
  if (servedBy !== undefined) headers["Hothot-Served-By"] = servedBy;
  if (lagMs !== undefined) headers["Hothot-Lag-Ms"] = Math.max(0, Math.round(lagMs));
  if (stale === true) headers["Hothot-Stale"] = "true";
  if (problem.code === "unauthorized") headers["WWW-Authenticate"] = "Bearer";
  write(
    response,
    problem.status,
    JSON.stringify(problemBody(problem, requestId)),
    "application/problem+json",
    headers,
    close,
  );
}

function problemOf(error: unknown, method: string | undefined): Problem {
  // Who is outside the group can't route again: the shard's next owner is known in a moment.
  if (error instanceof Problem && error.code === "not_owner")
    return new Problem("shard_moving", error.message, error.extras);
  if (error instanceof Problem) return error;
  if (!isAway(error)) return new Problem("internal");
  const away = awayProblem(error);
  const reads = method === "GET" || method === "HEAD";
  if (reads && isTooLong(error))
    return new Problem("deadline_exceeded", "The database took too long to read it.", { cause: error });
  return reads ? away : new Problem("outcome_unknown", away.message, { cause: error });
}

export function problemBody(problem: Problem, requestId: string): Record<string, unknown> {
  const kind = problems[problem.code];
  return {
    type: `urn:hothot:problem:${problem.code}`,
    title: kind.meaning,
    status: kind.status,
    detail: problem.code === "internal" ? kind.meaning : problem.message,
    code: problem.code,
    retryable: kind.retryable,
    requestId,
    advice: kind.advice,
    ...(problem.owner === undefined ? undefined : { owner: problem.owner }),
    ...(problem.errors === undefined ? undefined : { errors: problem.errors }),
  };
}

/** A whole body of another type than JSON. */
export function sendText(
  response: ServerResponse,
  status: number,
  type: string,
  text: string,
  requestId: string,
): void {
  write(response, status, text, type, { "X-Request-Id": requestId }, false);
}

/** Did the client leave, so that nothing can be answered any more? */
export function isGone(request: IncomingMessage, response: ServerResponse): boolean {
  // Once a request is destroyed, node takes its socket away, whatever the types say.
  const socket = request.socket as IncomingMessage["socket"] | null;
  return response.destroyed || socket === null || socket.destroyed;
}

function write(
  response: ServerResponse,
  status: number,
  body: string | undefined,
  type: string,
  headers: OutgoingHttpHeaders,
  close: boolean,
): void {
  if (body !== undefined) {
    headers["Content-Type"] = type;
    headers["Content-Length"] = Buffer.byteLength(body);
  } else if (status !== 204 && status !== 304) headers["Content-Length"] = 0;
  headers["Cache-Control"] = "no-store";
  headers["X-Content-Type-Options"] = "nosniff";
  if (close) headers["Connection"] = "close";
  response.writeHead(status, headers);
  response.end(body);
}
