import type { Random } from "../../infra/random.js";
import { createClient, type Client, type Job } from "../../routing/client/client.js";
import { createWorker, type Task, type Worker } from "../../routing/client/worker.js";
import { shardOf } from "../../shards/ids.js";
import type { TestStack } from "../harness/stack.js";
import { readLog } from "../integration/log-reader.js";
import { allEqual, allServe } from "../integration/support.js";

export interface JobChaosOptions {
  readonly jobs: number;
  /** Of each job: its parallel tasks (default 2). */
  readonly nodes?: number;
  /** How many kills, at least. */
  readonly kills: number;
  /** Goes on killing until every job has ended. */
  readonly untilEnded: boolean;
  readonly random: Random;
  readonly tell: (line: string) => void;
}

export interface JobChaosResult {
  readonly killed: readonly string[];
  readonly restarted: number;
  /** Finishes of earlier attempts, sent again while a later one ran. */
  readonly late: number;
  readonly tasks: number;
  readonly violations: readonly string[];
}

interface Row extends Job {
  readonly tasks: readonly {
    readonly stage: string;
    readonly status: string;
    readonly attempt: number;
    readonly node: string;
  }[];
}

const stages = ["CREATE", "CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"];
const ended = ["complete", "failed", "cancelled"];
/** Without a task that was taken or a job that ended. */
const quietMs = 60_000;

/** Jobs over all datacenters while one after the other is killed and returns, until all have ended; then what is left of them is checked. */
export async function runJobChaos(stack: TestStack, options: JobChaosOptions): Promise<JobChaosResult> {
  const client = createClient({ urls: stack.dcs.map((dc) => stack.url(dc)), timeoutMs: 30_000, tryMs: 8_000 });
  const taken: Task[] = [];
  // Takes are of jobs that a datacenter owns: each has a worker of its own, and one goes to whichever lives.
  const workers = [
    ...stack.dcs.map((dc) => worker(`chaos-${dc}`, [stack.url(dc)], options.random, taken)),
    worker(
      "chaos-roaming",
      stack.dcs.map((dc) => stack.url(dc)),
      options.random,
      taken,
    ),
  ];
  try {
    return await new JobChaos(stack, client, taken, options).run();
  } finally {
    await Promise.all(workers.map((each) => each.stop()));
  }
}

/** What a task gives says which attempt did it. */
function worker(id: string, urls: readonly string[], random: Random, taken: Task[]): Worker {
  return createWorker({
    urls,
    id,
    capacity: 1_000,
    concurrency: 8,
    waitMs: 2_000,
    stopMs: 1_000,
    handlers: {
      "*": async (task, { fence, signal }) => {
        taken.push(task);
        await pause(20 + 40 * random.next());
        signal.throwIfAborted();
        return { result: { [`by_${task.stage}`]: fence }, stdout: `${task.stage} ${fence}` };
      },
    },
  });
}

class JobChaos {
  readonly #late: Promise<void>[] = [];
  readonly #sent = new Set<string>();
  readonly #violations: string[] = [];
  readonly #nodes: readonly string[];

  constructor(
    private readonly stack: TestStack,
    private readonly client: Client,
    private readonly taken: readonly Task[],
    private readonly o: JobChaosOptions,
  ) {
    this.#nodes = Array.from({ length: o.nodes ?? 2 }, (_, index) => `n${index + 1}`);
  }

