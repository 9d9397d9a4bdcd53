import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import type { Server } from "node:net";
import path from "node:path";
import { checkout } from "../../infra/local/checkout.js";
import { holdPort } from "../../infra/local/ports.js";
import type { SitePids } from "../../infra/local/stack-site.js";
import { LocalStack } from "../../infra/local/stack.js";
import { until as poll } from "../../infra/local/wait.js";
import { endFolder, freshFolder } from "./folder.js";
import { claimPorts } from "./ports.js";

export interface TestStackOptions {
  readonly dcs?: readonly string[];
  readonly witness?: string;
  readonly shards?: number;
  readonly partitions?: number;
  readonly nodes?: number;
  /** Each datacenter's PostgreSQL has a synchronous standby. */
  readonly standby?: boolean;
  /** Milliseconds; with it (0 allowed) links can be cut. */
  readonly rttMs?: number;
  readonly worker?: boolean;
  /** Provisioners of Coopr may work: see `cooprUrl`. */
  readonly coopr?: boolean;
  /** In a whole test run no other stack is up meanwhile: for tests that measure times. */
  readonly alone?: boolean;
  /** Leases that a pause of a busy machine does not end: for tests that take the owners of the beginning for granted. */
  readonly steady?: boolean;
  /** Further HOTHOT_ variables of the nodes. */
  readonly env?: Readonly<Record<string, string>>;
}

export interface HttpAnswer {
  readonly status: number;
  readonly headers: Headers;
  /** Parsed when it is JSON, else the text; undefined when empty. */
  readonly body: unknown;
}

export interface CliResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export type SimulatedFault = "crash" | "pause" | "resume" | "restart" | "isolate" | "cut" | "heal";

const steadily = { HOTHOT_LEASE_MS: "3000", HOTHOT_DB_DEAD_MS: "5000" };
/** Beyond the ports of a stack with two nodes in each of three datacenters. */
const cooprOffset = 80;
/** Milliseconds that a test waits for the one stack that may run at a time, and for one command. */
const turnMs = 900_000;
const cliMs = 180_000;

/** A local stack in a folder and a port range of its own, that leaves nothing behind. */
export class TestStack {
  readonly dir: string;
  readonly dcs: readonly string[];
  readonly portBase: number;
  readonly stack: LocalStack;
  readonly #release: () => Promise<void>;

  constructor(stack: LocalStack, release: () => Promise<void>) {
    this.stack = stack;
    this.dir = stack.dir;
    this.portBase = stack.file.portBase;
    this.dcs = stack.datacenters.map((site) => site.name);
    this.#release = release;
  }

  url(dc: string): string {
    return this.stack.url(dc);
  }

  /** Where a datacenter listens for provisioners. */
  cooprUrl(dc: string): string {
    return `http://127.0.0.1:${this.portBase + cooprOffset + this.stack.site(dc).entry.slot}`;
  }

