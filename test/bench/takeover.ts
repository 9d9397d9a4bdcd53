import { once } from "node:events";
import { createWriteStream, rmSync } from "node:fs";
import path from "node:path";
import { until } from "../../services/demo/group.js";
import { Journal } from "../../services/demo/journal.js";
import { Probe, spread } from "../../services/demo/probe.js";
import { Sender } from "../../services/demo/sender.js";
import { misplaced, whyLedByOwners } from "./placement.js";
import { median } from "./figures.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

/** Milliseconds of the parts of a takeover, each the worst of its shards. */
interface Phases {
  /** From the kill until the first survivor asks for votes: the promises have to run out. */
  readonly silence: number;
  readonly votes: number;
  /** Until each shard's `open` is in the log. */
  readonly seal: number;
  /** From there to its first accepted write: fold, start to serve, the writer's own way. */
  readonly serve: number;
}

interface Run {
  readonly clusters: number;
  readonly dc: string;
  readonly shards: number;
  readonly worstMs: number;
  readonly medianMs: number;
  readonly phases: Phases;
  /** The longest append of an `open`; an election takes 4 s or more. */
  readonly appendMs: number;
  readonly convergeMs: number;
  /** For how long a partition's log was led by an owner of it, from when it had that leader on. */
  readonly misplacedMs: number;
  /** From the kill until no partition's log is led by its owner. */
  readonly leadersMs: number;
}

/** An append that waited for so long has met an election. */
const electionMs = 2_000;
const settleMs = 180_000;

/** What a dead datacenter costs the writers of its shards. */
export const takeover: Scenario = {
  name: "takeover",
  what: "kill -9 of one datacenter after the other until a survivor accepts the first write of each of its shards; milliseconds",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, options: BenchOptions): Promise<BenchResult> {
  const { rate, clusters = [] } = options;
  const runs: Run[] = [];
  let loaded = 0;
  for (const count of clusters.length === 0 ? [0] : clusters) {
    if (count > loaded) await load(bench, loaded, count, options.tell);
    loaded = Math.max(loaded, count);
    runs.push(...(await underLoad(bench, rate, () => measureRuns(bench, options, loaded))));
  }
  return resultOf(runs);
}

/** Under load: what fails meanwhile is not of interest here, but what it costs the takeover. */
async function underLoad<T>(bench: Bench, rate: number | undefined, action: () => Promise<T>): Promise<T> {
  if (rate === undefined) return action();
  const ids = bench.stack.dcs.flatMap((dc) => bench.idsOf(dc, 100));
  let going = true;
  const writes = (async () => {
    while (going)
      await atRate(rate, 1, async (number) => {
        const through = bench.stack.dcs[number % bench.stack.dcs.length] ?? "";
        const path = `/v1/clusters/${ids[(number * 7) % ids.length] ?? ""}`;
        await bench.client.request(through, "PUT", path, { body: clusterBody(`load-${number}`), timeoutMs: 3_000 });
      });
  })();
  try {
    return await action();
  } finally {
    going = false;
    await writes;
  }
}

/** Clusters `from` to `to` are there, in every datacenter. */
async function load({ stack, group }: Bench, from: number, to: number, tell: BenchOptions["tell"]): Promise<void> {
  tell(`loads clusters up to ${to}`);
  const file = path.join(stack.dir, `clusters-${to}.ndjson`);
  const out = createWriteStream(file);
  for (let number = from; number < to; number++) {
    const line = { id: `loaded-${number}`, ...(clusterBody(`loaded-${number}`) as object) };
    if (!out.write(`${JSON.stringify(line)}\n`)) await once(out, "drain");
  }
  out.end();
  await once(out, "close");
  const began = performance.now();
  const { code, stderr } = await stack.cli("clusters", "import", file);
  rmSync(file);
  if (code !== 0) throw new Error(`the import failed: ${stderr.slice(-500)}`);
  const { why } = await until(settleMs, () => group.whyNotConverged());
  if (why !== null) throw new Error(`what was loaded is not everywhere: ${why}`);
  tell(`${to - from} clusters are everywhere after ${Math.round(performance.now() - began)} ms`);
}

