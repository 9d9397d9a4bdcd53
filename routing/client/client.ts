import { systemTime, type Time } from "../../infra/clock.js";
import { systemRandom, type Random } from "../../infra/random.js";
import { Transport, Unanswered, type Answer, type Call } from "./transport.js";

export type Json = Readonly<Record<string, unknown>>;

export interface ClientOptions {
  /** Base URLs, the nearest first. The client stays with one until it fails, and goes back to a nearer one that serves again. */
  readonly urls: readonly string[];
  readonly token?: string | undefined;
  /** For a call with all its tries, milliseconds; 10,000 by default. */
  readonly timeoutMs?: number;
  /** For one try, before the next URL is asked, milliseconds; 5,000 by default. */
  readonly tryMs?: number;
  readonly time?: Time;
  readonly random?: Random;
}

export interface ClusterFields {
  readonly name: string;
  readonly spec: Json;
  readonly state?: Json;
  readonly labels?: Readonly<Record<string, string>>;
  /** RFC 3339; a delete starts then. */
  readonly expiresAt?: string | null;
}

export interface Cluster extends Required<ClusterFields> {
  readonly id: string;
  readonly shard: number;
  readonly owner: string;
  readonly status: string;
  readonly version: number;
  readonly createdAt: string;
  readonly updatedAt: string;
}

export interface Job {
  readonly id: string;
  readonly clusterId: string;
  readonly type: string;
  readonly input: Json;
  readonly status: "queued" | "running" | "paused" | "complete" | "failed" | "cancelled";
  readonly attempt: number;
  readonly epoch: number;
  readonly stage: string | null;
  readonly stages: readonly string[];
  readonly startedIn: string;
  readonly runsIn: string;
  readonly createdAt: string;
  readonly finishedAt: string | null;
  readonly error: string | null;
}

export interface CallOptions {
  readonly timeoutMs?: number;
  readonly durability?: "local" | "replicated";
  readonly consistency?: "local" | "owner";
  /** `position` of an earlier answer: the read shows at least that write, at any datacenter. */
  readonly minPosition?: string;
  /** Made up for each write when left out, so that its tries take effect once. */
  readonly idempotencyKey?: string;
  /** If-Match: the write happens only if this is the cluster's version. */
  readonly version?: number;
  /** If-None-Match: the write happens only if there is no such cluster. */
  readonly absent?: boolean;
  readonly signal?: AbortSignal;
}

export interface Result<T> {
  readonly status: number;
  readonly value: T;
  /** Of a write: for `minPosition`. */
  readonly position: string | null;
  readonly servedBy: string | null;
  readonly owner: string | null;
  /** An earlier try, or call with the same key, had done it. */
  readonly replayed: boolean;
}

/** A refusal (`code` of the service's catalogue), or `unreachable` with status 0 when no try was answered. */
export class ClientError extends Error {
  readonly code: string;
  readonly status: number;
  readonly retryable: boolean;
  readonly problem: Json;

  constructor(status: number, problem: Json, cause?: unknown) {
    const code = typeof problem["code"] === "string" ? problem["code"] : `http_${status}`;
    super(
      typeof problem["detail"] === "string" ? problem["detail"] : code,
      cause === undefined ? undefined : { cause },
    );
    this.name = "ClientError";
    this.code = code;
    this.status = status;
    this.retryable = problem["retryable"] === true || status === 0;
    this.problem = problem;
  }
}

/** A thin typed face of the HTTP API. Reads are repeated as they are, writes under one idempotency key, until the time is over. */
export class Client {
  readonly #transport: Transport;
  readonly #time: Time;
  readonly #random: Random;
  readonly #timeoutMs: number;
  readonly #tryMs: number;

  constructor(options: ClientOptions) {
    this.#time = options.time ?? systemTime;
    this.#random = options.random ?? systemRandom;
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    this.#tryMs = options.tryMs ?? 5_000;
    this.#transport = new Transport({ urls: options.urls, token: options.token, time: this.#time });
  }

  /** The URL in use. */
  get url(): string {
    return this.#transport.url;
  }

  createCluster(fields: ClusterFields & { readonly id?: string }, options?: CallOptions): Promise<Result<Cluster>> {
    return this.call("POST", "/v1/clusters", fields, options);
  }

