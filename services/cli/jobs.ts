import type { Command } from "commander";
import { pause } from "../../infra/local/wait.js";
import { Failure } from "./failure.js";
import type { Row } from "./output.js";
import { jsonArgument, wholeNumber } from "./parse.js";
import { common, verb, type Session } from "./session.js";
import { chosen } from "./shards.js";

interface Job extends Row {
  readonly id: string;
  readonly status: string;
  readonly stage: string | null;
  readonly attempt: number;
  readonly error: string | null;
}

interface WaitOptions {
  readonly wait?: boolean;
  readonly timeout?: number;
}

interface StartOptions extends WaitOptions {
  readonly input?: string;
  readonly notBefore?: string;
  readonly key?: string;
}

const columns = ["id", "clusterId", "type", "status", "attempt", "stage", "runsIn", "createdAt", "finishedAt"];
const ended = new Set(["complete", "failed", "cancelled"]);

export function addJobs(program: Command): void {
  const jobs = program.command("jobs").description("operations on clusters");
  const start = jobs
    .command("start <cluster> <type>")
    .description("start an operation and wait for its end; exit code 1 when it fails")
    .option("--input <json>", "JSON, @FILE, or @- for standard input")
    .option("--not-before <time>", "RFC 3339")
    .option("--key <key>", "idempotency key: the same key takes effect once");
  common(waiting(start), true).action(verb<StartOptions>(startJob));
  const list = jobs
    .command("list")
    .description("the jobs that this datacenter knows")
    .option("--cluster <id>")
    .option("--status <status>");
  common(list.option("--limit <n>", "at most so many", wholeNumber(1, 100_000_000))).action(
    verb<{ cluster?: string; status?: string; limit?: number }>(async (session, { cluster, status, limit }) => {
      const items = await session.client.list<Row>("/v1/jobs", { cluster, status }, limit);
      session.show({ items, nextCursor: null }, chosen(items, columns));
      return 0;
    }),
  );
  common(jobs.command("show <id>").description("show one")).action(
    verb(async (session, _options, [id = ""]) => {
      session.show(await session.client.get(`/v1/jobs/${encodeURIComponent(id)}`));
      return 0;
    }),
  );
  for (const action of ["cancel", "pause"]) {
    common(jobs.command(`${action} <id>`).description(`${action} one`), true).action(
      verb(async (session, _options, [id = ""]) => {
        const answer = await change(session, id, action);
        if (answer !== undefined) session.show(answer);
        return 0;
      }),
    );
  }
  // These set a job going again.
  for (const action of ["retry", "resume"]) {
    const command = jobs
      .command(`${action} <id>`)
      .description(`${action} one and wait for its end; exit code 1 when it fails`);
    common(waiting(command), true).action(
      verb<WaitOptions>(async (session, options, [id = ""]) => {
        const going = await change(session, id, action);
        return going === undefined ? 0 : seeThrough(session, going, options);
      }),
    );
  }
}

const waiting = (command: Command): Command =>
  command
    .option("--timeout <s>", "seconds to wait (default: 3600)", wholeNumber(1, 1_000_000))
    .option("--no-wait", "return when it has been started");

/** Undefined for a dry run. */
const change = async (session: Session, id: string, action: string): Promise<Job | undefined> =>
  (await session.act("POST", `/v1/jobs/${encodeURIComponent(id)}/${action}`, { body: {} })) as Job | undefined;

async function startJob(session: Session, options: StartOptions, [cluster = "", type = ""]: string[]): Promise<number> {
  const { input, notBefore, key } = options;
  const body = {
    type,
    ...(input === undefined ? {} : { input: jsonArgument("--input", input) }),
    ...(notBefore === undefined ? {} : { notBefore }),
  };
  const headers = key === undefined ? {} : { "idempotency-key": key };
  const started = (await session.act("POST", `/v1/clusters/${encodeURIComponent(cluster)}/operations`, {
    body,
    headers,
  })) as Job | undefined;
  return started === undefined ? 0 : seeThrough(session, started, options);
}

/** Waits for the job's end, unless told otherwise, and shows it. @returns the exit code */
async function seeThrough(session: Session, started: Job, { wait, timeout = 3600 }: WaitOptions): Promise<number> {
  const job = wait === false ? started : await waitForEnd(session, started, timeout * 1000);
  session.show(job);
  if (job.status !== "failed" && job.status !== "cancelled") return 0;
  process.stderr.write(`hothot: job_${job.status}: ${job.error ?? "no reason was given"}\n`);
  return 1;
}

async function waitForEnd(session: Session, started: Job, ms: number): Promise<Job> {
  const deadline = performance.now() + ms;
  let job = started;
  let said = "";
  while (!ended.has(job.status)) {
    const text = `${job.id}: ${job.status}${job.stage === null ? "" : ` ${job.stage}`} (attempt ${job.attempt})`;
    if (text !== said) session.say(text);
    said = text;
    if (performance.now() > deadline)
      throw new Failure("deadline_exceeded", `${job.id} has not ended after ${ms / 1000} s; it goes on.`);
    await pause(200);
    const found = await look(session, started.id);
    // A copy that has not heard of the new attempt yet still tells how the one before ended.
    if (found !== undefined && found.attempt >= started.attempt) job = found;
  }
  return job;
}

/** A replica may not know it yet, and a datacenter may be dying: what counts is the deadline. */
async function look(session: Session, id: string): Promise<Job | undefined> {
  try {
    return await session.client.get<Job>(`/v1/jobs/${encodeURIComponent(id)}`, { timeoutMs: 5000 });
  } catch (error) {
    if (error instanceof Failure) return undefined;
    throw error;
  }
}
