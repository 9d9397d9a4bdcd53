import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import type { Server } from "node:net";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { asError, FatalError } from "../../infra/errors.js";
import { holdPort, isFree } from "../../infra/local/ports.js";
import { LocalStack } from "../../infra/local/stack.js";
import { systemRandom } from "../../infra/random.js";
import { summary } from "./report.js";
import { runStory, type RunningStack } from "./story.js";

const help = `Usage: npm run demo -- [options]

Starts three datacenters on this machine, writes and runs jobs in all of them, kills one, and measures what users see
until it has returned and all copies are equal. Takes about a minute; removes all that it made.

Options:
  --json           print one JSON object last (progress goes to stderr)
  --dir DIR        folder for its data, which must not exist or be empty (default: a fresh temporary one)
  --port-base P    first of the hundred ports that it uses (default: a free range)
  --rate W         writes per second over all datacenters, 1 to 10000 (default 300)
  --keep           leave data and logs in the folder
  --help           this text

Exit codes: 0 every promise was kept, 1 one broke or the run failed, 2 wrong usage.
`;

/** `npm run demo`. @returns the exit code */
export async function run(argv: readonly string[]): Promise<number> {
  const options = parse(argv);
  if (typeof options === "number") return options;
  const startedAt = performance.now();
  const out = options.json ? process.stderr : process.stdout;
  const tell = (line: string): void => {
    out.write(`${`${((performance.now() - startedAt) / 1000).toFixed(1)} s`.padStart(7)}  ${line}\n`);
  };
  const demo = new DemoStack(options, tell);
  // A signal ends the story at its next wait; what was started is stopped in any case.
  const interrupt = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void => {
    tell(`${signal}: stopping all`);
    interrupt.abort(new FatalError("interrupted", `stopped by ${signal}`, "Everything that it had started is gone."));
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    const stack = await demo.start();
    const { report, measured } = await runStory(stack, {
      random: systemRandom,
      tell,
      signal: interrupt.signal,
      writesPerSecond: options.rate,
    });
    tell("stopping all");
    await demo.end();
    out.write(`\n${summary(report, measured)}\n\n`);
    if (options.json) process.stdout.write(`${JSON.stringify(report.result)}\n`);
    return report.result.ok ? 0 : 1;
  } catch (error) {
    const failure = asError(error);
    process.stderr.write(
      `demo: ${failure.message}\n${failure instanceof FatalError ? `${failure.wayOut}\n` : `${failure.stack ?? ""}\n`}`,
    );
    if (options.json) process.stdout.write(`${JSON.stringify({ ok: false, error: failure.message })}\n`);
    return 1;
  } finally {
    await demo.end();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}

interface Options {
  readonly json: boolean;
  readonly keep: boolean;
  readonly dir: string | undefined;
  readonly portBase: number | undefined;
  readonly rate: number;
}

function parse(argv: readonly string[]): Options | number {
  const wrong = (message: string): number => {
    process.stderr.write(`${message}\n\n${help}`);
    return 2;
  };
  let values;
  try {
    ({ values } = parseArgs({
      args: [...argv],
      options: {
        json: { type: "boolean", default: false },
        keep: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
        dir: { type: "string" },
        "port-base": { type: "string" },
        rate: { type: "string", default: "300" },
      },
    }));
  } catch (error) {
    return wrong(asError(error).message);
  }
  if (values.help) {
    process.stdout.write(help);
    return 0;
  }
  const portBase = values["port-base"] === undefined ? undefined : Number(values["port-base"]);
  if (portBase !== undefined && (!Number.isInteger(portBase) || portBase < 1024 || portBase > 65_400)) {
    return wrong("--port-base must be a whole number from 1024 to 65400");
  }
  const rate = Number(values.rate);
  if (!Number.isInteger(rate) || rate < 1 || rate > 10_000)
    return wrong("--rate must be a whole number from 1 to 10000");
  if (values.dir !== undefined && existsSync(values.dir) && readdirSync(values.dir).length > 0) {
    return wrong(`${values.dir} is not empty: name another folder, so that nothing of yours is touched`);
  }
  return { json: values.json, keep: values.keep, dir: values.dir, portBase, rate };
}

/** Three datacenters in a folder and a port range of their own. */
class DemoStack {
  readonly #options: Options;
  readonly #tell: (line: string) => void;
  readonly #dir: string;
  #held: Server | undefined;
  #started: Promise<LocalStack> | undefined;
  #ended: Promise<void> | undefined;

  constructor(options: Options, tell: (line: string) => void) {
    this.#options = options;
    this.#tell = tell;
    this.#dir =
      options.dir === undefined ? mkdtempSync(path.join(os.tmpdir(), "hothot-demo-")) : path.resolve(options.dir);
  }

  async start(): Promise<RunningStack> {
    const portBase = this.#options.portBase ?? (await this.#freeRange());
    this.#tell("starting three datacenters, each with its own PostgreSQL, NATS and hothot process");
    this.#started = LocalStack.up(this.#dir, { portBase }, (line) => this.#tell(`  ${line}`));
    const stack = await this.#started;
    const dcs = stack.datacenters.map(({ name }) => name);
    this.#tell(`serving: ${dcs.map((dc) => `${dc} ${stack.url(dc)}`).join(", ")}`);
    return {
      dcs,
      url: (dc) => stack.url(dc),
      simulate: (action, site) => (action === "crash" ? stack.crash(site) : stack.restart(site)),
    };
  }

  /** Stops everything and removes the folder, once. */
  end(): Promise<void> {
    return (this.#ended ??= this.#end());
  }

  async #end(): Promise<void> {
    await this.#started?.catch(() => undefined);
    await LocalStack.find(this.#dir)?.down();
    this.#held?.close();
    if (this.#options.keep) this.#tell(`data and logs stay in ${this.#dir}`);
    else rmSync(this.#dir, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }

  /** A hundred free ports below those that systems give to clients; the first stays bound, so that two runs can't collide. */
  async #freeRange(): Promise<number> {
    const [first, count] = [14_000, 60];
    const offset = Math.floor(systemRandom.next() * count);
    for (let i = 0; i < count; i++) {
      const base = first + 100 * ((offset + i) % count);
      const held = await holdPort(base);
      if (held === undefined) continue;
      const others = Array.from({ length: 99 }, (_, index) => base + 1 + index);
      if ((await Promise.all(others.map(isFree))).every(Boolean)) {
        this.#held = held;
        return base;
      }
      held.close();
    }
    throw new FatalError("no_ports", "There is no free range of a hundred ports.", "Name one with --port-base.");
  }
}
