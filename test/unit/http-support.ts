import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { systemTime } from "../../infra/clock.js";
import { silentLogger, type Fields, type Logger } from "../../infra/logger.js";
import { systemRandom } from "../../infra/random.js";
import { createHttpServer, type HttpOptions, type HttpServer } from "../../services/http/index.js";
import { checkAnswer, type ApiDocument } from "../harness/openapi.js";
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
  const document = JSON.parse((await rawAsk(url, "GET", "/openapi.json", {})).text) as ApiDocument;
  return {
    url,
    port,
    http: server,
    datacenter,
    lines,
    async ask(method, path, asking = {}) {
      const got = await rawAsk(url, method, path, asking);
      checkAnswer(document, method, path, {
        status: got.status,
        type: got.headers["content-type"] ?? "",
        text: got.text,
        json: got.json,
      });
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
