import type { IncomingMessage, ServerResponse } from "node:http";
import type { z } from "zod";
import type { Time } from "../../infra/clock.js";
import type { Config } from "../../infra/config.js";
import type { FieldError, ProblemCode } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import type { Tracing } from "../../infra/tracing.js";
import type { JsonObject } from "../../replication/entities.js";
import type { NewToken } from "../access/administration.js";
import type { TenantLimits } from "../access/book.js";
import type {
  Caller,
  ClusterFields,
  Condition,
  Datacenter,
  Listed,
  Page,
  Reply,
  RequestContext,
  Scope,
} from "../api.js";

/**
 * Which bound a request counts against, so that one kind can't starve another.
 * `probe` has none; `stream`, `events` and `poll` hold their connection for long.
 */
export type Lane = "work" | "poll" | "stream" | "events" | "admin" | "probe";

/** They write their answer by themselves, piece by piece. */
export const isStream = (lane: Lane): boolean => lane === "stream" || lane === "events";

export type Method = "GET" | "PUT" | "POST" | "PATCH" | "DELETE";

/** A reply, and what only HTTP knows about it. */
export interface Answer extends Reply {
  readonly location?: string;
}

/** One request that fits its route's schemas. */
export interface Call<Path = unknown, Query = unknown, Body = unknown> {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly context: RequestContext;
  /** If-Match and If-None-Match, on routes that are `conditional`. */
  readonly condition: Condition;
  readonly path: Path;
  readonly query: Query;
  readonly body: Body;
  /** Whether who asked might still ask: for what stays open for long. */
  readonly allowed: () => Promise<boolean>;
  /** Aborts when the client hangs up, and when the process drains. In lanes `poll`, `stream` and `events` only; elsewhere it never does. */
  readonly signal: AbortSignal;
}

/** A row of the table that is router, validator and OpenAPI document in one. */
export interface Route {
  readonly method: Method;
  /** As in OpenAPI: `/v1/clusters/{id}`. */
  readonly path: string;
  readonly summary: string;
  readonly lane: Lane;
  readonly params?: z.ZodType;
  readonly query?: z.ZodType;
  readonly body?: z.ZodType;
  /** Media types of the body; default: application/json. */
  readonly bodyTypes?: readonly string[];
  /** Without a body the schema is given `{}`. */
  readonly bodyOptional?: boolean;
  /** The handler reads the body itself; it has this media type. */
  readonly streamedBody?: string;
  readonly conditional?: boolean;
  /** Takes Idempotency-Key and Hothot-Durability. */
  readonly write?: boolean;
  /** What a token needs; `scopeOf` tells it for routes that don't. */
  readonly scope?: Scope;
  /** Milliseconds for the answer when the request names none; default: the configuration's. */
  timeoutMs?(body: unknown, defaultMs: number): number;
  /** Body of each success status: a schema (JSON), null (no body), or a media type. */
  readonly answers: Readonly<Record<number, z.ZodType | string | null>>;
  readonly problems?: readonly ProblemCode[];
  /** Answers, or returns undefined when it has written the response itself. */
  handle(call: Call): Promise<Answer | undefined>;
}

/** What a route needs of a token: operators change what the group is, others what is in it. */
export const scopeOf = (route: Route): Scope =>
  route.scope ?? (route.method === "GET" ? "read" : route.lane === "admin" ? "operate" : "write");

type Out<T> = T extends z.ZodType ? z.output<T> : undefined;

/** Ties a handler's types to the schemas of its route. */
export function route<
  P extends z.ZodType | undefined = undefined,
  Q extends z.ZodType | undefined = undefined,
  B extends z.ZodType | undefined = undefined,
>(
  spec: Omit<Route, "handle" | "params" | "query" | "body"> & {
    params?: P;
    query?: Q;
    body?: B;
    handle(call: Call<Out<P>, Out<Q>, Out<B>>): Promise<Answer | undefined>;
  },
): Route {
  return spec as unknown as Route;
}

export const moveKinds = ["switchovers", "drains", "failbacks", "rebalances", "takeovers"] as const;
export type MoveKind = (typeof moveKinds)[number];

/** What a long operation is asked to do; which fields it has depends on its kind. */
export interface MoveRequest {
  readonly dc?: string;
  readonly shard?: number;
  readonly to?: string;
  readonly force?: boolean;
  readonly dryRun: boolean;
}

/** A line of a bulk request: a row, or why it is none. */
export type BulkRow =
  | { readonly line: number; readonly id?: string; readonly fields: ClusterFields }
  | { readonly line: number; readonly id?: string; readonly errors: readonly FieldError[] };

