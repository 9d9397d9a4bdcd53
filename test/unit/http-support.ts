import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { z } from "zod";
import { systemTime } from "../../infra/clock.js";
import { silentLogger, type Fields, type Logger } from "../../infra/logger.js";
import { systemRandom } from "../../infra/random.js";
import { createHttpServer, type HttpOptions, type HttpServer } from "../../services/http/index.js";
import { FakeDatacenter } from "./http-fake.js";

export interface Got {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly text: string;
  /** The body as JSON; undefined when it is none. */
  readonly json: Record<string, unknown>;
}

export interface Asking {
  readonly body?: unknown;
  /** Sent as it is, instead of `body`. */
  readonly raw?: string | Buffer;
  readonly headers?: Readonly<Record<string, string>>;
  readonly agent?: http.Agent;
}

export interface HttpTest {
  readonly url: string;
  readonly port: number;
  readonly http: HttpServer;
  readonly datacenter: FakeDatacenter;
  readonly lines: { readonly level: string; readonly event: string; readonly fields: Fields }[];
  /** Asks, and checks the answer against the OpenAPI document. */
  ask(method: string, path: string, asking?: Asking): Promise<Got>;
  stop(): Promise<void>;
}

/** A server on a port of its own before a datacenter in memory. */
export async function startHttp(
  options: Omit<Partial<HttpOptions>, "config"> & { config?: Partial<HttpOptions["config"]> } = {},
): Promise<HttpTest> {
  const datacenter = new FakeDatacenter();
  const lines: HttpTest["lines"] = [];
  const log = recording(lines);
  const server = createHttpServer({
    datacenter,
    time: systemTime,
    random: systemRandom,
    log,
    ...options,
    config: {
      host: "127.0.0.1",
      port: 0,
      bodyLimitBytes: 10_000,
      defaultTimeoutMs: 2_000,
      drainMs: 2_000,
      ...options.config,
    },
  });
  const port = await server.start();
  const url = `http://127.0.0.1:${port}`;
  const document = JSON.parse((await rawAsk(url, "GET", "/openapi.json", {})).text) as Document;
  return {
    url,
    port,
    http: server,
    datacenter,
    lines,
    async ask(method, path, asking = {}) {
      const got = await rawAsk(url, method, path, asking);
      checkAgainst(document, method, path, got);
      return got;
    },
    stop: () => server.stop(),
  };
}

function recording(lines: HttpTest["lines"], own: Fields = {}): Logger {
  const at =
    (level: string) =>
    (event: string, fields: Fields = {}) =>
      void lines.push({ level, event, fields: { ...own, ...fields } });
  return {
    ...silentLogger,
    debug: at("debug"),
    info: at("info"),
    warn: at("warn"),
    error: at("error"),
    with: (more) => recording(lines, { ...own, ...more }),
  };
}

async function rawAsk(url: string, method: string, path: string, { body, raw, headers, agent }: Asking): Promise<Got> {
  const bytes = raw ?? (body === undefined ? undefined : JSON.stringify(body));
  const request = http.request(`${url}${path}`, {
    method,
    agent: agent ?? false,
    signal: AbortSignal.timeout(10_000),
    headers: {
      ...(bytes === undefined
        ? undefined
        : { "content-type": "application/json", "content-length": Buffer.byteLength(bytes) }),
      ...headers,
    },
  });
  request.end(bytes);
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  const text = Buffer.concat(chunks).toString();
  const type = response.headers["content-type"] ?? "";
  const json = (/^application\/(problem\+)?json\b/.test(type) && text !== "" ? JSON.parse(text) : undefined) as Record<
    string,
    unknown
  >;
  return { status: response.statusCode ?? 0, headers: response.headers, text, json };
}

/** Bytes as they are, on a connection of their own; resolves with all that came back when the server closes or `enough` is seen. */
export async function rawBytes(port: number, bytes: string | Buffer, enough: RegExp = /$^/): Promise<string> {
  const socket = net.connect(port, "127.0.0.1");
  socket.on("error", () => {});
  await once(socket, "connect");
  socket.write(bytes);
  let text = "";
  try {
    for await (const chunk of socket) {
      text += (chunk as Buffer).toString("latin1");
      if (enough.test(text)) break;
    }
  } catch {
    // Cut off: what came until then counts.
  }
  socket.destroy();
  return text;
}

