import { connect, type Socket } from "node:net";
import { answerLength } from "./wire.js";

export interface Steady {
  /** Answers with a status of 2xx, per second. */
  readonly perSecond: number;
  readonly failed: number;
  /** Milliseconds from when a request was due until it was answered, so that waiting for a free connection counts. */
  readonly latencies: readonly number[];
}

/** Requests made beforehand at a given rate over some connections, until the time is over or the signal comes. */
export async function steady(
  url: URL,
  requests: readonly Buffer[],
  options: { readonly connections: number; readonly perSecond: number; readonly seconds: number },
  signal?: AbortSignal,
): Promise<Steady> {
  const latencies: number[] = [];
  let failed = 0;
  let issued = 0;
  const due: number[] = [];
  const idle: Connection[] = [];
  const all = Array.from(
    { length: options.connections },
    () => new Connection(url, (connection) => (idle.push(connection), feed())),
  );
  const feed = (): void => {
    while (idle.length > 0 && due.length > 0) {
      const at = due.shift() ?? 0;
      idle.pop()?.send(requests[issued++ % requests.length] ?? Buffer.alloc(0), (ok) => {
        if (ok) latencies.push(performance.now() - at);
        else failed++;
      });
    }
  };
  const began = performance.now();
  let asked = 0;
  await new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      const elapsed = performance.now() - began;
      const wanted = Math.floor((Math.min(elapsed, options.seconds * 1000) * options.perSecond) / 1000);
      for (; asked < wanted; asked++) due.push(performance.now());
      feed();
      if (elapsed < options.seconds * 1000 && signal?.aborted !== true) return;
      clearInterval(timer);
      resolve();
    }, 2);
  });
  const took = performance.now() - began;
  // What waits for a connection was not sent at this rate.
  failed += due.length;
  due.length = 0;
  await Promise.all(all.map((connection) => connection.end()));
  return { perSecond: (latencies.length * 1000) / took, failed, latencies };
}

const lastAnswerMs = 5_000;

/** One request at a time; a broken connection counts as a failure, and is made anew. */
class Connection {
  #socket: Socket | undefined;
  #got = Buffer.alloc(0);
  #answered: ((ok: boolean) => void) | undefined;
  #ended = false;

  constructor(
    private readonly url: URL,
    private readonly onIdle: (connection: Connection) => void,
  ) {
    this.#open();
  }

  send(request: Buffer, answered: (ok: boolean) => void): void {
    this.#answered = answered;
    this.#socket?.write(request);
  }

  /** Waits for the answer under way. */
  async end(): Promise<void> {
    this.#ended = true;
    const deadline = performance.now() + lastAnswerMs;
    while (this.#answered !== undefined && performance.now() < deadline)
      await new Promise((resolve) => setTimeout(resolve, 5));
    this.#socket?.destroy();
  }

  #open(): void {
    const socket = connect({ host: this.url.hostname, port: Number(this.url.port), noDelay: true });
    this.#socket = socket;
    this.#got = Buffer.alloc(0);
    socket.on("connect", () => this.onIdle(this));
    socket.on("data", (chunk) => {
      this.#got = this.#got.length === 0 ? chunk : Buffer.concat([this.#got, chunk]);
      const length = answerLength(this.#got);
      if (length === null || this.#got.length < length) return;
      const ok = this.#got[9] === 0x32;
      this.#got = Buffer.alloc(0);
      this.#done(ok);
      if (!this.#ended) this.onIdle(this);
    });
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#done(false);
      if (!this.#ended) setTimeout(() => this.#open(), 50);
    });
  }

  #done(ok: boolean): void {
    const answered = this.#answered;
    this.#answered = undefined;
    answered?.(ok);
  }
}