/** A line of a bulk answer. */
export type BulkLine =
  | {
      readonly line: number;
      readonly id: string;
      readonly status: number;
      readonly version: number;
      /** The first answer again. */
      readonly replayed?: true;
    }
  | {
      readonly line: number;
      readonly id?: string;
      readonly status: number;
      readonly code: ProblemCode;
      readonly detail: string;
      readonly replayed?: never;
    };

/** Features that a datacenter may have beside `Datacenter`. A route whose method is missing answers `not_found`. */
export interface Extensions {
  /** Answers each row, in order. Rows with `errors` come back as `invalid_request` lines. */
  readonly bulk?: (
    context: RequestContext,
    rows: AsyncIterable<BulkRow>,
    signal: AbortSignal,
  ) => AsyncIterable<BulkLine>;
  /** 202 with a long operation; with `dryRun` 200 with `{shards}`. */
  readonly startMove?: (context: RequestContext, kind: MoveKind, request: MoveRequest) => Promise<Reply>;
  readonly getMove?: (context: RequestContext, kind: MoveKind, id: string) => Promise<Reply>;
  readonly cancelMove?: (context: RequestContext, kind: MoveKind, id: string) => Promise<Reply>;
  readonly setFailover?: (context: RequestContext, paused: boolean) => Promise<Reply>;
  readonly addDatacenter?: (context: RequestContext, name: string) => Promise<Reply>;
  readonly removeDatacenter?: (context: RequestContext, name: string) => Promise<Reply>;
  readonly repair?: (
    context: RequestContext,
    what: { readonly shard?: number; readonly clusterId?: string; readonly from?: string },
  ) => Promise<Reply>;
  readonly replayDivergent?: (context: RequestContext, id: string) => Promise<Reply>;
  readonly discardDivergent?: (context: RequestContext, id: string) => Promise<Reply>;
  readonly audit?: (page: Page) => Promise<Listed>;
  readonly addToken?: (context: RequestContext, wanted: NewToken) => Promise<Reply>;
  readonly listTokens?: (page: Page) => Promise<Listed>;
  readonly removeToken?: (context: RequestContext, id: string) => Promise<Reply>;
  readonly putTenant?: (context: RequestContext, name: string, limits: Omit<TenantLimits, "id">) => Promise<Reply>;
  readonly listTenants?: (page: Page) => Promise<Listed>;
}

/** What routes are built from. */
export interface Backend {
  readonly datacenter: Datacenter;
  readonly extensions: Extensions;
  readonly time: Time;
  /** A reply of this process, with status 200 unless told otherwise. */
  readonly here: (body: unknown, status?: number) => Answer;
  readonly draining: () => boolean;
  readonly document: () => JsonObject;
}

/** Bounds that tests make small. */
export interface HttpLimits {
  /** Requests at work at once, by lane; more get 503 `overloaded`. */
  readonly lanes: Readonly<Record<Exclude<Lane, "probe">, number>>;
  /** Bytes of the bodies of requests that are not answered yet, all together. */
  readonly bodyBytes: number;
  /** Bytes that a server-sent event client may be behind before it is cut off. */
  readonly eventBytes: number;
  readonly eventHeartbeatMs: number;
  /** A stream of which nothing could be sent for so long is cut off: its client has stopped reading. */
  readonly stallMs: number;
  /** How often an event client's token is looked at again. */
  readonly eventCheckMs: number;
  /** After its deadline a request that nothing answered is answered here. */
  readonly graceMs: number;
  readonly connections: number;
}

export interface HttpOptions {
  readonly datacenter: Datacenter;
  readonly config: Pick<Config, "host" | "port" | "bodyLimitBytes" | "defaultTimeoutMs" | "drainMs"> &
    Partial<Pick<Config, "drainNoticeMs">>;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
  readonly extensions?: Extensions;
  /** Who asks; throws a Problem when that may not be. Not asked for probes. Default: everybody is `anonymous`, and may do everything. */
  readonly admit?: (
    request: IncomingMessage,
    need: { readonly scope: Scope; readonly write: boolean; readonly route: string; readonly again: boolean },
  ) => Caller | Promise<Caller>;
  /** Where an exporter is configured. */
  readonly tracing?: Tracing | undefined;
  /** Called once for each answer. */
  readonly observe?: (method: string, route: string, status: number, ms: number) => void;
  readonly limits?: Partial<HttpLimits>;
}
