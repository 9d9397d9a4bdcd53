import { z } from "zod";
import { problems, type ProblemCode } from "../../infra/errors.js";
import type { JsonObject } from "../../replication/entities.js";
import { problem } from "./shapes.js";
import { scopeOf, type Route } from "./types.js";

/** Any request can meet these. */
const everywhere: readonly ProblemCode[] = [
  "invalid_request",
  "not_found",
  "method_not_allowed",
  "overloaded",
  "draining",
  "internal",
];
/** Any request but a probe can meet these. */
const guarded: readonly ProblemCode[] = ["unauthorized", "forbidden", "rate_limited"];
const withBody: readonly ProblemCode[] = ["payload_too_large", "unsupported_media_type", "deadline_exceeded"];

const tags = {
  clusters: "The users' clusters: written at their shard's owner, read in every datacenter",
  jobs: "Operations on clusters, as they run",
  workers: "Who carries tasks out, and the tasks",
  operations: "Who owns what, how it is moved, and whether all copies are equal",
  access: "Tokens and tenants",
  probes: "What machines ask; no token is needed",
} as const;

/** OpenAPI 3.1 from the routes and the schemas that check requests. */
export function openApiDocument(routes: readonly Route[]): JsonObject {
  const schemas: Record<string, unknown> = {};
  const paths: Record<string, Record<string, unknown>> = {};
  const put = (schema: z.ZodType, io: "input" | "output"): unknown => jsonSchema(schema, io, schemas);
  for (const route of routes) (paths[route.path] ??= {})[route.method.toLowerCase()] = operation(route, put);
  return {
    openapi: "3.1.0",
    info: {
      title: "hothot",
      version: "1",
      description:
        "Every datacenter answers every request. A 4xx or 503 had no effect; after `outcome_unknown` repeat with the same idempotency key.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: "/" }],
    tags: Object.entries(tags).map(([name, description]) => ({ name, description })),
    paths,
    components: {
      securitySchemes: {
        token: {
          type: "http",
          scheme: "bearer",
          description:
            "A token of `hothot token add`, or a JSON Web Token. `admin` may do everything; who may write or operate may read. Without one where the operator allows that.",
        },
      },
      schemas: { Problem: put(problem, "output"), ...schemas },
    },
  };
}

type Put = (schema: z.ZodType, io: "input" | "output") => unknown;

function operation(route: Route, put: Put): Record<string, unknown> {
  const body = requestBody(route, put);
  return {
    operationId: operationId(route),
    summary: route.summary,
    tags: [tagOf(route)],
    ...(route.lane === "probe" ? { security: [] } : { security: [{}, { token: [scopeOf(route)] }] }),
    parameters: [...parameters(route.params, "path"), ...parameters(route.query, "query"), ...headers(route)],
    ...(body === undefined ? undefined : { requestBody: body }),
    responses: responses(route, put),
  };
}

function requestBody(route: Route, put: Put): unknown {
  if (route.streamedBody !== undefined)
    return { required: true, content: { [route.streamedBody]: { schema: { type: "string" } } } };
  const { body } = route;
  if (body === undefined) return undefined;
  return {
    required: route.bodyOptional !== true,
    content: Object.fromEntries(
      (route.bodyTypes ?? ["application/json"]).map((type) => [type, { schema: put(body, "input") }]),
    ),
  };
}

function responses(route: Route, put: Put): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  for (const [status, shape] of Object.entries(route.answers)) {
    const type = typeof shape === "string" ? shape : "application/json";
    const schema = typeof shape === "string" ? { type: "string" } : shape === null ? undefined : put(shape, "output");
    out[status] = {
      description: status === "503" ? "Not ready" : "Done",
      headers: answerHeaders(route, status),
      ...(schema === undefined ? undefined : { content: { [type]: { schema } } }),
    };
  }
  const hasBody = route.body !== undefined || route.streamedBody !== undefined;
  const codes = new Set<ProblemCode>(
    route.lane === "probe"
      ? ["invalid_request", "internal"]
      : [
          ...everywhere,
          ...guarded,
          ...(route.write === true ? (["idempotency_key_reused"] as const) : []),
          ...(route.write === true && scopeOf(route) === "write" ? (["quota_exceeded"] as const) : []),
          ...(hasBody ? withBody : []),
          ...(route.problems ?? []),
        ],
  );
  const byStatus = new Map<number, ProblemCode[]>();
  for (const code of codes) byStatus.set(problems[code].status, [...(byStatus.get(problems[code].status) ?? []), code]);
  for (const [status, list] of byStatus) {
    if (out[status] !== undefined) continue;
    out[status] = {
      description: list.map((code) => `\`${code}\`: ${problems[code].meaning}`).join(" "),
      headers: {
        ...requestHeaders,
        ...(isOfShard(route) ? ownerHeader : undefined),
        ...(isRead(route) ? copyHeaders : undefined),
        ...(status === 405 ? { Allow: header("Methods that the path has") } : undefined),
        ...(status === 503 || status === 429
          ? { "Retry-After": { description: "Seconds", schema: { type: "integer" } } }
          : undefined),
      },
      content: { "application/problem+json": { schema: put(problem, "output") } },
    };
  }
  return out;
}

