import type { IncomingMessage, ServerResponse } from "node:http";
import type { Timer } from "../../infra/clock.js";
import { asError, Problem, type FieldError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Span } from "../../infra/tracing.js";
import type { Caller, Condition, RequestContext } from "../api.js";
import { isGone, sendAnswer, sendProblem } from "./answer.js";
import { checkMediaType, ClientGone, hasBody, readBody, type BodyBudget, type BodyShare } from "./body.js";
import { check } from "./faults.js";
import type { Entrance } from "./entrance.js";
import { parseJson, refused } from "./json.js";
import type { Lanes } from "./lanes.js";
import { readQuery } from "./query.js";
import {
  givenRequestId,
  readCondition,
  readContext,
  readTimeout,
  traceparentOf,
  type HeaderRules,
} from "./request-headers.js";
import { isStream, scopeOf, type Answer, type Call, type HttpOptions, type Route } from "./types.js";

/** What all exchanges of a server share. */
export interface Shared {
  readonly options: HttpOptions;
  readonly log: Logger;
  /** `<dc>/<node>` of this process. */
  readonly servedBy: string;
  readonly lanes: Lanes;
  readonly entrance: Entrance;
  readonly bodies: BodyBudget;
  readonly graceMs: number;
  /** Exchanges that wait or stream: aborted when the process drains. */
  readonly abortable: Set<AbortController>;
  readonly draining: () => boolean;
  readonly requestId: () => string;
}

const anonymous: Caller = Object.freeze({ tenant: "", principal: "anonymous" });
/** A client that reads slowly has this long to get the rest of what was written. */
const lingerMs = 2_000;
const never = new AbortController().signal;
const jsonType = "application/json";

/** Serves one request, from its head to its answer and its log line. Never throws. */
export async function exchange(
  shared: Shared,
  route: Route,
  request: IncomingMessage,
  response: ServerResponse,
  params: unknown,
): Promise<void> {
  const { options, lanes } = shared;
  const started = options.time.monotonic();
  const requestId = givenRequestId(request.headers) ?? shared.requestId();
  const counted = route.lane !== "probe";
  const span = counted ? beginSpan(shared, route, request, requestId) : undefined;
  const share = shared.bodies.share();
  let abort: AbortController | undefined;
  let failure: unknown;
  if (counted) lanes.opened();
  // Their heads are written elsewhere.
  if (isStream(route.lane) || route.lane === "probe") response.setHeader("Hothot-Served-By", shared.servedBy);
  try {
    if (counted && shared.draining()) throw new Problem("draining", undefined, { retryAfterSeconds: 1 });
    lanes.admit(route.lane);
    const turn = route.lane === "work" ? shared.entrance.pass() : undefined;
    if (turn !== undefined) await turn;
    const checked = await readCall(shared, share, route, request, params, requestId, started, span?.traceparent);
    if (route.lane === "poll" || isStream(route.lane)) abort = abortOn(shared, response);
    lanes.enter(route.lane);
    try {
      const allowed = (): Promise<boolean> => stillAllowed(shared, route, request);
      const call: Call = { ...checked, request, response, allowed, signal: abort?.signal ?? never };
      const answer = await (isStream(route.lane) ? route.handle(call) : beforeLate(shared, route, call));
      answer?.confirm?.();
      if (answer !== undefined && !isGone(request, response))
        sendAnswer(response, answer, requestId, shared.draining());
    } finally {
      lanes.leave(route.lane);
    }
  } catch (error) {
    failure = error;
    try {
      fail(shared, request, response, error, requestId);
    } catch (second) {
      shared.log.error("a problem could not be answered", { requestId, error: asError(second) });
      response.destroy();
    }
  } finally {
    share.free();
    if (abort !== undefined) shared.abortable.delete(abort);
    if (counted) lanes.answered();
    report(shared, route, request, response, requestId, options.time.monotonic() - started, failure, span);
  }
}

/** Everything that the request says, checked; all faults are told at once. */
async function readCall(
  shared: Shared,
  share: BodyShare,
  route: Route,
  request: IncomingMessage,
  params: unknown,
  requestId: string,
  started: number,
  traceparent: string | undefined,
): Promise<Omit<Call, "request" | "response" | "allowed" | "signal">> {
  const { options } = shared;
  const rules: HeaderRules = { write: route.write === true, conditional: route.conditional === true };
  const faults: FieldError[] = [];
  const admitted = callerOf(shared, route, request);
  const caller = admitted instanceof Promise ? await admitted : admitted;
  const asked = readTimeout(request.headers, faults);
  const bodyDeadline = started + (asked ?? options.config.defaultTimeoutMs);
  const path = route.params === undefined ? undefined : check(route.params, params, "path", faults);
  const query =
    route.query === undefined ? undefined : check(route.query, readQuery(request.url ?? "", faults), "query", faults);
  const condition: Condition = readCondition(request.headers, rules, faults);
  const body = await readJsonBody(shared, share, route, request, bodyDeadline, faults);
  const { defaultTimeoutMs } = options.config;
  const timeoutMs =
    asked ?? (faults.length > 0 ? undefined : route.timeoutMs?.(body, defaultTimeoutMs)) ?? defaultTimeoutMs;
  const context: RequestContext = readContext(
    request.headers,
    rules,
    { requestId, caller, deadline: started + timeoutMs, ...(traceparent === undefined ? undefined : { traceparent }) },
    faults,
  );
  if (faults.length > 0) throw refused(faults);
  return { context, condition, path, query, body };
}

