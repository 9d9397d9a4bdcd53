import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import { Unanswered, type Answer, type Transport } from "./transport.js";

export interface Task {
  readonly id: string;
  readonly jobId: string;
  readonly clusterId: string;
  readonly name: string;
  readonly node: string | null;
  readonly stage: string;
  readonly attempt: number;
  readonly token: string;
  /** `{operation, cluster, node, job, results, try, fence}`: what it is about, and what earlier stages gave, by node. */
  readonly input: Readonly<Record<string, unknown>>;
  readonly leaseMs: number;
}

export interface TaskContext {
  /** Aborted when the task is not this worker's any more: its job ended or moved on, its lease ran out, or the worker stops. */
  readonly signal: AbortSignal;
  /** `<epoch>.<attempt>`: grows with each attempt, epoch first. For systems that must refuse an earlier attempt's calls. */
  readonly fence: string;
}

export interface TaskResult {
  /** Reaches later tasks' input, and the cluster's state in the end. */
  readonly result?: Readonly<Record<string, unknown>>;
  readonly stdout?: string;
  readonly stderr?: string;
}

/** What a worker does for a task. A thrown error is a failed try; its message (and `stdout`, `stderr` if it has them) are kept. */
export type Handler = (task: Task, context: TaskContext) => Promise<TaskResult | undefined>;

export interface TaskRunOptions {
  readonly transport: Transport;
  readonly workerId: string;
  readonly handler: Handler;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
}

const noFinish = Symbol("no finish");

/** The life of one taken task at its worker: the handler runs, heartbeats hold the lease, the finish is repeated until it is answered. */
export class TaskRun {
  readonly task: Task;
  readonly #options: TaskRunOptions;
  /** Aborts the handler. */
  readonly #stop = new AbortController();
  /** Aborts everything, the finish too. */
  readonly #abandon = new AbortController();
  #over = false;
  #leaseUntil: number;

  constructor(task: Task, options: TaskRunOptions) {
    this.task = task;
    this.#options = options;
    this.#leaseUntil = options.time.monotonic() + task.leaseMs;
  }

  /** Ends when the finish is answered or the task is not ours any more. Never rejects. */
  async run(): Promise<void> {
    const beating = this.#beat();
    const finish = await this.#handle();
    if (finish !== noFinish) await this.#finish(finish);
    this.#over = true;
    this.#abandon.abort();
    await beating;
  }

  /** The handler is told to stop; what it says then is still finished. */
  stop(): void {
    this.#stop.abort(new Error("the worker stops"));
  }

  /** Nothing more is sent for it: the service has given the task to somebody anew. */
  abandon(): void {
    this.#stop.abort(new Error("the task was given away"));
    this.#abandon.abort();
  }

  async #handle(): Promise<Finish | typeof noFinish> {
    const { handler } = this.#options;
    const fence = this.task.input["fence"];
    try {
      const context = { signal: this.#stop.signal, fence: typeof fence === "string" ? fence : "" };
      const { result, stdout, stderr } = (await handler(this.task, context)) ?? {};
      return { status: "ok", ...given({ result, stdout, stderr }) };
    } catch (error) {
      if (this.#abandon.signal.aborted) return noFinish;
      const { message, stdout, stderr } = error as { message?: unknown; stdout?: unknown; stderr?: unknown };
      const text = typeof message === "string" ? message : String(error);
      return {
        status: "failed",
        stderr: typeof stderr === "string" ? `${stderr}\n${text}` : text,
        ...(typeof stdout === "string" ? { stdout } : {}),
      };
    }
  }

  /** At a third of the lease. An answer that says stop, or none until the lease is over, ends the task here. */
  async #beat(): Promise<void> {
    const { time, log, workerId } = this.#options;
    let leaseMs = this.task.leaseMs;
    while (!this.#over && !this.#abandon.signal.aborted) {
      await time.sleep(leaseMs / 3, this.#abandon.signal);
      if (this.#over || this.#abandon.signal.aborted) return;
      try {
        const sent = time.monotonic();
        const answer = await this.#send("heartbeat", { token: this.task.token, workerId }, leaseMs / 3);
        const body = answer.body as { leaseMs?: unknown; stop?: unknown } | undefined;
        const gone = answer.status === 409 || answer.status === 404;
        if (gone || body?.stop === true) {
          log.info("task stopped by the service", { task: this.task.id, status: answer.status });
          return this.abandon();
        }
        if (answer.status === 200 && typeof body?.leaseMs === "number" && body.leaseMs > 0) {
          leaseMs = body.leaseMs;
          this.#leaseUntil = sent + leaseMs;
        }
      } catch (error) {
        if (!(error instanceof Unanswered)) log.warn("heartbeat failed", { task: this.task.id, error });
      }
      if (time.monotonic() >= this.#leaseUntil) {
        // Somebody else may have it by now. If the handler ends well all the same, its finish lets the service decide.
        this.#stop.abort(new Error("the task's lease ran out"));
      }
    }
  }

  async #finish(finish: Finish): Promise<void> {
    const { time, random, log, workerId } = this.#options;
    const number = this.task.input["try"];
    const tried = typeof number === "number" ? { try: number } : {};
    for (let tries = 0; !this.#abandon.signal.aborted; tries++) {
      try {
        const answer = await this.#send("finish", { token: this.task.token, workerId, ...tried, ...finish }, 10_000);
        if (answer.status < 400) return;
        const body = answer.body as { code?: unknown; retryable?: unknown } | undefined;
        if (answer.status < 500 && body?.retryable !== true) {
          log.warn("finish refused", { task: this.task.id, status: answer.status, code: body?.code });
          // Too much to keep: the service should still hear that the try is over.
          if (answer.status === 413 && (finish.result !== undefined || finish.stdout !== undefined)) {
            finish = { status: "failed", stderr: "the result was too large" };
            continue;
          }
          return;
        }
      } catch (error) {
        if (!(error instanceof Unanswered)) log.warn("finish failed", { task: this.task.id, error });
      }
      await time.sleep(
        Math.min(5_000, 100 * 2 ** Math.min(tries, 6)) * (0.5 + random.next() / 2),
        this.#abandon.signal,
      );
    }
  }

  #send(what: "heartbeat" | "finish", body: unknown, timeoutMs: number): Promise<Answer> {
    const path = `/v1/tasks/${encodeURIComponent(this.task.id)}/${what}`;
    return this.#options.transport.send({ method: "POST", path, body, timeoutMs, signal: this.#abandon.signal });
  }
}

interface Finish extends TaskResult {
  readonly status: "ok" | "failed";
}

function given(values: { [K in keyof TaskResult]-?: TaskResult[K] | undefined }): TaskResult {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}
