import PQueue from "p-queue";
import { systemTime, within, type Time } from "../../infra/clock.js";
import { asError } from "../../infra/errors.js";
import { silentLogger, type Logger } from "../../infra/logger.js";
import { systemRandom, type Random } from "../../infra/random.js";
import { TaskRun, type Handler, type Task } from "./task-run.js";
import { Transport } from "./transport.js";

export type { Handler, Task, TaskContext, TaskResult } from "./task-run.js";

export interface WorkerOptions {
  /** Base URL of a datacenter, or several, the nearest first: the next one is used when one fails, a nearer one when it serves again. */
  readonly urls: readonly string[] | string;
  readonly token?: string;
  /** The registration's name; the same one is valid in every datacenter. */
  readonly id: string;
  /** How many tasks the service may give to this id at once, over all processes that use it; `concurrency` by default. */
  readonly capacity?: number;
  readonly labels?: Readonly<Record<string, string>>;
  /** Only tasks of clusters with these labels. */
  readonly clusterLabels?: Readonly<Record<string, string>>;
  /** By task name; "*" takes all names that have none. */
  readonly handlers: Readonly<Record<string, Handler>>;
  /** Tasks that run at once in this process. */
  readonly concurrency: number;
  readonly log?: Logger;
  readonly time?: Time;
  readonly random?: Random;
  /** How long one take waits at the service, milliseconds; 20,000 by default. */
  readonly waitMs?: number;
  /** How long `stop` waits for handlers before their signals are aborted, and for their finishes after that, milliseconds; 30,000. */
  readonly stopMs?: number;
}

export interface Worker {
  /** Takes no more tasks, waits for those that run, then aborts what is left. May be called again. */
  stop(): Promise<void>;
  /** Tasks that run now. */
  readonly running: number;
}

/** Begins to work at once: registers, and takes tasks until it is stopped. */
export function createWorker(options: WorkerOptions): Worker {
  const worker = new TaskWorker(options);
  worker.begin();
  return worker;
}

class TaskWorker implements Worker {
  readonly #options: WorkerOptions;
  readonly #time: Time;
  readonly #random: Random;
  readonly #log: Logger;
  readonly #transport: Transport;
  readonly #queue: PQueue;
  readonly #runs = new Map<string, TaskRun>();
  readonly #stopping = new AbortController();
  #loop: Promise<void> = Promise.resolve();
  #stopped: Promise<void> | undefined;
  /** Wakes up who waits for a slot. */
  #freed: () => void = () => {};
  /** Of the registration: a datacenter waits until it knows it. */
  #position: string | null = null;

  constructor(options: WorkerOptions) {
    this.#options = options;
    this.#time = options.time ?? systemTime;
    this.#random = options.random ?? systemRandom;
    this.#log = (options.log ?? silentLogger).with({ component: "worker", worker: options.id });
    const urls = typeof options.urls === "string" ? [options.urls] : options.urls;
    this.#transport = new Transport({ urls, token: options.token, time: this.#time });
    this.#queue = new PQueue({ concurrency: options.concurrency });
  }

  get running(): number {
    return this.#runs.size;
  }

  begin(): void {
    this.#loop = this.#work();
  }