  async run(): Promise<JobChaosResult> {
    const { tell, jobs: count } = this.o;
    const started = this.#start(count);
    const killed: string[] = [];
    let moved = { at: performance.now(), seen: "" };
    let jobs: string[] | undefined;
    void started.then((ids) => (jobs = ids)).catch(() => undefined);
    for (let going = count; going > 0 || killed.length < this.o.kills;) {
      if (performance.now() - moved.at > quietMs)
        throw new Error(`${going} jobs go on, and nothing happens: ${await this.#why(jobs ?? [])}`);
      if (this.o.untilEnded || killed.length < this.o.kills) killed.push(await this.#kill(killed.at(-1)));
      else await pause(2_000);
      const found = jobs === undefined ? [] : await this.#rows(jobs);
      going = jobs === undefined ? count : found.filter((job) => !ended.includes(job.status)).length;
      this.#sendLate(found);
      const tasks = this.taken.length;
      if (`${going} ${tasks}` !== moved.seen) moved = { at: performance.now(), seen: `${going} ${tasks}` };
      tell(`${killed.length} kills, ${killed.at(-1)} the last; ${going} of ${count} jobs go on, ${tasks} tasks taken`);
    }
    const ids = await started;
    await Promise.all(this.#late);
    await allServe(this.stack);
    await allEqual(this.stack, this.stack.dcs[0] ?? "");
    const rows = await Promise.all(ids.map((id) => this.#whole(id)));
    const begun = await this.#checkLog(rows);
    for (const row of rows) await this.#check(row, begun.get(row.id) ?? 0);
    return {
      killed,
      restarted: rows.filter(({ attempt }) => attempt > 1).length,
      late: this.#sent.size,
      tasks: this.taken.length,
      violations: this.#violations,
    };
  }

  /** Acknowledged once the log has them: each of them must end. */
  async #start(count: number): Promise<string[]> {
    return Promise.all(
      Array.from({ length: count }, async (_, index) => {
        await pause((index % 20) * 100);
        const id = `chaos-job-${index}`;
        const replicated = { durability: "replicated", timeoutMs: 60_000 } as const;
        await this.client.putCluster(id, { name: id, spec: { nodes: this.#nodes } }, replicated);
        return (await this.client.startJob(id, { type: "create" }, replicated)).value.id;
      }),
    );
  }

  async #kill(last: string | undefined): Promise<string> {
    const { random } = this.o;
    const others = this.stack.dcs.filter((dc) => dc !== last);
    const dc = others[Math.floor(random.next() * others.length)] ?? "";
    await pause(500 + 1_500 * random.next());
    await this.stack.simulate("crash", dc);
    await pause(500 + 3_000 * random.next());
    await this.stack.simulate("restart", dc);
    await allServe(this.stack);
    return dc;
  }

  async #rows(ids: readonly string[]): Promise<Job[]> {
    return Promise.all(ids.map(async (id) => (await this.client.getJob(id, { consistency: "owner" })).value));
  }

  /** Of the first jobs that go on, where they stand. */
  async #why(ids: readonly string[]): Promise<string> {
    const going = (await this.#rows(ids)).filter((job) => !ended.includes(job.status)).slice(0, 5);
    const whole = await Promise.all(going.map(({ id }) => this.#whole(id)));
    return JSON.stringify(
      whole.map(({ tasks, ...job }) => ({ ...job, tasks: tasks.filter((each) => each.status !== "ok") })),
    );
  }

  /** Workers of dead attempts wake up: what they send must change nothing, and is refused. */
  #sendLate(jobs: readonly Job[]): void {
    const attempts = new Map(jobs.map((job) => [job.id, job.attempt]));
    const old = this.taken.filter(
      ({ id, jobId, attempt }) => !this.#sent.has(id) && attempt < (attempts.get(jobId) ?? 0),
    );
    for (const task of old.slice(0, 20)) {
      this.#sent.add(task.id);
      const dc = this.stack.dcs[Math.floor(this.o.random.next() * this.stack.dcs.length)] ?? "";
      this.#late.push(this.#finishLate(dc, task));
    }
  }

  async #finishLate(dc: string, task: Task): Promise<void> {
    for (const workerId of [...this.stack.dcs, "roaming"].map((name) => `chaos-${name}`))
      try {
        const answer = await this.stack.request(dc, "POST", `/v1/tasks/${task.id}/finish`, {
          token: task.token,
          workerId,
          status: "ok",
          result: { [`by_${task.stage}`]: "late" },
        });
        if (answer.status === 200) this.#violations.push(`a late finish of ${task.id} was accepted in ${dc}`);
      } catch {
        // Its datacenter was just killed.
      }
  }

  async #whole(id: string): Promise<Row> {
    const job = (await this.client.getJob(id, { consistency: "owner" })).value;
    const tasks = (await this.client.call<{ items: Row["tasks"] }>("GET", `/v1/jobs/${id}/tasks`)).value.items;
    return { ...job, tasks };
  }

  /** `begun`: the stage in which its last attempt began, from 0. */
  async #check(job: Row, begun: number): Promise<void> {
    const bad = (what: string): void => void this.#violations.push(`${job.id}: ${what}`);
    if (job.status !== "complete") return bad(`${job.status}: ${job.error ?? ""}`);
    const expected = stages
      .slice(begun)
      .flatMap((stage) => this.#nodes.map((node) => `${stage} ${node} ${job.attempt} ok`));
    const seen = job.tasks.map(({ stage, node, attempt, status }) => `${stage} ${node} ${attempt} ${status}`);
    // They stay where the attempt ended: an owner that came after that has none.
    if (seen.length > 0 && seen.sort().join() !== expected.sort().join()) bad(`its tasks are ${seen.join(", ")}`);
    if (![0, 1, 4].includes(begun)) bad(`attempt ${job.attempt} began at stage ${begun}`);
    const cluster = (await this.client.getCluster(job.clusterId, { consistency: "owner" })).value;
    if (cluster.status !== "active") bad(`its cluster is ${cluster.status}`);
    const state = cluster.state["nodes"] as Readonly<Record<string, Readonly<Record<string, string>>>>;
    for (const node of this.#nodes)
      for (const [index, stage] of stages.entries()) {
        const by = state[node]?.[`by_${stage}`] ?? "nobody";
        const attempt = Number(by.split(".")[1]);
        const right = index >= begun ? by === `${job.epoch}.${job.attempt}` : attempt >= 1 && attempt < job.attempt;
        if (!right) bad(`${stage} of ${node} was done by ${by}, its last attempt is ${job.epoch}.${job.attempt}`);
      }
  }

  /** @returns by job the stage in which its last attempt began */
  async #checkLog(jobs: readonly Row[]): Promise<Map<string, number>> {
    const { entries } = await readLog(this.stack, this.stack.dcs[0] ?? "");
    const begun = new Map<string, number>();
    const types = new Map<string, string[]>();
    for (const { record } of entries)
      if (record.job !== undefined) {
        if (record.type === "job.restart") begun.set(record.job.id, record.job.checkpoint?.stages ?? 0);
        types.set(record.job.id, [...(types.get(record.job.id) ?? []), record.type]);
      }
    for (const { id, attempt } of jobs) {
      const mine = types.get(id) ?? [];
      const count = (type: string): number => mine.filter((each) => each === type).length;
      if (count("job.start") !== 1 || count("job.end") !== 1 || count("job.restart") !== attempt - 1)
        this.#violations.push(`${id}: the log has ${mine.join(", ")} of ${attempt} attempts`);
      if (mine.at(-1) !== "job.end") this.#violations.push(`${id}: the log ends with ${mine.at(-1) ?? "nothing"}`);
    }
    return begun;
  }
}

/** Shards that the jobs' clusters are of: all, if there are enough of them. */
export const shardsOf = (count: number, shards: number): number =>
  new Set(Array.from({ length: count }, (_, index) => shardOf(`chaos-job-${index}`, shards))).size;

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
