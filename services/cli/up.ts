import { watch } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { newStack, type StackOptions } from "../../infra/local/stack-file.js";
import { LocalStack } from "../../infra/local/stack.js";
import { pause } from "../../infra/local/wait.js";
import { endProgress } from "./output.js";
import { names, wholeNumber } from "./parse.js";
import { common, verb, type Session } from "./session.js";
import { statusRows, statusOf } from "./status.js";

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

interface UpOptions {
  readonly dcs?: string[];
  readonly witness?: string;
  readonly shards?: number;
  readonly partitions?: number;
  readonly portBase?: number;
  readonly rtt?: number;
  readonly nodes?: number;
  readonly standby?: boolean;
  readonly worker?: boolean;
  readonly cooprPort?: number;
  readonly postgres?: string;
  readonly detach?: boolean;
}

export function addUp(program: Command): void {
  const command = program
    .command("up")
    .description("start a group of datacenters on this machine; runs until Ctrl-C, which stops them")
    .option("--dcs <names>", "datacenters, with commas between (default: east,central,west)", names)
    .option("--witness <name>", "a site without data, that votes")
    .option("--shards <n>", "fixed for life (default: 64)", wholeNumber(1, 65_536))
    .option("--partitions <n>", "partitions of the log, fixed for life", wholeNumber(1, 4096))
    .option("--port-base <port>", "datacenter i listens on port-base + i (default: 8100)", wholeNumber(1024, 65_400))
    .option(
      "--rtt <ms>",
      "round trip that proxies add to every link between sites; 0 only makes them cuttable",
      wholeNumber(0, 10_000),
    )
    .option("--nodes <n>", "hothot processes of each datacenter (default: 1)", wholeNumber(1, 5))
    .option("--standby", "a synchronous PostgreSQL standby in each datacenter")
    .option("--no-worker", "leave the tasks of jobs to other workers")
    .option("--coopr-port <port>", "for provisioners: datacenter i listens on this + i", wholeNumber(1024, 65_500))
    .option("--postgres <dir>", "folder of the system's PostgreSQL programs (also HOTHOT_POSTGRES)")
    .option("--detach", "return when all datacenters serve");
  common(command, true).action(verb<UpOptions>(up));
}

async function up(session: Session, options: UpOptions): Promise<number> {
  const wanted = stackOptions(options);
  const before = LocalStack.find(session.dir);
  if (session.dryRun) {
    const file = before?.file ?? newStack(wanted);
    session.show({
      dir: session.dir,
      exists: before !== undefined,
      running: before?.isRunning() ?? false,
      sites: file.sites,
      portBase: wanted.portBase ?? file.portBase,
    });
    return 0;
  }
  if (before?.isWhole() === true) session.say(`the stack in ${session.dir} is running already`);
  const stack = await startUnlessInterrupted(session, wanted, options.detach === true && before?.isRunning() === true);
  if (stack === undefined) return 1;
  const status = await statusOf(session);
  endProgress();
  session.show(status, statusRows(status));
  if (isOpen(stack.file.env)) process.stderr.write("Requests need no token: the stack listens on this machine only.\n");
  if (options.detach === true) return 0;
  process.stderr.write(`Data and logs: ${stack.dir}. Ctrl-C stops the stack.\n`);
  return await attend(stack, session);
}

/** Ctrl-C before everything runs stops what was started, except of a stack that is meant to go on without us. */
async function startUnlessInterrupted(
  session: Session,
  wanted: StackOptions,
  leave: boolean,
): Promise<LocalStack | undefined> {
  let interrupted = false;
  const interrupt = (): void => {
    if (interrupted) return;
    interrupted = true;
    session.say("stopping ...");
    // What is starting meanwhile fails, or is stopped once more below.
    if (!leave)
      LocalStack.find(session.dir)
        ?.stopNow()
        .catch(() => undefined);
  };
  for (const signal of signals) process.on(signal, interrupt);
  try {
    const stack = await LocalStack.up(session.dir, wanted, (text) => session.say(text));
    if (!interrupted) return stack;
  } catch (error) {
    if (!interrupted) throw error;
  } finally {
    for (const signal of signals) process.off(signal, interrupt);
  }
  if (!leave) await LocalStack.find(session.dir)?.down();
  endProgress();
  return undefined;
}

/** Waits for Ctrl-C, which stops the stack, or for somebody else to stop it. */
async function attend(stack: LocalStack, session: Session): Promise<number> {
  let asked = false;
  let wake: () => void = () => undefined;
  for (const signal of signals) {
    process.on(signal, () => {
      if (asked) process.stderr.write("still stopping ...\n");
      asked = true;
      wake();
    });
  }
  const watcher = watch(stack.dir, () => wake());
  try {
    while (!asked && stack.isUp()) await Promise.race([new Promise<void>((resolve) => (wake = resolve)), pause(2000)]);
  } finally {
    watcher.close();
  }
  if (!asked) {
    process.stderr.write("The stack was stopped.\n");
    return 0;
  }
  process.stderr.write("\n");
  session.say("stopping ...");
  await stack.down((text) => session.say(text));
  endProgress();
  return 0;
}

function stackOptions(options: UpOptions): StackOptions {
  const { dcs, witness, shards, partitions, portBase, rtt, nodes, standby, worker, cooprPort } = options;
  const postgres = options.postgres ?? process.env["HOTHOT_POSTGRES"];
  const env = nodeSettings();
  return {
    ...(dcs === undefined ? {} : { dcs }),
    ...(witness === undefined ? {} : { witness }),
    ...(shards === undefined ? {} : { shards }),
    ...(partitions === undefined ? {} : { partitions }),
    ...(portBase === undefined ? {} : { portBase }),
    ...(rtt === undefined ? {} : { rttMs: rtt }),
    ...(nodes === undefined ? {} : { nodes }),
    ...(standby === undefined ? {} : { standby }),
    // Commander gives true where --no-worker was left out; then the stack stays as it was.
    ...(worker === false ? { worker } : {}),
    ...(cooprPort === undefined ? {} : { cooprPort }),
    ...(postgres === undefined || postgres === "" ? {} : { postgres }),
    ...(env === undefined ? {} : { env }),
  };
}

/** Whether its processes take requests without a token. */
function isOpen(env: Readonly<Record<string, string>>): boolean {
  const said = env["HOTHOT_NO_TOKENS"];
  const guarded = ["HOTHOT_ADMIN_TOKEN", "HOTHOT_ADMIN_TOKEN_FILE", "HOTHOT_JWKS_URL"];
  return said === undefined ? !guarded.some((name) => env[name] !== undefined) : said === "true";
}

/** Settings such as HOTHOT_LEASE_MS in the caller's environment are for the nodes. */
function nodeSettings(): Record<string, string> | undefined {
  const ours = new Set([
    "HOTHOT_URL",
    "HOTHOT_TOKEN",
    "HOTHOT_DIR",
    "HOTHOT_NATS_SERVER",
    "HOTHOT_POSTGRES",
    "HOTHOT_CONFIG",
  ]);
  const entries = Object.entries(process.env).filter(
    (entry): entry is [string, string] =>
      entry[0].startsWith("HOTHOT_") && !ours.has(entry[0]) && entry[1] !== undefined && entry[1] !== "",
  );
  // Nodes have a working directory of their own.
  const absolute = entries.map(([name, value]): [string, string] => [
    name,
    name === "HOTHOT_CATALOG" ? path.resolve(value) : value,
  ]);
  return absolute.length === 0 ? undefined : Object.fromEntries(absolute);
}