/** Polls until `condition` holds. */
export async function until(condition: () => boolean, ms = 3_000): Promise<void> {
  const end = performance.now() + ms;
  while (!condition()) {
    assert.ok(performance.now() < end, `not within ${ms} ms: ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export function assertProblem(got: Got, status: number, code: string): void {
  assert.equal(got.status, status, got.text);
  assert.match(got.headers["content-type"] ?? "", /^application\/problem\+json/);
  assert.equal(got.json["code"], code, got.text);
  assert.equal(got.json["status"], status);
  assert.equal(typeof got.json["retryable"], "boolean");
  assert.ok(got.json["type"] && got.json["title"] && got.json["detail"] && got.json["requestId"]);
  assert.equal(got.json["requestId"], got.headers["x-request-id"]);
  if (status === 503 || status === 429) assert.match(got.headers["retry-after"] ?? "", /^\d+$/);
}

/** Paths of a problem's faults, sorted. */
export function faultPaths(got: Got): string[] {
  return (got.json["errors"] as { path: string; message: string }[]).map((fault) => fault.path).sort();
}

interface Operation {
  readonly responses: Readonly<
    Record<string, { readonly content?: Readonly<Record<string, { readonly schema: object }>> }>
  >;
}
interface Document {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, object>> };
}

const validators = new Map<string, z.ZodType>();

function checkAgainst(document: Document, method: string, path: string, got: Got): void {
  const bare = path.split("?")[0] ?? "";
  if (method === "HEAD" || bare === "/") return;
  const exact = document.paths[bare]?.[method.toLowerCase()] === undefined ? undefined : bare;
  const at =
    exact ??
    Object.keys(document.paths).find(
      (known) => matches(known, bare) && document.paths[known]?.[method.toLowerCase()] !== undefined,
    );
  const operation = at === undefined ? undefined : document.paths[at]?.[method.toLowerCase()];
  if (operation === undefined) {
    assert.ok(
      [404, 405, 400].includes(got.status),
      `${method} ${path} is not in the document, and was answered ${got.status}`,
    );
    valid(document, document.components.schemas["Problem"] ?? {}, "Problem", got.json);
    return;
  }
  const response = operation.responses[String(got.status)];
  assert.ok(response, `${method} ${at} does not document ${got.status}: ${got.text}`);
  if (response.content === undefined) return assert.equal(got.text, "");
  const type = (got.headers["content-type"] ?? "").split(";")[0] ?? "";
  const content = response.content[type];
  assert.ok(content, `${method} ${at} ${got.status} does not document ${type}`);
  if (/^application\/(problem\+)?json$/.test(type))
    valid(document, content.schema, `${method} ${at} ${got.status}`, got.json);
}

function matches(known: string, path: string): boolean {
  return new RegExp(`^${known.replaceAll(".", "\\.").replaceAll(/\{\w+\}/g, "[^/]+")}$`).test(path);
}

function valid(document: Document, schema: object, name: string, value: unknown): void {
  let validator = validators.get(name);
  if (validator === undefined) {
    validator = z.fromJSONSchema(inlined(document, schema) as Parameters<typeof z.fromJSONSchema>[0]);
    validators.set(name, validator);
  }
  const parsed = validator.safeParse(value);
  assert.ok(parsed.success, `${name}: ${JSON.stringify(parsed.error?.issues)} in ${JSON.stringify(value)}`);
}

function inlined(document: Document, value: unknown): unknown {
  if (Array.isArray(value)) return value.map((item) => inlined(document, item));
  if (typeof value !== "object" || value === null) return value;
  const ref = (value as { readonly $ref?: unknown }).$ref;
  if (typeof ref === "string") {
    const target = document.components.schemas[ref.replace("#/components/schemas/", "")];
    assert.ok(target, `${ref} leads nowhere`);
    return inlined(document, target);
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inlined(document, item)]));
}