async function measureRuns(bench: Bench, { runs: count, tell }: BenchOptions, clusters: number): Promise<Run[]> {
  const runs: Run[] = [];
  for (let number = 1; number <= count; number++) {
    await prepare(bench);
    const dc = bench.stack.dcs[(number - 1) % bench.stack.dcs.length] ?? "";
    const run = { ...(await oneRun(bench, dc, `T${clusters}-${number}`)), clusters };
    runs.push(run);
    tell(
      `run ${number}: ${dc}, ${run.shards} shards${clusters > 0 ? `, ${clusters} clusters` : ""}: worst ${run.worstMs} ms (${phasesText(run.phases)}), median ${run.medianMs} ms; ` +
        `longest append ${run.appendMs} ms; back after ${run.convergeMs} ms; logs led by owners for ${run.misplacedMs} ms, the last until ${run.leadersMs} ms after the kill`,
    );
  }
  return runs;
}

/** Every datacenter owns its share, and leads no log of it: as a group is that nothing has happened to for a while. */
async function prepare(bench: Bench): Promise<void> {
  const { stack, group, client } = bench;
  const [asked = ""] = stack.dcs;
  const { why } = await until(settleMs, async () => {
    const began = await client.request(asked, "POST", "/v1/rebalances", { body: {} });
    if (began.status !== 202) return `the rebalance was refused: ${began.text}`;
    const { id } = JSON.parse(began.text) as { id: string };
    const ended = await until(
      settleMs,
      async () => {
        const found = await client.get<{ status: string; error: string | null }>(asked, `/v1/rebalances/${id}`);
        return found?.status === "complete" ? null : `the rebalance: ${found?.status ?? ""} ${found?.error ?? ""}`;
      },
      undefined,
      250,
    );
    return ended.why ?? (await group.whyNotConverged()) ?? (await whyLedByOwners(bench));
  });
  if (why !== null) throw new Error(why);
}

async function oneRun(bench: Bench, dc: string, name: string): Promise<Omit<Run, "clusters">> {
  const { stack, group, client } = bench;
  const [asked = ""] = stack.dcs;
  const owners = await group.owners(asked);
  if (owners === null) throw new Error("not every shard has an owner");
  const shards = [...owners].filter(([, owner]) => owner === dc).map(([shard]) => shard);
  const survivors = stack.dcs.filter((other) => other !== dc);
  const logs = new Map(survivors.map((other) => [other, stack.logs(other).length]));
  const probe = new Probe({
    sender: new Sender(client, new Journal()),
    shards,
    total: owners.size,
    survivors,
    name,
    // Writers of many shards that try again and again would be measured in their place.
    attemptMs: 1_000,
    everyMs: 50,
  });
  const killedAt = performance.now();
  const killedWall = Date.now();
  const [first] = await Promise.all([probe.run(60_000), stack.simulate("crash", dc)]);
  const found = spread([...first.values()].map((at) => (at === null ? Infinity : at - killedAt)));
  if (found === null || found.worst === Infinity)
    throw new Error(`not every shard of ${dc} accepted a write within 60 s`);
  const told = survivors.flatMap((other) => linesOf(stack.logs(other).slice(logs.get(other)), killedWall));
  const watch = new LeaderWatch(bench, killedAt);
  const restartedAt = performance.now();
  await stack.simulate("restart", dc);
  const back = await until(settleMs, () => group.whyNotConverged());
  if (back.why !== null) throw new Error(`${dc} has not come back: ${back.why}`);
  const convergeMs = Math.round(performance.now() - restartedAt);
  const { misplacedMs, leadersMs } = await watch.end();
  const { phases, appendMs } = partsOf(told, first, shards, killedAt);
  return {
    dc,
    shards: shards.length,
    worstMs: found.worst,
    medianMs: found.median,
    phases,
    appendMs,
    convergeMs,
    misplacedMs,
    leadersMs,
  };
}

interface LogLine {
  readonly message?: string;
  readonly shard?: number;
  readonly ms?: number;
  /** Milliseconds since the kill. */
  readonly at: number;
}

function linesOf(log: string, since: number): LogLine[] {
  return log.split("\n").flatMap((line) => {
    if (!line.includes('"asks for votes"') && !line.includes('"opened in the log"')) return [];
    const { timestamp, ...rest } = JSON.parse(line) as LogLine & { timestamp: string };
    return [{ ...rest, at: Date.parse(timestamp) - since }];
  });
}

