import type { Command } from "commander";
import { pause } from "../../infra/local/wait.js";
import { breakGlass, majorityIsOff } from "./break-glass.js";
import type { Client } from "./client.js";
import { Failure, UsageError } from "./failure.js";
import type { Row } from "./output.js";
import { wholeNumber } from "./parse.js";
import { common, verb, type Session } from "./session.js";

interface MoveOptions {
  readonly dc?: string;
  readonly shard?: number;
  readonly to?: string;
  readonly force?: boolean;
  readonly timeout?: number;
}

interface LongOperation {
  readonly id: string;
  readonly kind: string;
  readonly status: "running" | "complete" | "failed" | "cancelled";
  readonly progress: { readonly done: number; readonly total: number };
  readonly shards?: readonly Row[];
  readonly error: string | null;
}

/** The verbs that move ownership; each waits for its end. */
export function addMoves(program: Command): void {
  const switchover = moveVerb(
    program,
    "switchover",
    "/v1/switchovers",
    "move a shard, or all of a datacenter's, to another one",
  );
  from(switchover).requiredOption("--to <dc>", "the next owner");
  moveVerb(program, "drain", "/v1/drains", "move all shards away from a datacenter").requiredOption(
    "--dc <dc>",
    "the datacenter",
  );
  moveVerb(program, "failback", "/v1/failbacks", "move home what a takeover took from a datacenter").requiredOption(
    "--dc <dc>",
    "the datacenter",
  );
  moveVerb(program, "rebalance", "/v1/rebalances", "spread the shards evenly");
  const takeover = moveVerb(program, "takeover", "/v1/takeovers", "take shards over from a datacenter that is dead");
  from(takeover)
    .option("--to <dc>", "the next owner (default: chosen among the survivors)")
    .option(
      "--force",
      "although the owner is reachable, or (where a majority of sites is off) with a new log: you vouch that the former owner is off, and what it did not publish is divergent when it returns",
    );
}

function moveVerb(program: Command, name: string, path: string, description: string): Command {
  const command = program
    .command(name)
    .description(description)
    .option("--timeout <s>", "seconds to wait for the end (default: 600)", wholeNumber(1, 1_000_000));
  return common(command, true).action(
    verb<MoveOptions>((session, options) => {
      if (
        (name === "switchover" || name === "takeover") &&
        (options.dc === undefined) === (options.shard === undefined)
      )
        throw new UsageError("give either --dc or --shard");
      const { stack } = session;
      if (name === "takeover" && options.force === true && options.dc !== undefined && stack !== undefined)
        if (majorityIsOff(stack))
          return breakGlass(session, stack, {
            dc: options.dc,
            ...(options.to === undefined ? {} : { to: options.to }),
          });
      return move(session, path, options);
    }),
  );
}

function from(command: Command): Command {
  return command
    .option("--dc <dc>", "all shards of this datacenter")
    .option("--shard <n>", "one shard", wholeNumber(0, 65_535));
}

async function move(session: Session, path: string, options: MoveOptions): Promise<number> {
  const { dc, shard, to, force, timeout = 600 } = options;
  const body = {
    ...(dc === undefined ? {} : { dc }),
    ...(shard === undefined ? {} : { shard }),
    ...(to === undefined ? {} : { to }),
    ...(force === true ? { force } : {}),
    ...(session.dryRun ? { dryRun: true } : {}),
  };
  const answer = await session.client.request("POST", path, { body, timeoutMs: 60_000 });
  if (session.dryRun) {
    const plan = answer.body as { shards: Row[] };
    session.show(plan, plan.shards);
    return 0;
  }
  return finish(session, path, answer.body as LongOperation, timeout * 1000, session.client, true);
}

/** Starts a long operation and follows it to its end. @returns the exit code */
export async function runMove(
  session: Session,
  path: string,
  body: object,
  ms: number,
  client: Client = session.client,
): Promise<number> {
  const answer = await client.request("POST", path, { body, timeoutMs: 60_000 });
  return finish(session, path, answer.body as LongOperation, ms, client, false);
}

async function finish(
  session: Session,
  path: string,
  started: LongOperation,
  ms: number,
  client: Client,
  shown: boolean,
): Promise<number> {
  const operation = await follow(session, path, started, ms, client);
  const text = `${operation.kind} ${operation.status}: ${operation.progress.done} of ${operation.progress.total}`;
  if (!shown) session.say(text);
  else session.show(operation, text);
  if (operation.status === "complete") return 0;
  const failed = (operation.shards ?? []).filter((each) => each["error"] !== undefined && each["error"] !== null);
  for (const each of failed.slice(0, 20))
    process.stderr.write(`shard ${String(each["shard"])}: ${String(each["error"])}\n`);
  process.stderr.write(`hothot: ${operation.status}: ${operation.error ?? "see the shards"}\n`);
  return 1;
}

async function follow(
  session: Session,
  path: string,
  started: LongOperation,
  ms: number,
  client: Client,
): Promise<LongOperation> {
  const deadline = performance.now() + ms;
  let operation = started;
  let said = "";
  while (operation.status === "running") {
    const text = `${operation.kind}: ${operation.progress.done} of ${operation.progress.total}`;
    if (text !== said) session.say(text);
    said = text;
    if (performance.now() > deadline)
      throw new Failure(
        "deadline_exceeded",
        `${operation.kind} ${operation.id} has not ended after ${ms / 1000} s; it goes on.`,
      );
    await pause(250);
    try {
      operation = await client.get<LongOperation>(`${path}/${operation.id}`, { timeoutMs: 5000 });
    } catch (error) {
      // The server that carries it out may be the one that is restarted meanwhile.
      if (!(error instanceof Failure) || !["unreachable", "deadline_exceeded"].includes(error.code)) throw error;
    }
  }
  return operation;
}
