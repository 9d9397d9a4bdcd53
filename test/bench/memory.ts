import { execFileSync } from "node:child_process";
import { rounded } from "./figures.js";
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
  what: "resident memory of each hothot process: after the start, and after 300 writes/s; megabytes",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, rate = 300, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, client } = bench;
  const before = residents(bench);
  tell(`${rate} writes/s for ${seconds} s`);
  const peak = new Map(before);
  const watch = setInterval(() => {
    for (const [who, mb] of residents(bench)) peak.set(who, Math.max(mb, peak.get(who) ?? 0));
  }, 1000);
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
  const after = residents(bench);
  const figures = Object.fromEntries(
    [...after].map(([who, mb]) => [
      who,
      { startMb: before.get(who) ?? 0, peakMb: Math.max(mb, peak.get(who) ?? 0), endMb: mb },
    ]),
  );
  const rows = Object.entries(figures).map(([who, { startMb, peakMb, endMb }]) => [who, startMb, peakMb, endMb]);
  return { rows: [["process", "start MB", "peak MB", "end MB"], ...rows], figures };
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
