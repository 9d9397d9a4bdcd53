import { until } from "../../services/demo/group.js";
import { Journal } from "../../services/demo/journal.js";
import { Probe, spread } from "../../services/demo/probe.js";
import { Sender } from "../../services/demo/sender.js";
import { logLeaders } from "../harness/log-leaders.js";
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

interface Run {
  readonly dc: string;
  readonly shards: number;
  readonly worstMs: number;
  readonly medianMs: number;
  readonly convergeMs: number;
  /** From the return until no partition's log is led by its owner. */
  readonly leadersMs: number;
}

/** What a dead datacenter costs the writers of its shards. */
export const takeover: Scenario = {
  name: "takeover",
  what: "kill -9 of a datacenter until a survivor accepts the first write of each of its shards, again and again; milliseconds",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, options: BenchOptions): Promise<BenchResult> {
  const { rate } = options;
  if (rate === undefined) return measureRuns(bench, options);
  // Under load: what fails meanwhile is not of interest here, but what it costs the takeover.
  const ids = bench.stack.dcs.flatMap((dc) => bench.idsOf(dc, 100));
  let going = true;
  const load = (async () => {
    while (going)
      await atRate(rate, 1, async (number) => {
        const through = bench.stack.dcs[number % bench.stack.dcs.length] ?? "";
        const path = `/v1/clusters/${ids[(number * 7) % ids.length] ?? ""}`;
        await bench.client.request(through, "PUT", path, { body: clusterBody(`load-${number}`), timeoutMs: 3_000 });
      });
  })();
  try {
    return await measureRuns(bench, options);
  } finally {
    going = false;
    await load;
  }
}

async function measureRuns(bench: Bench, { runs: count, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, group, client } = bench;
  const runs: Run[] = [];
  for (let number = 1; number <= count; number++) {
    const owners = await group.owners(stack.dcs[0] ?? "");
    if (owners === null) throw new Error("not every shard has an owner");
    const owned = (dc: string): number[] => [...owners].filter(([, owner]) => owner === dc).map(([shard]) => shard);
    const dc = [...stack.dcs].sort((a, b) => owned(b).length - owned(a).length)[0] ?? "";
    const shards = owned(dc);
    const probe = new Probe({
      sender: new Sender(client, new Journal()),
      shards,
      total: owners.size,
      survivors: stack.dcs.filter((name) => name !== dc),
      name: `T${number}`,
    });
    const killedAt = performance.now();
    const [first] = await Promise.all([probe.run(30_000), stack.simulate("crash", dc)]);
    const took = [...first.values()].map((at) => (at === null ? Infinity : at - killedAt));
    const found = spread(took);
    if (found === null || found.worst === Infinity)
      throw new Error(`not every shard of ${dc} accepted a write within 30 s`);
    const restartedAt = performance.now();
    await stack.simulate("restart", dc);
    const { why } = await until(60_000, () => group.whyNotConverged());
    if (why !== null) throw new Error(`${dc} has not come back: ${why}`);
    const convergeMs = Math.round(performance.now() - restartedAt);
    const placed = await until(30_000, () => whyLedByOwners(bench));
    if (placed.why !== null) throw new Error(placed.why);
    const leadersMs = Math.round(performance.now() - restartedAt);
    runs.push({ dc, shards: shards.length, worstMs: found.worst, medianMs: found.median, convergeMs, leadersMs });
    tell(
      `run ${number}: ${dc}, ${shards.length} shards: worst ${found.worst} ms, median ${found.median} ms; back after ${convergeMs} ms, log leaders away from owners after ${leadersMs} ms`,
    );
  }
  const worst = runs.map(({ worstMs }) => worstMs);
  return {
    rows: [
      ["datacenter", "shards", "worst shard ms", "median shard ms", "converged ms", "leaders ms"],
      ...runs.map((run) => [run.dc, run.shards, run.worstMs, run.medianMs, run.convergeMs, run.leadersMs]),
      [
        "median of runs",
        "",
        median(worst),
        median(runs.map(({ medianMs }) => medianMs)),
        median(runs.map(({ convergeMs }) => convergeMs)),
        median(runs.map(({ leadersMs }) => leadersMs)),
      ],
      ["worst of runs", "", Math.max(...worst), "", "", Math.max(...runs.map(({ leadersMs }) => leadersMs))],
    ],
    figures: { runs, worstMs: { median: median(worst), max: Math.max(...worst) } },
  };
}

/** Null once the log of every partition is led away from its owner; else why not. */
async function whyLedByOwners({ stack, client }: Bench): Promise<string | null> {
  const leaders = await logLeaders(stack);
  const { text } = await client.request(stack.dcs[0] ?? "", "GET", "/v1/shards?limit=1000");
  const { items } = JSON.parse(text) as { items: { partition: number; owner: string | null }[] };
  const wrong = items.find(({ partition, owner }) => (leaders.get(partition) ?? owner) === owner);
  return wrong === undefined ? null : `partition ${wrong.partition} is led by its owner ${wrong.owner}`;
}