  /** One request to a datacenter; `body` goes as JSON, or as it is when it is a string. Fails when nobody answers within 30 s. */
  async request(
    dc: string,
    method: string,
    where: string,
    body?: unknown,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<HttpAnswer> {
    const answer = await fetch(`${this.url(dc)}${where}`, {
      method,
      headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
      ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
      signal: AbortSignal.timeout(30_000),
    });
    const text = await answer.text();
    const json =
      /\bjson\b/.test(answer.headers.get("content-type") ?? "") &&
      !/ndjson/.test(answer.headers.get("content-type") ?? "");
    return {
      status: answer.status,
      headers: answer.headers,
      body: text === "" ? undefined : json ? (JSON.parse(text) as unknown) : text,
    };
  }

  /** A fault, by the code that `hothot simulate` runs; `cut` and `heal` also take a link `a:b`; one way only what `a` sends is lost. */
  async simulate(action: SimulatedFault, target: string, oneWay = false): Promise<void> {
    const [site = "", other] = target.split(":");
    if (action === "crash") await this.stack.crash(site);
    else if (action === "pause") this.stack.pause(site);
    else if (action === "resume") this.stack.resume(site);
    else if (action === "restart") await this.stack.restart(site);
    else if (action === "heal") await this.stack.heal(site, other);
    else await this.stack.cut(site, other, oneWay);
  }

  pids(site: string): SitePids {
    return this.stack.pids(site);
  }

  /** Runs `hothot ...args --dir <this stack's>`. */
  cli(...args: string[]): Promise<CliResult> {
    return runCli([...args, "--dir", this.dir]);
  }

  /** What the node n1 of a datacenter has logged. */
  logs(dc: string, part = "n1"): string {
    return readFileSync(path.join(this.dir, dc, `${part}.log`), "utf8");
  }

  /** For the message of a test that fails: what every datacenter's node n1 has said last, but for refused requests and each shard's opening. */
  lastWords(lines = 40): string {
    const much = /"component":"(http|replica-store|ownership)"/;
    return this.dcs
      .map((dc) => {
        const said = this.logs(dc)
          .split("\n")
          .filter((line) => line !== "" && !much.test(line));
        return [`--- ${dc}`, ...said.slice(-lines).map((line) => line.slice(0, 400))].join("\n");
      })
      .join("\n");
  }

  /**
   * Waits until `condition` gives something other than undefined or false, and gives that. A condition that throws has not come true yet.
   * @throws Error that says what was waited for
   */
  async until<T>(
    condition: () => Promise<T | undefined | false> | T | undefined | false,
    ms: number,
    what: string,
  ): Promise<T> {
    let last: unknown;
    const found = await poll(
      async () => {
        try {
          return await condition();
        } catch (error) {
          last = error;
          return undefined;
        }
      },
      ms,
      25,
    );
    if (found !== undefined) return found;
    throw new Error(`not within ${ms} ms: ${what}`, { cause: last });
  }

  /** Ends all processes and removes all files. */
  async stop(): Promise<void> {
    await endFolder(this.dir);
    await this.#release();
  }
}

/** Starts a stack and waits until every datacenter serves. */
export async function startStack(options: TestStackOptions = {}): Promise<TestStack> {
  const { alone, coopr, steady, env, ...rest } = options;
  const { dir, portBase, release } = await freshStackFolder(alone);
  try {
    const ports = coopr === true ? { portBase, cooprPort: portBase + cooprOffset } : { portBase };
    const settings = { ...(steady === true ? steadily : {}), ...env };
    return new TestStack(await LocalStack.up(dir, { ...rest, ...ports, env: settings }), release);
  } catch (error) {
    await endFolder(dir);
    await release();
    throw error;
  }
}

/** Where a stack can be started by the test itself: a folder and ports of its own. End it by `endFolder(dir)` and `release()`. */
export async function freshStackFolder(
  alone = false,
): Promise<{ dir: string; portBase: number; release: () => Promise<void> }> {
  const turn = await takeTurn(alone);
  const ports = await claimPorts();
  const release = async (): Promise<void> => {
    await ports.release();
    for (const slot of turn) slot.close();
  };
  return { dir: freshFolder("stack"), portBase: ports.base, release };
}

/** Runs the command-line program as a user does, `input` on a pipe; with `killAt` it gets a SIGKILL as soon as it says that. */
export function runCli(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  killAt?: RegExp,
  timeoutMs = cliMs,
  input?: string,
): Promise<CliResult> {
  return new Promise((resolve, reject) => {
    const clean = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !name.startsWith("HOTHOT_") && name !== "NODE_TEST_CONTEXT"),
    );
    const child = spawn(process.execPath, [path.join(checkout, "infra/local/hothot.mjs"), ...args], {
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...clean, ...env },
      timeout: timeoutMs,
    });
    // One that is killed reads no more.
    child.stdin.on("error", () => undefined).end(input);
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      if (killAt?.test(stderr) === true) child.kill("SIGKILL");
    });
    child.once("error", reject);
    // What it started may go on behind it, and hold its output open.
    child.once(killAt === undefined ? "close" : "exit", (code: number | null) =>
      resolve({ code: code ?? -1, stdout, stderr }),
    );
  });
}

/** Places for stacks in a whole test run; a stack that measures takes all of them, always in this order. */
const slots = [19_998, 19_999];

async function takeTurn(alone: boolean): Promise<Server[]> {
  if (process.env["TEST_FEW_STACKS"] === undefined) return [];
  const taken: Server[] = [];
  for (const choices of alone ? slots.map((slot) => [slot]) : [[...slots].reverse()]) {
    const turn = await poll(
      async () => {
        for (const slot of choices) {
          const held = await holdPort(slot);
          if (held !== undefined) return held;
        }
        return undefined;
      },
      turnMs,
      100,
    );
    if (turn === undefined) throw new Error(`another test's stack did not end within ${turnMs} ms`);
    taken.push(turn);
  }
  return taken;
}
