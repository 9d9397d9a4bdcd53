import type { Time } from "../../infra/clock.js";

export interface TransportOptions {
  /** Base URLs, the nearest first: one is used until it fails, then the next. */
  readonly urls: readonly string[];
  readonly token?: string | undefined;
  readonly time: Time;
}

export interface Call {
  readonly method: "GET" | "PUT" | "POST" | "DELETE";
  /** From the base URL, beginning with "/". */
  readonly path: string;
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  /** For this one try, milliseconds. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  /** JSON, or nothing. */
  readonly body: unknown;
}

/** No answer came: the URL could not be reached, was too slow, or the caller gave up. What was sent may have had an effect. */
export class Unanswered extends Error {
  readonly code = "unreachable";

  constructor(url: string, cause: unknown) {
    super(`no answer from ${url}`, { cause });
    this.name = "Unanswered";
  }
}

/** A nearer URL is asked after this time whether it serves again; twice as long after each time that it doesn't. */
const homeMs = 3_000;
const longestHomeMs = 20_000;
const probeMs = 1_000;

/**
 * One try at a time, over several URLs: it stays with the one that works, and goes back to a nearer one when that says, beside
 * the calls, that it serves again.
 */
export class Transport {
  readonly #options: TransportOptions;
  #current = 0;
  #probing = false;
  #probeAt = 0;
  #probeWaitMs = homeMs;

  /** @throws TypeError without a URL, or with one that is none. */
  constructor(options: TransportOptions) {
    if (options.urls.length === 0) throw new TypeError("at least one URL is needed");
    for (const url of options.urls) new URL(url);
    this.#options = options;
  }

  get url(): string {
    return this.#options.urls[this.#current] ?? "";
  }

  /** @throws Unanswered; the next call goes to the next URL. So it does after a 503. */
  async send(call: Call): Promise<Answer> {
    const { urls, token, time } = this.#options;
    this.#goHome();
    const used = this.#current;
    const url = urls[used] ?? "";
    const late = new AbortController();
    const timer = time.after(call.timeoutMs, () =>
      late.abort(new Error(`no answer within ${Math.round(call.timeoutMs)} ms`)),
    );
    const giveUp = (): void => late.abort(call.signal?.reason);
    if (call.signal?.aborted === true) giveUp();
    else call.signal?.addEventListener("abort", giveUp, { once: true });
    try {
      const response = await fetch(url.replace(/\/$/, "") + call.path, {
        method: call.method,
        headers: {
          accept: "application/json, application/problem+json",
          ...(call.body === undefined ? {} : { "content-type": "application/json" }),
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...call.headers,
        },
        ...(call.body === undefined ? {} : { body: JSON.stringify(call.body) }),
        signal: late.signal,
      });
      const body = parse(await response.text());
      if (response.status === 503) this.#leave(used);
      return { status: response.status, headers: response.headers, body };
    } catch (error) {
      if (call.signal?.aborted !== true) this.#leave(used);
      throw new Unanswered(url, error);
    } finally {
      timer.cancel();
      call.signal?.removeEventListener("abort", giveUp);
    }
  }

  #leave(used: number): void {
    if (this.#current !== used) return;
    this.#current = (used + 1) % this.#options.urls.length;
    this.#probeAt = this.#options.time.monotonic() + this.#probeWaitMs;
  }

  #goHome(): void {
    const { urls, time } = this.#options;
    if (this.#current === 0 || this.#probing || time.monotonic() < this.#probeAt) return;
    this.#probing = true;
    const nearer = urls.slice(0, this.#current);
    void Promise.all(nearer.map((url) => this.#serves(url)))
      .then((serve) => {
        const first = serve.indexOf(true);
        if (first >= 0 && first < this.#current) this.#current = first;
        this.#probeWaitMs = first === 0 ? homeMs : Math.min(longestHomeMs, 2 * this.#probeWaitMs);
        this.#probeAt = time.monotonic() + this.#probeWaitMs;
      })
      .finally(() => (this.#probing = false));
  }

  async #serves(url: string): Promise<boolean> {
    const late = new AbortController();
    const timer = this.#options.time.after(probeMs, () => late.abort());
    try {
      const answer = await fetch(`${url.replace(/\/$/, "")}/readyz`, { signal: late.signal });
      await answer.body?.cancel();
      return answer.ok;
    } catch {
      return false;
    } finally {
      timer.cancel();
    }
  }
}

function parse(text: string): unknown {
  if (text === "") return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