  putCluster(id: string, fields: ClusterFields, options?: CallOptions): Promise<Result<Cluster>> {
    return this.call("PUT", `/v1/clusters/${encodeURIComponent(id)}`, fields, options);
  }

  getCluster(id: string, options?: CallOptions): Promise<Result<Cluster>> {
    return this.call("GET", `/v1/clusters/${encodeURIComponent(id)}`, undefined, options);
  }

  deleteCluster(id: string, options?: CallOptions): Promise<Result<undefined>> {
    return this.call("DELETE", `/v1/clusters/${encodeURIComponent(id)}`, undefined, options);
  }

  /** Starts an operation on a cluster. */
  startJob(
    clusterId: string,
    operation: { readonly type: string; readonly input?: Json; readonly notBefore?: string },
    options?: CallOptions,
  ): Promise<Result<Job>> {
    return this.call("POST", `/v1/clusters/${encodeURIComponent(clusterId)}/operations`, operation, options);
  }

  getJob(id: string, options?: CallOptions): Promise<Result<Job>> {
    return this.call("GET", `/v1/jobs/${encodeURIComponent(id)}`, undefined, options);
  }

  /** Cancel, retry, pause or resume. */
  changeJob(id: string, action: "cancel" | "retry" | "pause" | "resume", options?: CallOptions): Promise<Result<Job>> {
    return this.call("POST", `/v1/jobs/${encodeURIComponent(id)}/${action}`, undefined, options);
  }

  /**
   * Any request of the API.
   * @throws ClientError: a refusal that is final, or the last failure when the time is over.
   */
  async call<T>(method: Call["method"], path: string, body?: unknown, options: CallOptions = {}): Promise<Result<T>> {
    const until = this.#time.monotonic() + (options.timeoutMs ?? this.#timeoutMs);
    const headers = this.#headers(method, options);
    let failure: ClientError | undefined;
    for (let tries = 0; ; tries++) {
      const left = until - this.#time.monotonic();
      if (left <= 0 || options.signal?.aborted === true)
        throw failure ?? new ClientError(0, { code: "unreachable", detail: "the time is over" });
      let waitMs = Math.min(2_000, 50 * 2 ** Math.min(tries, 6)) * (0.5 + this.#random.next() / 2);
      try {
        const answer = await this.#transport.send({
          method,
          path,
          body,
          headers: { ...headers, "hothot-timeout-ms": String(Math.ceil(Math.min(left, this.#tryMs))) },
          timeoutMs: Math.min(left, this.#tryMs + 250),
          signal: options.signal,
        });
        if (answer.status < 400) return resultOf<T>(answer);
        failure = new ClientError(answer.status, asProblem(answer.body));
        if (!failure.retryable) throw failure;
        const retryAfter = Number(answer.headers.get("retry-after") ?? "0");
        if (retryAfter > 0) waitMs = Math.min(retryAfter * 1000, waitMs * 4);
      } catch (error) {
        if (!(error instanceof Unanswered)) throw error;
        failure = new ClientError(0, { code: "unreachable", detail: error.message }, error.cause);
      }
      await this.#time.sleep(Math.min(waitMs, Math.max(0, until - this.#time.monotonic())), options.signal);
    }
  }

  #headers(method: Call["method"], options: CallOptions): Record<string, string> {
    const headers: Record<string, string> = {};
    if (method !== "GET") headers["idempotency-key"] = options.idempotencyKey ?? this.#random.token(24);
    if (options.durability !== undefined) headers["hothot-durability"] = options.durability;
    if (options.consistency !== undefined) headers["hothot-consistency"] = options.consistency;
    if (options.minPosition !== undefined) headers["hothot-min-position"] = options.minPosition;
    if (options.version !== undefined) headers["if-match"] = `"${options.version}"`;
    if (options.absent === true) headers["if-none-match"] = "*";
    return headers;
  }
}

export const createClient = (options: ClientOptions): Client => new Client(options);

function resultOf<T>(answer: Answer): Result<T> {
  return {
    status: answer.status,
    value: answer.body as T,
    position: answer.headers.get("hothot-position"),
    servedBy: answer.headers.get("hothot-served-by"),
    owner: answer.headers.get("hothot-owner"),
    replayed: answer.headers.get("idempotency-replayed") === "true",
  };
}

function asProblem(body: unknown): Json {
  return typeof body === "object" && body !== null ? (body as Json) : {};
}
