import { spawn, type ChildProcess } from "node:child_process";
import path from "node:path";
import { cpuOf } from "./cpu.js";
import { median, rounded } from "./figures.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { hammer, putBytes } from "./wire.js";

const connections = 32;

/** The largest rate of single PUTs at one datacenter, as a ratio to an Express that does nothing, taken in turns. */
export const singlePuts: Scenario = {
  name: "single-puts",
  what: "most single PUTs per second at one datacenter, 32 connections, in turns with an Express no-op PUT",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, runs, tell }: BenchOptions): Promise<BenchResult> {
  const [dc = ""] = bench.stack.dcs;
  const ids = bench.idsOf(dc, 256);
  const noop = await startNoop();
  try {
    const targets = { hothot: new URL(bench.stack.url(dc)), express: noop.url };
    const requests = (url: URL): Buffer[] => ids.map((id) => putBytes(url, `/v1/clusters/${id}`, clusterBody(id)));
    const rates: Record<keyof typeof targets, number[]> = { hothot: [], express: [] };
    const length = Math.max(1, seconds / 2);
    // Each server's own process alone, and what all processes of the three datacenters use for it.
    const pids = { hothot: bench.stack.pids(dc).node[0] ?? 0, express: noop.child.pid ?? 0 };
    const cpuMs: Record<keyof typeof targets | "all", number[]> = { hothot: [], express: [], all: [] };
    for (const name of ["express", "hothot"] as const)
      await hammer(targets[name], requests(targets[name]), connections, 1);
    for (let turn = 1; turn <= Math.min(runs, 5); turn++) {
      for (const name of ["express", "hothot"] as const) {
        const all = requests(targets[name]);
        let sent = 0;
        const before = cpuOf(bench.stack);
        const rate = await hammer(
          targets[name],
          () => all[sent++ % all.length] ?? Buffer.alloc(0),
          connections,
          length,
        );
        const after = cpuOf(bench.stack);
        rates[name].push(rate);
        if (before !== null && after !== null) {
          cpuMs[name].push((after.of(pids[name]) - before.of(pids[name])) / sent);
          if (name === "hothot") cpuMs.all.push((after.stack - before.stack) / sent);
        }
        tell(`turn ${turn}: ${name} ${Math.round(rate)} PUT/s`);
      }
    }
    const [own, other] = [median(rates.hothot), median(rates.express)];
    const figures = {
      hothotPerSecond: rounded(own, 0),
      expressPerSecond: rounded(other, 0),
      ratio: rounded(own / other),
      cpuMs: {
        express: rounded(median(cpuMs.express), 3),
        hothot: rounded(median(cpuMs.hothot), 3),
        allOfThreeDatacenters: rounded(median(cpuMs.all), 3),
      },
    };
    return {
      rows: [
        ["", "PUT/s", "ratio", "CPU ms each"],
        ["Express no-op", figures.expressPerSecond, 1, figures.cpuMs.express],
        ["hothot, local", figures.hothotPerSecond, figures.ratio, figures.cpuMs.hothot],
        ["  with the copies", "", "", figures.cpuMs.allOfThreeDatacenters],
      ],
      figures,
    };
  } finally {
    noop.child.stdin?.end();
    noop.child.kill();
  }
}

function startNoop(): Promise<{ child: ChildProcess; url: URL }> {
  const child = spawn(process.execPath, [path.join(import.meta.dirname, "express-noop.js")], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the Express process ended with ${code ?? "a signal"}`)));
    child.stdout.once("data", (port: Buffer) =>
      resolve({ child, url: new URL(`http://127.0.0.1:${port.toString().trim()}`) }),
    );
  });
}
