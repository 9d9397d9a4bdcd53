import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import { systemRandom, type Random } from "../../infra/random.js";
import type { Service } from "../../infra/service.js";
import { createWorker, type Handler, type Worker } from "../../routing/client/worker.js";
import { hashText } from "../../shards/ids.js";

export interface BuiltInWorkerOptions {
  /** The own node's base URL. */
  readonly url: string;
  readonly token?: string;
  readonly id: string;
  readonly concurrency: number;
  /** How long a simulated task takes, give or take a half, milliseconds. */
  readonly taskMs: number;
  /** How many of a hundred tries fail. */
  readonly failurePercent: number;
  readonly time: Time;
  readonly random?: Random;
  readonly log: Logger;
  /** How long a stop waits for running tasks, milliseconds. */
  readonly stopMs?: number;
}

/** The local stack's worker: takes every task from its own node and simulates it. */
export class BuiltInWorker implements Service {
  readonly name = "built-in worker";
  readonly #options: BuiltInWorkerOptions;
  #worker: Worker | undefined;

  constructor(options: BuiltInWorkerOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const { url, token, id, concurrency, time, log, random, stopMs } = this.#options;
    this.#worker = createWorker({
      urls: [url],
      ...(token === undefined ? {} : { token }),
      id,
      capacity: concurrency,
      concurrency,
      handlers: { "*": simulatedHandler(this.#options) },
      time,
      log,
      ...(random === undefined ? {} : { random }),
      stopMs: stopMs ?? 5_000,
    });
  }

  async drain(): Promise<void> {
    await this.#worker?.stop();
  }

  async stop(): Promise<void> {
    await this.#worker?.stop();
  }
}

/** Takes its time, fails now and then, and gives what a provider or a service would. */
export function simulatedHandler(
  options: Pick<BuiltInWorkerOptions, "taskMs" | "failurePercent" | "time" | "random">,
): Handler {
  const { taskMs, failurePercent, time } = options;
  const random = options.random ?? systemRandom;
  return async (task, { signal, fence }) => {
    await time.sleep(taskMs * (0.5 + random.next()), signal);
    signal.throwIfAborted();
    if (random.next() * 100 < failurePercent) throw new Error(`simulated failure of ${task.name}`);
    const result = simulatedResult(task.name, task.clusterId, task.node);
    return {
      ...(result === undefined ? {} : { result }),
      stdout: `${task.name} ${task.node ?? task.clusterId}: simulated, fence ${fence}\n`,
    };
  };
}

/** The same for the same node, as if the provider knew it again. */
function simulatedResult(name: string, clusterId: string, node: string | null): Record<string, unknown> | undefined {
  const hash = hashText(`${clusterId}/${node ?? ""}`);
  switch (name) {
    case "CREATE":
      return {
        providerid: `sim-${hash.toString(16).padStart(8, "0")}`,
        hostname: `${node ?? "node"}.${clusterId}.example`,
        ipaddresses: { access_v4: `10.${(hash >>> 16) & 255}.${(hash >>> 8) & 255}.${1 + (hash % 254)}` },
      };
    case "CONFIRM":
      return { reachable: true };
    case "BOOTSTRAP":
      return { automator: "shell" };
    default:
      return undefined;
  }
}