/** What the survivors logged of the takeover, and when each shard was written again. */
function partsOf(
  told: readonly LogLine[],
  first: ReadonlyMap<number, number | null>,
  shards: readonly number[],
  killedAt: number,
): { readonly phases: Phases; readonly appendMs: number } {
  const silence = Math.min(...told.filter(({ message }) => message === "asks for votes").map(({ at }) => at));
  const opened = new Map(
    told.filter(({ message }) => message === "opened in the log").map((line) => [line.shard ?? -1, line]),
  );
  const seals = shards.flatMap((shard) => opened.get(shard) ?? []);
  const began = Math.min(...seals.map(({ at, ms = 0 }) => at - ms));
  const sealed = Math.max(...seals.map(({ at }) => at));
  const serve = Math.max(
    ...shards.map((shard) => (first.get(shard) ?? killedAt) - killedAt - (opened.get(shard)?.at ?? sealed)),
  );
  return {
    phases: { silence, votes: Math.round(began - silence), seal: Math.round(sealed - began), serve: Math.round(serve) },
    appendMs: Math.max(...seals.map(({ ms = 0 }) => ms)),
  };
}

/** Looks at who leads the partitions' logs until none is led by its owner. */
class LeaderWatch {
  readonly #bench: Bench;
  readonly #killedAt: number;
  readonly #since = new Map<number, number>();
  #misplacedMs = 0;
  #ended = false;
  readonly #loop: Promise<number>;

  constructor(bench: Bench, killedAt: number) {
    this.#bench = bench;
    this.#killedAt = killedAt;
    this.#loop = this.#look();
    this.#loop.catch(() => undefined);
  }

  async end(): Promise<{ readonly misplacedMs: number; readonly leadersMs: number }> {
    this.#ended = true;
    const leadersMs = Math.round((await this.#loop) - this.#killedAt);
    return { misplacedMs: Math.round(this.#misplacedMs), leadersMs };
  }

  async #look(): Promise<number> {
    const deadline = performance.now() + settleMs;
    let placedAt: number | null = null;
    while (!this.#ended || placedAt === null) {
      if (performance.now() > deadline) throw new Error("some partitions' logs are led by their owner all the time");
      const wrong = await misplaced(this.#bench);
      const now = performance.now();
      for (const partition of wrong.led) if (!this.#since.has(partition)) this.#since.set(partition, now);
      for (const [partition, since] of this.#since)
        if (!wrong.led.has(partition)) {
          this.#misplacedMs = Math.max(this.#misplacedMs, now - since);
          this.#since.delete(partition);
        }
      if (wrong.led.size + wrong.without.size > 0) placedAt = null;
      else placedAt ??= now;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return placedAt;
  }
}

const phasesText = ({ silence, votes, seal, serve }: Phases): string =>
  `silence ${silence}, votes ${votes}, seal ${seal}, serve ${serve}`;

function resultOf(runs: readonly Run[]): BenchResult {
  const columns = (run: Run): number[] => [
    run.worstMs,
    run.medianMs,
    run.phases.silence,
    run.phases.votes,
    run.phases.seal,
    run.phases.serve,
    run.appendMs,
    run.convergeMs,
    run.misplacedMs,
    run.leadersMs,
  ];
  const middle = (some: readonly Run[]): number[] =>
    (columns(some[0] as Run) as readonly number[]).map((_, column) =>
      median(some.map((run) => columns(run)[column] ?? NaN)),
    );
  const sizes = [...new Set(runs.map(({ clusters }) => clusters))];
  const worst = runs.map(({ worstMs }) => worstMs);
  return {
    rows: [
      [
        "datacenter",
        "clusters",
        "shards",
        "worst",
        "median",
        "silence",
        "votes",
        "seal",
        "serve",
        "append",
        "back",
        "misplaced",
        "leaders",
      ],
      ...runs.map((run) => [run.dc, run.clusters, run.shards, ...columns(run)]),
      ...sizes.map((size) => ["median", size, "", ...middle(runs.filter(({ clusters }) => clusters === size))]),
    ],
    figures: {
      runs,
      worstMs: { median: median(worst), max: Math.max(...worst) },
      elections: runs.filter(({ appendMs }) => appendMs >= electionMs).length,
    },
  };
}
