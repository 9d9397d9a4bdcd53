import { latencyOf, type Latency } from "./figures.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

/** Latency of single writes as a client sees it, on a stack that does nothing else. */
export const writeLatency: Scenario = {
  name: "write-latency",
  what: "PUT at 100 writes/s on an idle stack: local and replicated, at the owner and forwarded; milliseconds",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, rate = 100, tell }: BenchOptions): Promise<BenchResult> {
  const [owner = "", other = ""] = bench.stack.dcs;
  const ids = bench.idsOf(owner, 200);
  const run = async (dc: string, durability: string, length: number): Promise<Latency> => {
    const took: number[] = [];
    let refused = 0;
    await atRate(rate, length, async (number) => {
      const answer = await bench.client.request(dc, "PUT", `/v1/clusters/${ids[number % ids.length] ?? ""}`, {
        body: clusterBody(`${dc}-${durability}-${number}`),
        headers: { "hothot-durability": durability },
      });
      if (answer.status === 200 || answer.status === 201) took.push(answer.endedAt - answer.startedAt);
      else refused++;
    });
    if (refused > 0) throw new Error(`${refused} of ${refused + took.length} writes were refused`);
    return latencyOf(took);
  };
  tell("warming up");
  for (const dc of [owner, other]) for (const durability of ["local", "replicated"]) await run(dc, durability, 2);
  const figures: Record<string, Latency> = {};
  for (const [route, dc] of [
    ["at the owner", owner],
    ["forwarded", other],
  ] as const) {
    for (const durability of ["local", "replicated"]) {
      tell(`${durability}, ${route}: ${seconds} s`);
      figures[`${durability} ${route}`] = await run(dc, durability, seconds);
    }
  }
  const rows = Object.entries(figures).map(([what, { count, p50, p99, max }]) => [what, count, p50, p99, max]);
  return { rows: [["write", "count", "p50 ms", "p99 ms", "max ms"], ...rows], figures };
}
