import { accessSync, constants, mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";
import { checkout } from "./checkout.js";
import { lastLines } from "./logs.js";
import type { natsHeartbeatUser } from "./nats-config.js";
import { natsConfig, natsUser, type NatsConfig } from "./nats-config.js";
import { endProcess, isAlive, launch, running, type ProcessId } from "./processes.js";
import { until } from "./wait.js";

export interface NatsOptions extends Omit<NatsConfig, "storeDir"> {
  /** Holds the configuration and the store. */
  readonly dir: string;
  readonly logFile: string;
  readonly pidFile: string;
}

/** One site's nats-server on loopback; its process outlives the one that starts it. */
export class NatsServer {
  readonly #options: NatsOptions;

  constructor(options: NatsOptions) {
    this.#options = options;
  }

  get name(): string {
    return this.#options.name;
  }

  /** For clients of the account with the log; heartbeats use the same address as `hothot-hb`. */
  url(user: typeof natsUser | typeof natsHeartbeatUser | "sys" = natsUser, port = this.#options.clientPort): string {
    return `nats://${user}:${this.#options.password}@127.0.0.1:${port}`;
  }

  get monitorUrl(): string {
    return `http://127.0.0.1:${this.#options.monitorPort}`;
  }

  process(): ProcessId | undefined {
    return running(this.#options.pidFile);
  }

  /**
   * Starts the server unless it runs, and waits until it takes clients; its cluster may still be electing.
   * @throws FatalError nats_failed, with the end of its log
   */
  async start(): Promise<ProcessId> {
    const already = this.process();
    if (already !== undefined) return already;
    const { dir, logFile, pidFile } = this.#options;
    mkdirSync(path.dirname(dir), { recursive: true });
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const file = path.join(dir, "nats.conf");
    writeFileSync(file, natsConfig({ ...this.#options, storeDir: dir }), { mode: 0o600 });
    const started = await launch({ command: findNatsServer(), args: ["-c", file], logFile, pidFile });
    const ready = await until(() => !isAlive(started) || this.#answers(), 30_000, 25);
    if (ready && isAlive(started)) return started;
    await endProcess(started, "SIGKILL", 1000);
    throw new FatalError(
      "nats_failed",
      `nats-server of ${this.name} does not start:\n${lastLines(logFile, 5)}`,
      `See ${logFile}; another port: --port-base.`,
    );
  }

  async stop(): Promise<void> {
    const process_ = this.process();
    if (process_ !== undefined) await endProcess(process_, "SIGTERM", 15_000);
  }

  async #answers(): Promise<boolean> {
    try {
      return (await fetch(`${this.monitorUrl}/varz`, { signal: AbortSignal.timeout(1000) })).ok;
    } catch {
      return false;
    }
  }
}

/** @throws FatalError no_nats_server */
export function findNatsServer(): string {
  const named = process.env["HOTHOT_NATS_SERVER"];
  const folders = (process.env["PATH"] ?? "").split(path.delimiter);
  const candidates =
    named !== undefined && named !== ""
      ? [named]
      : [path.join(checkout, ".cache", "bin"), ...folders].map((folder) => path.join(folder, "nats-server"));
  const found = candidates.find(isExecutable);
  if (found !== undefined) return found;
  throw new FatalError(
    "no_nats_server",
    "There is no nats-server.",
    "Run `npm run setup`, which fetches it, or name one with HOTHOT_NATS_SERVER.",
  );
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