  stop(): Promise<void> {
    return (this.#stopped ??= (async () => {
      this.#stopping.abort();
      this.#freed();
      await this.#loop;
      const ms = this.#options.stopMs ?? 30_000;
      if ((await within(this.#time, ms, this.#queue.onIdle(), "late")) !== "late") return;
      for (const run of this.#runs.values()) run.stop();
      if ((await within(this.#time, Math.min(ms, 5_000), this.#queue.onIdle(), "late")) !== "late") return;
      for (const run of this.#runs.values()) run.abandon();
      await within(this.#time, 1_000, this.#queue.onIdle(), "late");
    })());
  }

  async #work(): Promise<void> {
    const { signal } = this.#stopping;
    let registered = false;
    for (let failures = 0; !signal.aborted;) {
      try {
        if (!registered) {
          await this.#register();
          registered = true;
        }
        const room = await this.#room();
        if (signal.aborted) return;
        const tasks = await this.#take(room);
        if (tasks === "unknown") {
          registered = false;
          throw new Error("the service does not know this worker");
        }
        failures = 0;
        for (const task of tasks) this.#begin(task);
      } catch (error) {
        if (signal.aborted) return;
        failures++;
        if (failures === 1 || failures % 10 === 0)
          this.#log.warn("worker can't take tasks", { failures, url: this.#transport.url, error });
        await this.#time.sleep(
          Math.min(5_000, 100 * 2 ** Math.min(failures - 1, 6)) * (0.5 + this.#random.next() / 2),
          signal,
        );
      }
    }
  }

  async #register(): Promise<void> {
    const { id, capacity, concurrency, labels } = this.#options;
    const answer = await this.#transport.send({
      method: "PUT",
      path: `/v1/workers/${encodeURIComponent(id)}`,
      body: { capacity: capacity ?? concurrency, ...(labels === undefined ? {} : { labels }) },
      timeoutMs: 10_000,
      signal: this.#stopping.signal,
    });
    if (answer.status >= 300) throw refusal("the registration was refused", answer);
    this.#position = answer.headers.get("hothot-position");
    this.#log.info("worker registered", { url: this.#transport.url });
  }

  /** Slots that are free; waits for the first one, or for the stop. */
  async #room(): Promise<number> {
    const { signal } = this.#stopping;
    for (;;) {
      const free = this.#options.concurrency - this.#queue.size - this.#queue.pending;
      if (free > 0 || signal.aborted) return free;
      await new Promise<void>((resolve) => (this.#freed = resolve));
    }
  }

  async #take(max: number): Promise<readonly Task[] | "unknown"> {
    const { id, handlers, clusterLabels } = this.#options;
    const waitMs = this.#options.waitMs ?? 20_000;
    const names = Object.keys(handlers);
    const answer = await this.#transport.send({
      method: "POST",
      path: "/v1/tasks/take",
      body: {
        workerId: id,
        waitMs,
        max,
        ...(names.includes("*") ? {} : { names }),
        ...(clusterLabels === undefined ? {} : { labels: clusterLabels }),
      },
      headers: {
        ...(this.#position === null ? {} : { "hothot-min-position": this.#position }),
        "hothot-timeout-ms": String(waitMs + 5_000),
      },
      timeoutMs: waitMs + 6_000,
      signal: this.#stopping.signal,
    });
    if (answer.status === 404) return "unknown";
    // The epoch of that position is over: the registration may be gone with it.
    if (answer.status === 410) return "unknown";
    if (answer.status !== 200) throw refusal("a take was refused", answer);
    const { tasks } = answer.body as { tasks?: readonly Task[] };
    return tasks ?? [];
  }

  #begin(task: Task): void {
    const handler = this.#options.handlers[task.name] ?? this.#options.handlers["*"];
    if (handler === undefined)
      return this.#log.error("a task without a handler came", { task: task.id, name: task.name });
    // The service has offered it anew, so it has counted what the earlier try here had to say, or does not want it any more.
    this.#runs.get(task.id)?.abandon();
    const run = new TaskRun(task, {
      transport: this.#transport,
      workerId: this.#options.id,
      handler,
      time: this.#time,
      random: this.#random,
      log: this.#log,
    });
    this.#runs.set(task.id, run);
    void this.#queue
      .add(() => run.run())
      .catch((error: unknown) => this.#log.error("a task's run broke", { task: task.id, error: asError(error) }))
      .finally(() => {
        if (this.#runs.get(task.id) === run) this.#runs.delete(task.id);
        this.#freed();
      });
  }
}

function refusal(what: string, answer: { readonly status: number; readonly body: unknown }): Error {
  const body = (typeof answer.body === "object" && answer.body !== null ? answer.body : {}) as Record<string, unknown>;
  const code = typeof body["code"] === "string" ? body["code"] : `http_${answer.status}`;
  const detail = typeof body["detail"] === "string" ? `: ${body["detail"]}` : "";
  return Object.assign(new Error(`${what} with ${answer.status} ${code}${detail}`), { code });
}
