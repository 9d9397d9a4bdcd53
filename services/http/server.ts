import { createServer, STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { Router } from "express";
import { within } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { JsonObject } from "../../replication/entities.js";
import { workBound } from "../../routing/index.js";
import { problemBody, sendText } from "./answer.js";
import { BodyBudget } from "./body.js";
import { createDashboard } from "./dashboard.js";
import { Entrance } from "./entrance.js";
import { exchange, type Shared } from "./exchange.js";
import { refused } from "./json.js";
import { Lanes } from "./lanes.js";
import { openApiDocument } from "./openapi.js";
import { allRoutes } from "./routes/index.js";
import { isStream, type Backend, type HttpLimits, type HttpOptions, type Route } from "./types.js";

export interface HttpServer {
  readonly name: "http";
  readonly server: Server;
  /** Listens, and gives the port. */
  start(): Promise<number>;
  /** `/readyz` says `draining` from now on; nothing else changes. */
  leave(): void;
  /**
   * `/readyz` says `draining` at once; after `drainNoticeMs` new requests get 503 `draining`, accepted ones are answered, for
   * `drainMs` at most.
   * The port stays open until `stop`.
   */
  drain(): Promise<void>;
  /** Closes the port and every connection. */
  stop(): Promise<void>;
}

const defaults: HttpLimits = {
  lanes: { work: workBound, poll: 2000, stream: 200, events: 200, admin: 200 },
  bodyBytes: 128_000_000,
  eventBytes: 1_000_000,
  eventHeartbeatMs: 15_000,
  stallMs: 60_000,
  eventCheckMs: 1_000,
  graceMs: 1_000,
  connections: 20_000,
};

/**
 * Connections that wait to be accepted; the system may allow fewer. Node's own 511 is too few for many clients that come back at once:
 * those above it try again after 1, 3, 7, 15 s.
 */
export const backlog = 4096;

/** The HTTP face of one process. Express's router without its application, whose middleware costs more than the write behind it. */
export function createHttpServer(options: HttpOptions): HttpServer {
  const { datacenter, config, time } = options;
  const limits: HttpLimits = { ...defaults, ...options.limits };
  const log = options.log.with({ component: "http" });
  const process = options.random.token(8);
  let requests = 0;
  let draining: Promise<void> | undefined;
  let leaving = false;
  let refusing = false;
  let stopping: Promise<void> | undefined;
  let document: JsonObject | undefined;

  const servedBy = `${datacenter.name}/${datacenter.node}`;
  const shared: Shared = {
    options,
    servedBy,
    log,
    lanes: new Lanes(limits.lanes),
    entrance: new Entrance(time, limits.lanes.work),
    bodies: new BodyBudget(limits.bodyBytes),
    graceMs: limits.graceMs,
    abortable: new Set(),
    draining: () => refusing,
    requestId: () => `${process}-${(requests++).toString(36)}`,
  };
  const backend: Backend = {
    datacenter,
    extensions: options.extensions ?? {},
    time,
    here: (body, status = 200) => ({ status, body, servedBy }),
    draining: () => leaving || draining !== undefined,
    document: () => (document ??= openApiDocument(routes)),
  };
  const routes = allRoutes(backend, limits, config.bodyLimitBytes);
  const server = createServer({
    keepAliveTimeout: 65_000,
    headersTimeout: 15_000,
    requestTimeout: 600_000,
    connectionsCheckingInterval: 5_000,
  });
  const serve = listener(shared, routes);
  server.on("request", serve);
  // A client that asks first is told of a too large body before it sends it.
  server.on("checkContinue", (request: IncomingMessage, response: ServerResponse) => {
    if (!(Number(request.headers["content-length"]) > config.bodyLimitBytes)) response.writeContinue();
    serve(request, response);
  });
  // An expectation that nobody knows is no reason to refuse.
  server.on("checkExpectation", serve);
  server.on("clientError", (error, socket) => answerNonsense(shared, error, socket as Socket));
  server.maxConnections = limits.connections;

  const drain = (): Promise<void> =>
    (draining ??= (async () => {
      // Who balances load sees `/readyz` first, and is still served while it sends the last ones.
      const noticeMs = config.drainNoticeMs ?? 0;
      log.info("draining", { open: shared.lanes.open, noticeMs });
      if (noticeMs > 0) await time.sleep(noticeMs);
      refusing = true;
      for (const abort of shared.abortable) abort.abort();
      server.closeIdleConnections();
      const left = await within(
        time,
        config.drainMs,
        shared.lanes.idle().then(() => 0),
        -1,
      );
      if (left !== 0) log.warn("requests were cut off", { open: shared.lanes.open });
    })());

  return {
    name: "http",
    server,
    start: () =>
      new Promise<number>((resolve, reject) => {
        server.once("error", reject);
        server.listen({ port: config.port, host: config.host, backlog }, () => {
          server.off("error", reject);
          server.on("error", (error) => log.error("the server failed", { error }));
          const { port } = server.address() as AddressInfo;
          log.info("listening", { host: config.host, port });
          resolve(port);
        });
      }),
    leave: () => void (leaving = true),
    drain,
    stop: () =>
      (stopping ??= (async () => {
        await drain();
        if (!server.listening) return;
        const closed = new Promise<void>((resolve) => server.close(() => resolve()));
        // What was answered a moment ago is still on its way out.
        await within(time, 200, closed, undefined);
        server.closeAllConnections();
        await closed;
      })()),
  };
}

/** One route for what no row of the table takes: 405 or 404, through the same exchange as everything else. */
function listener(
  shared: Shared,
  routes: readonly Route[],
): (request: IncomingMessage, response: ServerResponse) => void {
  const router = Router({ caseSensitive: true, strict: true });
  const page = createDashboard();
  for (const row of routes) {
    const handler = (request: IncomingMessage & { params?: unknown }, response: ServerResponse): void => {
      const refusesHead = request.method === "HEAD" && isStream(row.lane);
      void exchange(shared, refusesHead ? unrouted(routes, request, response) : row, request, response, request.params);
    };
    const at = row.path.replaceAll(/\{(\w+)\}/g, ":$1");
    if (row.method === "PUT") router.put(at, handler);
    else if (row.method === "POST") router.post(at, handler);
    else if (row.method === "PATCH") router.patch(at, handler);
    else if (row.method === "DELETE") router.delete(at, handler);
    else router.get(at, handler);
  }
  const pageRoute: Route = {
    method: "GET",
    path: "/",
    summary: "Dashboard",
    lane: "probe",
    answers: { 200: "text/html" },
    async handle({ response, context }) {
      sendText(response, 200, "text/html; charset=utf-8", page.html, context.requestId);
      return undefined;
    },
  };
  router.get(
    "/",
    page.secure,
    (request: IncomingMessage, response: ServerResponse) =>
      void exchange(shared, pageRoute, request, response, undefined),
  );

  return (request, response) => {
    // The router would answer it by itself.
    if (request.method === "OPTIONS")
      return void exchange(shared, unrouted(routes, request, response), request, response, undefined);
    // The types of express ask for its own request; its router needs only node's.
    const route = router as unknown as (a: IncomingMessage, b: ServerResponse, done: (error?: unknown) => void) => void;
    route(request, response, (error) => {
      void exchange(
        shared,
        error === undefined || error === null ? unrouted(routes, request, response) : failed(error),
        request,
        response,
        undefined,
      );
    });
  };
}

function unrouted(routes: readonly Route[], request: IncomingMessage, response: ServerResponse): Route {
  const path = (request.url ?? "").split("?", 1)[0] ?? "";
  const matching =
    path === "/" ? ["GET", "HEAD"] : routes.filter((row) => pattern(row.path).test(path)).flatMap(methodsOf);
  const allow = [...new Set(matching)].join(", ");
  return throwing(() => {
    if (allow === "") return new Problem("not_found", "There is no such path.");
    response.setHeader("Allow", allow);
    return new Problem("method_not_allowed", `Allowed here: ${allow}.`);
  });
}

/** The router's own failures: a path that can't be decoded. */
function failed(error: unknown): Route {
  const status = (error as { readonly status?: unknown }).status;
  return throwing(() => (status === 400 ? refused([{ path: "path", message: "can't be decoded" }]) : error));
}

function throwing(problem: () => unknown): Route {
  return {
    method: "GET",
    path: "",
    summary: "",
    lane: "probe",
    answers: {},
    handle: () => {
      throw problem();
    },
  };
}

/** A stream has no head without its body. */
function methodsOf({ method, lane }: Route): string[] {
  return method === "GET" && !isStream(lane) ? ["GET", "HEAD"] : [method];
}

function pattern(path: string): RegExp {
  return new RegExp(`^${path.replaceAll(".", "\\.").replaceAll(/\{\w+\}/g, "[^/]+")}$`);
}

/** What isn't HTTP, or comes too slowly: there is no request to answer, so the answer is written by hand. */
function answerNonsense(shared: Shared, error: Error & { code?: string }, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const problem = nonsense(error.code);
  const requestId = shared.requestId();
  const body = JSON.stringify(problemBody(problem, requestId));
  const head = [
    `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status] ?? ""}`,
    "Content-Type: application/problem+json",
    `Content-Length: ${Buffer.byteLength(body)}`,
    `X-Request-Id: ${requestId}`,
    `Hothot-Served-By: ${shared.servedBy}`,
    "Connection: close",
  ];
  socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
}

function nonsense(code: string | undefined): Problem {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT")
    return new Problem("deadline_exceeded", "The request did not arrive in time.");
  if (code === "HPE_HEADER_OVERFLOW") return new Problem("payload_too_large", "The request's headers are too large.");
  return refused([{ path: "", message: "is not HTTP" }]);
}