const header = (description: string) => ({ description, schema: { type: "string" } });
const requestHeaders = {
  "X-Request-Id": header("Finds the log lines of this request"),
  "Hothot-Served-By": header("<dc>/<node> that did the work"),
};
const ownerHeader = { "Hothot-Owner": header("The shard's owner; on a write, in the epoch of the position") };
const copyHeaders = {
  "Hothot-Lag-Ms": { description: "How far the copy is behind, milliseconds", schema: { type: "integer" } },
  "Hothot-Stale": header("true when the copy may not be current"),
};

/** Carried out at a shard's owner, or read from a copy of one. */
const isOfShard = (route: Route): boolean =>
  route.lane === "work" && (["clusters", "jobs", "workers"] as const).some((tag) => tag === tagOf(route));
const isRead = (route: Route): boolean => isOfShard(route) && route.method === "GET";

function answerHeaders(route: Route, status: string): Record<string, unknown> {
  const made = status === "201" || status === "202";
  return {
    ...requestHeaders,
    ...(isOfShard(route) ? ownerHeader : undefined),
    ...(isRead(route) ? copyHeaders : undefined),
    ...(route.write === true
      ? {
          ...(isOfShard(route)
            ? { "Hothot-Position": header("<shard>:<epoch>:<position>, for Hothot-Min-Position") }
            : undefined),
          "Idempotency-Replayed": header("true when this is the first answer again"),
        }
      : undefined),
    ...(route.write === true && route.method === "POST" && made ? { Location: header("Where it is") } : undefined),
    ...(/^\/v1\/clusters(\/\{id\})?$/.test(route.path) && status !== "204" && !isList(route)
      ? { ETag: header("The version, in double quotes") }
      : undefined),
  };
}

const isList = (route: Route): boolean => route.method === "GET" && !route.path.includes("{");

function parameters(schema: z.ZodType | undefined, where: "path" | "query"): unknown[] {
  if (schema === undefined) return [];
  const whole = z.toJSONSchema(schema, { io: "output", unrepresentable: "any" });
  return Object.entries(whole.properties ?? {}).map(([name, property]) => ({
    name,
    in: where,
    required: where === "path",
    schema: property,
  }));
}

function headers(route: Route): unknown[] {
  if (route.lane === "probe") return [];
  const header = (name: string, description: string, schema: object) => ({
    name,
    in: "header",
    required: false,
    description,
    schema,
  });
  const out = [
    header("Hothot-Timeout-Ms", "Deadline, milliseconds from the request's arrival", {
      type: "integer",
      minimum: 1,
      maximum: 600_000,
    }),
    header("X-Request-Id", "Carried along and sent back", { type: "string", pattern: "^[A-Za-z0-9._:-]{1,128}$" }),
    header("traceparent", "W3C trace context", { type: "string" }),
    header("tracestate", "W3C trace context", { type: "string" }),
  ];
  if (route.lane === "work") {
    out.push(
      header("Hothot-Consistency", "Which datacenter a read asks", {
        type: "string",
        enum: ["local", "owner"],
        default: "local",
      }),
      header("Hothot-Min-Position", "Wait until this datacenter has applied it", {
        type: "string",
        pattern: "^\\d+:\\d+:\\d+$",
      }),
    );
  }
  if (route.lane === "work" || route.write === true)
    out.push(
      header("Hothot-Durability", "What an acknowledgement means", {
        type: "string",
        enum: ["local", "replicated"],
        default: "local",
      }),
    );
  if (route.write === true)
    out.push(
      header("Idempotency-Key", "The same key and body get the first answer again", {
        type: "string",
        pattern: "^[\\x21-\\x7e]{1,255}$",
      }),
    );
  if (route.conditional === true) {
    out.push(
      header("If-Match", 'The version that must be there: `"<version>"`', { type: "string", pattern: '^"\\d+"$' }),
    );
    out.push(header("If-None-Match", "Only if there is none", { type: "string", enum: ["*"] }));
  }
  return out;
}

/** A schema, with the named ones in it moved to `schemas` and referred to. */
function jsonSchema(schema: z.ZodType, io: "input" | "output", schemas: Record<string, unknown>): unknown {
  // Wrapped, because a named schema at the top would be written out instead of referred to.
  const { $defs, properties } = z.toJSONSchema(z.object({ it: schema }), { io, unrepresentable: "any" });
  for (const [name, definition] of Object.entries($defs ?? {})) schemas[name] ??= relink(definition);
  return relink(properties?.["it"]);
}

function relink(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(relink);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key, item]) => !(key === "id" && typeof item === "string"))
      .map(([key, item]) => [
        key,
        key === "$ref" && typeof item === "string" ? item.replace("#/$defs/", "#/components/schemas/") : relink(item),
      ]),
  );
}

function operationId({ method, path }: Route): string {
  const words = path.split(/[/.{}-]+/).filter((word) => word !== "" && word !== "v1");
  return [method.toLowerCase(), ...words]
    .map((word, i) => (i === 0 ? word : word.charAt(0).toUpperCase() + word.slice(1)))
    .join("");
}

function tagOf({ path, lane }: Route): keyof typeof tags {
  if (lane === "probe") return "probes";
  if (path.endsWith("/operations") || path.startsWith("/v1/jobs")) return "jobs";
  if (path.startsWith("/v1/tokens") || path.startsWith("/v1/tenants")) return "access";
  if (path.startsWith("/v1/clusters")) return "clusters";
  return path.startsWith("/v1/workers") || path.startsWith("/v1/tasks") ? "workers" : "operations";
}
