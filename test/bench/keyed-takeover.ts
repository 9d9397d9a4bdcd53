import { Journal } from "../../services/demo/journal.js";
import { until } from "../../services/demo/group.js";
import { Probe } from "../../services/demo/probe.js";
import { Sender } from "../../services/demo/sender.js";
import { median } from "./figures.js";
import { whyLedByOwners } from "./placement.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";

const clients = 16;
const timeoutMs = 5_000;

interface Run {
  readonly dc: string;
  readonly writes: number;
  readonly errors: number;
  readonly worstMs: number;
}

/** What a kill -9 of the owner is to clients that are a little patient. */
export const keyedTakeover: Scenario = {
  name: "keyed-takeover",
  what: `kill -9 of a datacenter under ${clients} clients with idempotency keys and ${timeoutMs / 1000} s time-outs: errors, longest wait`,
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { runs: count, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, group } = bench;
  const runs: Run[] = [];
  for (let number = 1; number <= count; number++) {
    const dc = stack.dcs[(number - 1) % stack.dcs.length] ?? "";
    const run = { dc, ...(await oneRun(bench, dc, number, tell)) };
    runs.push(run);
    tell(`run ${number}: ${dc}: ${run.errors} errors in ${run.writes} writes, the slowest ${run.worstMs} ms`);
    await stack.simulate("restart", dc);
    const { why } = await until(60_000, () => group.whyNotConverged());
    if (why !== null) throw new Error(`${dc} has not come back: ${why}`);
  }
  const worst = runs.map(({ worstMs }) => worstMs);
  return {
    rows: [
      ["datacenter", "writes", "errors", "longest ms"],
      ...runs.map((run) => [run.dc, run.writes, run.errors, run.worstMs]),
    ],
    figures: {
      runs,
      errors: runs.reduce((sum, { errors }) => sum + errors, 0),
      worstMs: { median: median(worst), max: Math.max(...worst) },
    },
  };
}

/** The clients write by way of the survivors, one write after the other, until each shard has an owner again. */
async function oneRun(
  bench: Bench,
  dying: string,
  run: number,
  tell: (line: string) => void,
): Promise<Omit<Run, "dc">> {
  const { stack, client, group } = bench;
  // After the kill before, the logs may be led by owners for some seconds: their death would wait for an election.
  const { why } = await until(60_000, () => whyLedByOwners(bench));
  if (why !== null) throw new Error(why);
  const owners = await group.owners(stack.dcs[0] ?? "");
  if (owners === null) throw new Error("not every shard has an owner");
  const shards = [...owners].filter(([, owner]) => owner === dying).map(([shard]) => shard);
  const survivors = stack.dcs.filter((name) => name !== dying);
  const sender = new Sender(client, new Journal());
  const probe = new Probe({ sender, shards, total: owners.size, survivors, name: `K${run}` });
  let going = true;
  let writes = 0;
  let errors = 0;
  let worstMs = 0;
  const all = Array.from({ length: clients }, async (_, who) => {
    for (let n = 0; going; n++) {
      const name = `keyed-${run}-${who}-${n}`;
      const began = performance.now();
      const answer = await client.request(survivors[who % survivors.length] ?? "", "PUT", `/v1/clusters/${name}`, {
        body: clusterBody(name),
        headers: { "idempotency-key": name },
        timeoutMs,
      });
      writes++;
      if (answer.status !== 200 && answer.status !== 201) {
        errors++;
        tell(`${answer.status} ${answer.text}`);
      }
      worstMs = Math.max(worstMs, Math.round(performance.now() - began));
    }
  });
  await Promise.all([probe.run(30_000), stack.simulate("crash", dying)]);
  going = false;
  await Promise.all(all);
  return { writes, errors, worstMs };
}
