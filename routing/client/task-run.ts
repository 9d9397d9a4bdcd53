import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import { storable } from "../../infra/storable.js";
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
  /** Reaches later tasks' input, and the cluster's state in the end. As JSON at most 64,000 bytes: one that is larger fails the try. */
  readonly result?: Readonly<Record<string, unknown>>;
  /** Of each output the last 64,000 characters are kept. */
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
/** The service keeps no more of an output than its last so many characters. */
const outputLimit = 64_000;
/** Of an output that was too much after all: some characters are six bytes in JSON. */
const shortOutput = 2_000;
/** Of a result: the service refuses bodies that are deeper than 32. */
const deepestResult = 31;

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
      return bounded({ status: "ok", ...given({ result: asJson(result), stdout, stderr }) }, outputLimit);
    } catch (error) {
      if (this.#abandon.signal.aborted) return noFinish;
      const { message, stdout, stderr } = error as { message?: unknown; stdout?: unknown; stderr?: unknown };
      const text = typeof message === "string" ? message : String(error);
      const finish: Finish = {
        status: "failed",
        stderr: typeof stderr === "string" ? `${stderr}\n${text}` : text,
        ...(typeof stdout === "string" ? { stdout } : {}),
      };
      return bounded(finish, outputLimit);
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
    let refusals = 0;
    for (let tries = 0; !this.#abandon.signal.aborted; tries++) {
      try {
        const answer = await this.#send("finish", { token: this.task.token, workerId, ...tried, ...finish }, 10_000);
        if (answer.status < 400) return;
        const body = answer.body as { code?: unknown; retryable?: unknown } | undefined;
        if (answer.status < 500 && body?.retryable !== true) {
          log.warn("finish refused", { task: this.task.id, status: answer.status, code: body?.code });
          if (answer.status !== 400 && answer.status !== 413) return;
          const instead = lesser(finish, answer, refusals++);
          if (instead === undefined) return;
          finish = instead;
          continue;
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

/** What is sent instead of a finish that can't be kept: the service should hear in any case that the try is over. */
function lesser(finish: Finish, { status, body }: Answer, refusals: number): Finish | undefined {
  const short = bounded(finish, shortOutput);
  const printed = (finish.stdout?.length ?? 0) + (finish.stderr?.length ?? 0);
  if (refusals === 0 && status === 413 && printed > shortOutput) return short;
  if (refusals > 1) return undefined;
  const { detail, errors } = (body ?? {}) as { detail?: unknown; errors?: unknown };
  const why = [detail, errors === undefined ? undefined : JSON.stringify(errors)]
    .filter((part) => typeof part === "string")
    .join(" ");
  const reason = `the finish of this try (${finish.status}) was refused with ${status}: ${why}`.slice(0, shortOutput);
  const stderr = typeof short.stderr === "string" ? `${short.stderr}\n${reason}` : reason;
  return bounded({ status: "failed", stderr }, 2 * shortOutput);
}

/** With the ends of what was printed, without what can't be stored. */
function bounded(finish: Finish, limit: number): Finish {
  const text = (output: string | undefined): string | undefined =>
    typeof output === "string" ? (storable(output.slice(-limit)) as string) : output;
  return { ...finish, ...given({ result: finish.result, stdout: text(finish.stdout), stderr: text(finish.stderr) }) };
}

/** As it will arrive. Throws for what can't be sent at all, such as a result that holds itself: the try has failed. */
function asJson(result: TaskResult["result"]): TaskResult["result"] {
  if (result === undefined) return undefined;
  return storable(JSON.parse(JSON.stringify(result)), deepestResult) as TaskResult["result"];
}

function given(values: { [K in keyof TaskResult]-?: TaskResult[K] | undefined }): TaskResult {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}