/** Strangers may look at probes. */
function callerOf(
  { options }: Shared,
  route: Route,
  request: IncomingMessage,
  again = false,
): Caller | Promise<Caller> {
  if (options.admit === undefined || route.lane === "probe") return anonymous;
  const { method, path, write } = route;
  return options.admit(request, { scope: scopeOf(route), write: write === true, route: `${method} ${path}`, again });
}

async function stillAllowed(shared: Shared, route: Route, request: IncomingMessage): Promise<boolean> {
  try {
    await callerOf(shared, route, request, true);
    return true;
  } catch (error) {
    return !(error instanceof Problem && (error.code === "unauthorized" || error.code === "forbidden"));
  }
}

async function readJsonBody(
  shared: Shared,
  share: BodyShare,
  route: Route,
  request: IncomingMessage,
  deadline: number,
  faults: FieldError[],
): Promise<unknown> {
  if (route.streamedBody !== undefined) {
    checkMediaType(request, route.streamedBody);
    return undefined;
  }
  if (route.body === undefined) return undefined;
  let value: unknown;
  if (hasBody(request)) {
    const [wanted = jsonType, ...others] = route.bodyTypes ?? [];
    checkMediaType(request, wanted, ...others);
    const { config, time } = shared.options;
    const bytes = await readBody(request, config.bodyLimitBytes, share, time, deadline);
    if (bytes.length > 0) {
      try {
        value = parseJson(bytes);
      } catch (error) {
        if (!(error instanceof Problem) || error.errors === undefined) throw error;
        faults.push(...error.errors);
        return undefined;
      }
    }
  }
  if (value === undefined) {
    if (route.bodyOptional !== true) {
      faults.push({ path: "", message: "is missing; it must be a JSON object" });
      return undefined;
    }
    value = {};
  }
  return check(route.body, value, "body", faults);
}

/**
 * The datacenter keeps deadlines itself. This one is for the case that it doesn't: no request stays open for ever,
 * and a write whose end nobody knows is never called a failure.
 */
async function beforeLate(shared: Shared, route: Route, call: Call): Promise<Answer | undefined> {
  const { time } = shared.options;
  let timer: Timer | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = time.after(Math.max(0, call.context.deadline - time.monotonic()) + shared.graceMs, () => {
      shared.log.error("no answer by the deadline", {
        requestId: call.context.requestId,
        route: route.path,
        method: route.method,
      });
      reject(new Problem(route.method === "GET" || route.lane === "poll" ? "deadline_exceeded" : "outcome_unknown"));
    });
  });
  try {
    return await Promise.race([route.handle(call), late]);
  } finally {
    timer?.cancel();
  }
}

function abortOn(shared: Shared, response: ServerResponse): AbortController {
  const abort = new AbortController();
  response.once("close", () => abort.abort());
  shared.abortable.add(abort);
  if (response.destroyed || shared.draining()) abort.abort();
  return abort;
}

function fail(
  shared: Shared,
  request: IncomingMessage,
  response: ServerResponse,
  error: unknown,
  requestId: string,
): void {
  if (error instanceof ClientGone || isGone(request, response)) return;
  // A head that is out can't be taken back. What was written is sent, and the connection cut before the body's end,
  // so that a part isn't taken for the whole.
  if (response.headersSent) {
    const { socket } = request;
    socket.destroySoon();
    const timer = shared.options.time.after(lingerMs, () => socket.destroy());
    socket.once("close", () => timer.cancel());
    return;
  }
  response.setHeader("Hothot-Served-By", shared.servedBy);
  sendProblem(response, error, requestId, shared.draining() || isLongUnread(request));
}

/** A small body that nobody read is skipped by node; a large or endless one isn't worth a connection. */
function isLongUnread(request: IncomingMessage): boolean {
  if (request.complete || !hasBody(request)) return false;
  return !(Number(request.headers["content-length"]) <= 1_000_000);
}

function beginSpan({ options }: Shared, route: Route, request: IncomingMessage, requestId: string): Span | undefined {
  if (options.tracing === undefined) return undefined;
  const method = request.method ?? route.method;
  return options.tracing.begin(`${method} ${route.path}`.trimEnd(), "server", traceparentOf(request.headers), {
    "http.request.method": method,
    ...(route.path === "" ? undefined : { "http.route": route.path }),
    "hothot.request_id": requestId,
  });
}

const codeOf = (failure: unknown): string => (failure instanceof Problem ? failure.code : "internal");

function report(
  shared: Shared,
  route: Route,
  request: IncomingMessage,
  response: ServerResponse,
  requestId: string,
  ms: number,
  failure: unknown,
  span: Span | undefined,
): void {
  const status = response.headersSent ? response.statusCode : 0;
  const method = request.method ?? route.method;
  span?.end({ "http.response.status_code": status }, status >= 500 ? codeOf(failure) : undefined);
  shared.options.observe?.(method, route.path, status, ms);
  if (failure === undefined && status < 500) {
    shared.log.debug("request", { requestId, method, route: route.path, status, ms });
    return;
  }
  const traceparent = span?.traceparent ?? traceparentOf(request.headers);
  const fields = {
    requestId,
    method,
    route: route.path,
    status,
    ms,
    ...(traceparent === undefined ? {} : { traceparent }),
  };
  if (failure instanceof ClientGone) shared.log.debug("client went away", fields);
  else if (failure !== undefined && !(failure instanceof Problem))
    shared.log.error("request failed", { ...fields, error: asError(failure) });
  else if (status >= 500)
    shared.log.warn("request refused", { ...fields, code: failure instanceof Problem ? failure.code : undefined });
  else shared.log.debug("request", { ...fields, code: failure instanceof Problem ? failure.code : undefined });
}
