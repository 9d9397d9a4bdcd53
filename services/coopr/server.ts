import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { z } from "zod";
import { within, type Time } from "../../infra/clock.js";
import { isLoopback } from "../../infra/config.js";
import { asError, FatalError, Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Service } from "../../infra/service.js";
import { storable } from "../../infra/storable.js";
import { BodyBudget, ClientGone, readBody } from "../http/body.js";
import { backlog } from "../http/server.js";

/** Finishes come with all that a task printed. */
const bodyLimitBytes = 16_000_000;
const bodiesLimitBytes = 64_000_000;
const bodyMs = 30_000;

export interface CooprAnswer {
  readonly status: number;
  readonly body?: unknown;
  /** Runs once the answer is out. */
  readonly after?: () => void;
}

export interface CooprCall {
  /** What the path's `*` stands for. */
  readonly id: string;
  /** JSON, with what the database can't keep replaced; undefined without a body. */
  readonly body: unknown;
  /** Aborts when the client hangs up. */
  readonly signal: AbortSignal;
}

export interface CooprRoute {
  readonly method: "PUT" | "POST" | "DELETE";
  readonly path: RegExp;
  handle(call: CooprCall): Promise<CooprAnswer>;
}

/** What the provisioner sees of a refusal. */
export class CooprRefusal extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
    this.name = "CooprRefusal";
  }
}

export interface CooprServerOptions {
  readonly host: string;
  readonly port: number;
  readonly drainMs: number;
  readonly routes: readonly CooprRoute[];
  readonly time: Time;
  readonly log: Logger;
}

/** The listener for provisioners. Whatever a body's content type says, it is JSON. */
export class CooprServer implements Service {
  readonly name = "coopr";
  readonly #o: CooprServerOptions;
  readonly #log: Logger;
  readonly #bodies = new BodyBudget(bodiesLimitBytes);
  readonly #server = createServer({ keepAliveTimeout: 65_000, requestTimeout: 60_000, headersTimeout: 15_000 });
  readonly #open = new Set<Promise<void>>();
  #draining = false;
  #stopping: Promise<void> | undefined;

  constructor(options: CooprServerOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "coopr" });
    this.#server.maxConnections = 5_000;
    this.#server.on("request", (request, response) => {
      const served = this.#serve(request, response).finally(() => this.#open.delete(served));
      this.#open.add(served);
    });
  }

  /** @throws FatalError port_in_use */
  async start(): Promise<void> {
    const { host, port } = this.#o;
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (error) =>
        reject(
          new FatalError(
            "port_in_use",
            `the adapter for provisioners can't listen on ${host}:${port}: ${error.message}`,
            "Set another HOTHOT_COOPR_PORT, or HOTHOT_COOPR_HOST.",
            error,
          ),
        ),
      );
      this.#server.listen({ port, host, backlog }, resolve);
    });
    if (!isLoopback(host)) this.#log.warn("provisioners need no token", { host });
    this.#log.info("listens for provisioners", { host, port: (this.#server.address() as AddressInfo).port });
  }

  /** New requests are refused, those that were accepted are answered. */
  async drain(): Promise<void> {
    this.#draining = true;
    await within(this.#o.time, this.#o.drainMs, Promise.allSettled([...this.#open]), undefined);
  }

  stop(): Promise<void> {
    return (this.#stopping ??= (async () => {
      await this.drain();
      if (!this.#server.listening) return;
      const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
      this.#server.closeAllConnections();
      await closed;
    })());
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const hangUp = new AbortController();
    response.once("close", () => hangUp.abort());
    let answer: CooprAnswer;
    try {
      answer = await this.#answer(request, hangUp.signal);
    } catch (error) {
      if (error instanceof ClientGone) return;
      answer = this.#refusal(request, error);
    }
    if (response.destroyed) return;
    const text = answer.body === undefined ? "" : JSON.stringify(answer.body);
    response.writeHead(answer.status, {
      ...(text === "" ? {} : { "Content-Type": "application/json" }),
      ...(answer.status === 204 ? {} : { "Content-Length": Buffer.byteLength(text) }),
      ...(this.#draining || !request.complete ? { Connection: "close" } : {}),
    });
    response.end(text, answer.after);
  }

  async #answer(request: IncomingMessage, signal: AbortSignal): Promise<CooprAnswer> {
    const { routes, time } = this.#o;
    if (this.#draining) throw new Problem("draining");
    const path = (request.url ?? "").split("?", 1)[0] ?? "";
    const here = routes.filter((route) => route.path.test(path));
    const route = here.find((each) => each.method === request.method);
    if (route === undefined)
      throw here.length === 0
        ? new CooprRefusal(404, "there is no such path")
        : new CooprRefusal(405, `allowed here: ${here.map((each) => each.method).join(", ")}`);
    const share = this.#bodies.share();
    try {
      const bytes = await readBody(request, bodyLimitBytes, share, time, time.monotonic() + bodyMs);
      return await route.handle({ id: decoded(route.path.exec(path)?.[1] ?? ""), body: parsed(bytes), signal });
    } finally {
      share.free();
    }
  }

  #refusal(request: IncomingMessage, error: unknown): CooprAnswer {
    if (error instanceof CooprRefusal) return { status: error.status, body: { error: error.message } };
    if (error instanceof Problem && error.code !== "internal")
      return { status: error.status, body: { error: error.message, code: error.code } };
    this.#log.error("a provisioner's request failed", {
      method: request.method,
      url: request.url,
      error: asError(error),
    });
    return { status: 500, body: { error: "a fault of ours" } };
  }
}

/** @throws CooprRefusal 400 that names every fault */
export function check<T extends z.ZodType>(schema: T, body: unknown): z.output<T> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const faults = result.error.issues.map((issue) => `${issue.path.join(".") || "the body"}: ${issue.message}`);
  throw new CooprRefusal(400, faults.join("; "));
}

function parsed(bytes: Buffer): unknown {
  const text = bytes.toString("utf8").trim();
  if (text === "") return undefined;
  try {
    // A finish comes once only: nothing in it is refused.
    return storable(JSON.parse(text));
  } catch {
    throw new CooprRefusal(400, "the body is not JSON");
  }
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new CooprRefusal(400, "the path can't be decoded");
  }
}
