import { existsSync } from "node:fs";
import { FatalError } from "../errors.js";
import { mainProgram } from "./checkout.js";
import { lastLines } from "./logs.js";
import { endProcess, launch, running, type ProcessId } from "./processes.js";
import { until } from "./wait.js";

export interface NodeOptions {
  /** `<dc>/<node>`, for messages. */
  readonly label: string;
  readonly port: number;
  /** Its HOTHOT_ variables. */
  readonly settings: Readonly<Record<string, string>>;
  readonly logFile: string;
  readonly pidFile: string;
}

/** One hothot process of a stack (`hothot serve`), as a user would deploy it. */
export class HothotNode {
  readonly #options: NodeOptions;

  constructor(options: NodeOptions) {
    this.#options = options;
  }

  get label(): string {
    return this.#options.label;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#options.port}`;
  }

  process(): ProcessId | undefined {
    return running(this.#options.pidFile);
  }

  async start(): Promise<ProcessId> {
    requireMainProgram();
    return (
      this.process() ??
      (await launch({
        command: process.execPath,
        args: ["--enable-source-maps", mainProgram, "serve"],
        env: nodeEnvironment(this.#options.settings),
        logFile: this.#options.logFile,
        pidFile: this.#options.pidFile,
      }))
    );
  }

  async stop(): Promise<void> {
    const process_ = this.process();
    if (process_ !== undefined) await endProcess(process_, "SIGTERM", 15_000);
  }

  /**
   * Waits until `/readyz` (or `/livez`) says yes.
   * @throws FatalError node_failed when the process ends, or is not there in time
   */
  async wait(probe: "readyz" | "livez", ms: number): Promise<void> {
    let said = "it does not answer";
    const done = await until(
      async () => {
        if (this.process() === undefined) return "died";
        try {
          const answer = await fetch(`${this.url}/${probe}`, { signal: AbortSignal.timeout(2000) });
          said = (await answer.text()).slice(0, 300);
          return answer.ok ? "ready" : undefined;
        } catch {
          return undefined;
        }
      },
      ms,
      150,
    );
    if (done === "ready") return;
    throw this.failure(done === "died" ? "ended" : `is not ready after ${Math.round(ms / 1000)} s (${said})`);
  }

  /** That it did not do what it should, with the end of its log. */
  failure(what: string): FatalError {
    const log = lastLines(this.#options.logFile, 8);
    return new FatalError(
      "node_failed",
      `The hothot process ${this.label} ${what}. The end of its log:\n${log}`,
      `See ${this.#options.logFile}.`,
    );
  }
}

/** The caller's environment, with these HOTHOT_ variables and no others. */
export function nodeEnvironment(settings: Readonly<Record<string, string>>): Record<string, string | undefined> {
  const rest = Object.entries(process.env).filter(
    ([name]) => !name.startsWith("HOTHOT_") && !name.startsWith("npm_") && name !== "NODE_TEST_CONTEXT",
  );
  return { ...Object.fromEntries(rest), ...settings };
}

export function requireMainProgram(): void {
  if (!existsSync(mainProgram)) throw new FatalError("not_built", `${mainProgram} is missing.`, "Run `npm run build`.");
}
