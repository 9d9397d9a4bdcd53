import { Failure } from "./failure.js";

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: unknown;
  /** The server that answered. */
  readonly url: string;
}

export interface RequestOptions {
  readonly body?: unknown;
  /** Sent as it is, instead of a body. */
  readonly text?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
}

/** JSON over HTTP with the first of several servers that can be reached. */
export class Client {
  readonly #urls: string[];
  readonly #token: string | undefined;

  constructor(urls: readonly string[], token: string | undefined) {
    this.#urls = urls.map((url) => url.replace(/\/+$/, ""));
    this.#token = token;
  }

  get urls(): readonly string[] {
    return this.#urls;
  }

  at(url: string): Client {
    return new Client([url], this.#token);
  }

  /** @throws Failure with the problem's code, `unreachable` or `deadline_exceeded` */
  async request(method: string, path: string, options: RequestOptions = {}): Promise<Answer> {
    const { response, url } = await this.open(method, path, options);
    const text = await response.text();
    const body = parse(text);
    if (response.ok) return { status: response.status, headers: response.headers, body, url };
    throw failureOf(response.status, body, text);
  }

  async get<T>(path: string, options: RequestOptions = {}): Promise<T> {
    return (await this.request("GET", path, options)).body as T;
  }

  /** Objects of a newline-delimited body, as they arrive. */
  async *lines<T>(path: string, timeoutMs: number): AsyncGenerator<T> {
    const { response } = await this.open("GET", path, { timeoutMs });
    if (!response.ok) {
      const text = await response.text();
      throw failureOf(response.status, parse(text), text);
    }
    let rest = "";
    const reader = (response.body ?? new ReadableStream<Uint8Array>()).pipeThrough(new TextDecoderStream()).getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read().catch((error: unknown) => {
          throw cutOff(error, timeoutMs);
        });
        if (done) break;
        const parts = (rest + value).split("\n");
        rest = parts.pop() ?? "";
        for (const part of parts) if (part.trim() !== "") yield JSON.parse(part) as T;
      }
    } finally {
      await reader.cancel().catch(() => undefined);
    }
    if (rest.trim() !== "") yield JSON.parse(rest) as T;
  }

  /** A bulk request: newline-delimited clusters, and a result for each. */
  async bulk<T>(text: string, key: string, timeoutMs: number): Promise<T[]> {
    const { response } = await this.open("POST", "/v1/clusters/bulk", {
      text,
      timeoutMs,
      headers: { "content-type": "application/x-ndjson", "idempotency-key": key },
    });
    let answer: string;
    try {
      answer = await response.text();
    } catch (error) {
      // Cut off on the way: with the same key it can be sent again.
      throw new Failure("outcome_unknown", "The answer was cut off.", { cause: error });
    }
    if (!response.ok) throw failureOf(response.status, parse(answer), answer);
    const linesOf = (whole: string): string[] => whole.split("\n").filter((line) => line.trim() !== "");
    const results = linesOf(answer);
    if (results.length !== linesOf(text).length)
      throw new Failure("outcome_unknown", `The answer has ${results.length} lines for ${linesOf(text).length}.`);
    return results.map((line) => JSON.parse(line) as T);
  }

  /** All items of a list, page by page; at most `limit` of them. */
  async list<T>(path: string, query: Readonly<Record<string, string | undefined>>, limit = Infinity): Promise<T[]> {
    const items: T[] = [];
    for (let cursor: string | undefined; items.length < limit;) {
      const wanted = queryOf({ ...query, cursor, limit: String(Math.min(100, limit - items.length)) });
      const page: { items: T[]; nextCursor?: string | null } = await this.get(`${path}?${wanted}`);
      items.push(...page.items);
      cursor = page.nextCursor ?? undefined;
      if (cursor === undefined) break;
    }
    return items;
  }

  private async open(
    method: string,
    path: string,
    options: RequestOptions,
  ): Promise<{ response: Response; url: string }> {
    const { body, text, headers = {}, timeoutMs = 30_000 } = options;
    let last: unknown;
    for (const url of this.#urls) {
      try {
        const response = await fetch(`${url}${path}`, {
          method,
          headers: {
            ...(body === undefined ? {} : { "content-type": "application/json" }),
            ...(this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` }),
            ...headers,
          },
          ...(text !== undefined ? { body: text } : body === undefined ? {} : { body: JSON.stringify(body) }),
          signal: AbortSignal.timeout(timeoutMs),
        });
        return { response, url };
      } catch (error) {
        if ((error as Error).name === "TimeoutError")
          throw new Failure("deadline_exceeded", `${url} did not answer within ${timeoutMs} ms.`, { cause: error });
        last = error;
        // Only who was never reached did nothing with the request.
        if (!neverReached(error)) break;
      }
    }
    throw new Failure("unreachable", `${this.#urls.join(", ")}: no server answers.`, {
      wayOut: "Start a local stack with `hothot up`, or name a server with --url or HOTHOT_URL.",
      cause: last,
    });
  }
}

export function queryOf(values: Readonly<Record<string, string | undefined>>): string {
  return new URLSearchParams(
    Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== undefined),
  ).toString();
}

function cutOff(cause: unknown, timeoutMs: number): Failure {
  if ((cause as Error).name === "TimeoutError")
    return new Failure("deadline_exceeded", `The answer was not complete within ${timeoutMs} ms.`, { cause });
  return new Failure("unreachable", "The answer was cut off before its end: what came of it says nothing.", {
    wayOut: "Repeat it; the server's log says why it stopped.",
    cause,
  });
}

function neverReached(error: unknown): boolean {
  const { code, errors } = ((error as Error).cause ?? {}) as { code?: string; errors?: { code?: string }[] };
  return code === "ECONNREFUSED" || (errors ?? []).some((inner) => inner.code === "ECONNREFUSED");
}

function failureOf(status: number, body: unknown, text: string): Failure {
  const problem = (typeof body === "object" && body !== null ? body : {}) as {
    code?: string;
    detail?: string;
    title?: string;
    errors?: { path: string; message: string }[];
  };
  const faults = (problem.errors ?? []).map((fault) => `\n  ${fault.path}: ${fault.message}`).join("");
  const detail = problem.detail ?? problem.title ?? text.slice(0, 200);
  return new Failure(
    problem.code ?? `http_${status}`,
    `${detail}${faults}`,
    problem.code === undefined ? {} : { problem: body },
  );
}

function parse(text: string): unknown {
  if (text === "") return undefined;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
