import { Agent, request as httpRequest, type IncomingHttpHeaders } from "node:http";
import type { Place } from "./journal.js";

/** Why no answer came: `refused` never reached the datacenter, the others may have had an effect. */
export type Failure = "refused" | "broken" | "timeout";

/** An HTTP answer, or `status` 0 with the reason why there is none. Times are monotonic milliseconds. */
export interface Answer {
  readonly status: number;
  readonly failure: Failure | null;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  readonly startedAt: number;
  readonly endedAt: number;
}

export interface Ask {
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  /** Sent along as the deadline (Hothot-Timeout-Ms); the client itself gives up `graceMs` later. */
  readonly timeoutMs?: number;
  readonly graceMs?: number;
}

/** Speaks HTTP to the datacenters of a group from outside, over connections that are kept. */
export class Client {
  readonly #agents = new Map<string, Agent>();
  readonly #origins: ReadonlyMap<string, URL>;

  constructor(origins: Readonly<Record<string, string>>) {
    this.#origins = new Map(Object.entries(origins).map(([dc, url]) => [dc, new URL(url)]));
  }

  get datacenters(): readonly string[] {
    return [...this.#origins.keys()];
  }

  /** Never rejects. */
  request(dc: string, method: string, path: string, ask: Ask = {}): Promise<Answer> {
    const origin = this.#origins.get(dc);
    if (origin === undefined) throw new Error(`no datacenter ${dc}`);
    const timeoutMs = ask.timeoutMs ?? 10_000;
    const body = ask.body === undefined ? null : typeof ask.body === "string" ? ask.body : JSON.stringify(ask.body);
    const headers: Record<string, string> = { "hothot-timeout-ms": String(timeoutMs), ...ask.headers };
    if (body !== null) {
      headers["content-type"] ??= "application/json";
      headers["content-length"] = String(Buffer.byteLength(body));
    }
    const startedAt = performance.now();
    return new Promise((resolve) => {
      let settled = false;
      const end = (status: number, failure: Failure | null, answered: IncomingHttpHeaders, text: string): void => {
        if (settled) return;
        settled = true;
        clearTimeout(timer);
        resolve({ status, failure, headers: answered, text, startedAt, endedAt: performance.now() });
      };
      const asked = httpRequest(
        { host: origin.hostname, port: origin.port, method, path, headers, agent: this.#agent(dc) },
        (response) => {
          const chunks: Buffer[] = [];
          response.on("data", (chunk: Buffer) => chunks.push(chunk));
          response.on("end", () => {
            if (response.complete)
              end(response.statusCode ?? 0, null, response.headers, Buffer.concat(chunks).toString());
            else end(0, "broken", {}, "");
          });
          response.on("error", () => end(0, "broken", {}, ""));
        },
      );
      const timer = setTimeout(
        () => {
          end(0, "timeout", {}, "");
          asked.destroy();
        },
        timeoutMs + (ask.graceMs ?? 1000),
      );
      asked.on("error", (error: NodeJS.ErrnoException) => {
        end(0, error.code === "ECONNREFUSED" ? "refused" : "broken", {}, "");
      });
      asked.end(body ?? undefined);
    });
  }

  /** A GET whose body is JSON; `null` for any other answer than 200. */
  async get<T>(dc: string, path: string, timeoutMs = 5000): Promise<T | null> {
    const answer = await this.request(dc, "GET", path, { timeoutMs });
    if (answer.status !== 200) return null;
    try {
      return JSON.parse(answer.text) as T;
    } catch {
      return null;
    }
  }

  /** Every item of a list, page by page; `null` when a page could not be had. */
  async list<T>(dc: string, path: string): Promise<T[] | null> {
    const items: T[] = [];
    let cursor: string | null = null;
    do {
      const glue = path.includes("?") ? "&" : "?";
      const at: string = `${path}${glue}limit=500${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`;
      const page: { items: T[]; nextCursor?: string | null } | null = await this.get(dc, at);
      if (page === null) return null;
      items.push(...page.items);
      cursor = page.nextCursor ?? null;
    } while (cursor !== null);
    return items;
  }

  close(): void {
    for (const agent of this.#agents.values()) agent.destroy();
    this.#agents.clear();
  }

  #agent(dc: string): Agent {
    let agent = this.#agents.get(dc);
    if (agent === undefined) this.#agents.set(dc, (agent = new Agent({ keepAlive: true, maxSockets: 256 })));
    return agent;
  }
}

/** `<shard>:<epoch>:<position>` of a Hothot-Position header. */
export function placeOf(headers: IncomingHttpHeaders): Place | null {
  const match = /^(\d+):(\d+):(\d+)$/.exec(text(headers["hothot-position"]) ?? "");
  return match === null ? null : { shard: Number(match[1]), epoch: Number(match[2]), position: Number(match[3]) };
}

/** The version of an ETag header. */
export function versionOf(headers: IncomingHttpHeaders): number | null {
  const match = /^(?:W\/)?"(\d+)"$/.exec(text(headers.etag) ?? "");
  return match === null ? null : Number(match[1]);
}

export const text = (header: string | string[] | undefined): string | null =>
  typeof header === "string" ? header : (header?.[0] ?? null);

/** The `code` of a problem+json body. */
export function codeOf(answer: Answer): string | null {
  if (answer.status < 400) return null;
  const match = /"code"\s*:\s*"([a-z_]+)"/.exec(answer.text);
  return match?.[1] ?? null;
}
