import { execFileSync } from "node:child_process";
import { median, rounded } from "./figures.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

/** Resident memory of the hothot processes. */
export const memory: Scenario = {
  name: "memory",
  what: "resident memory of each hothot process: at the start, and under 300 writes/s; megabytes (median of a quarter of the time)",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, rate = 300, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, client } = bench;
  const before = residents(bench);
  tell(`${rate} writes/s for ${seconds} s`);
  const seen: ReadonlyMap<string, number>[] = [];
  const watch = setInterval(() => void seen.push(residents(bench)), 1000);
  try {
    await atRate(rate, seconds, async (number) => {
      const dc = stack.dcs[number % stack.dcs.length] ?? "";
      const headers = { "hothot-durability": number % 3 === 0 ? "replicated" : "local" };
      await client.request(dc, "PUT", `/v1/clusters/memory-${number % 3000}`, {
        body: clusterBody(`memory-${number}`),
        headers,
      });
    });
  } finally {
    clearInterval(watch);
  }
  const figures = Object.fromEntries(
    [...before].map(([who, startMb]) => {
      const all = seen.map((each) => each.get(who) ?? NaN);
      const quarter = Math.ceil(all.length / 4);
      return [
        who,
        {
          startMb,
          peakMb: Math.max(...all),
          secondQuarterMb: median(all.slice(quarter, 2 * quarter)),
          lastQuarterMb: median(all.slice(-quarter)),
        },
      ];
    }),
  );
  const rows = Object.entries(figures).map(([who, { startMb, peakMb, secondQuarterMb, lastQuarterMb }]) => [
    who,
    startMb,
    peakMb,
    secondQuarterMb,
    lastQuarterMb,
  ]);
  return { rows: [["process", "start MB", "peak MB", "2nd quarter MB", "last quarter MB"], ...rows], figures };
}

function residents({ stack }: Bench): Map<string, number> {
  return new Map(
    stack.dcs.flatMap((dc) =>
      stack.pids(dc).node.map((pid, index): [string, number] => {
        const kilobytes = Number(execFileSync("ps", ["-o", "rss=", "-p", String(pid)], { encoding: "utf8" }));
        return [`${dc}/n${index + 1}`, rounded(kilobytes / 1000, 0)];
      }),
    ),
  );
}
