import { spawn, type ChildProcess } from "node:child_process";
import path from "node:path";
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
    for (const name of ["express", "hothot"] as const)
      await hammer(targets[name], requests(targets[name]), connections, 1);
    for (let turn = 1; turn <= Math.min(runs, 5); turn++) {
      for (const name of ["express", "hothot"] as const) {
        const rate = await hammer(targets[name], requests(targets[name]), connections, length);
        rates[name].push(rate);
        tell(`turn ${turn}: ${name} ${Math.round(rate)} PUT/s`);
      }
    }
    const [own, other] = [median(rates.hothot), median(rates.express)];
    const figures = {
      hothotPerSecond: rounded(own, 0),
      expressPerSecond: rounded(other, 0),
      ratio: rounded(own / other),
    };
    return {
      rows: [
        ["", "PUT/s", "ratio"],
        ["Express no-op", figures.expressPerSecond, 1],
        ["hothot, local", figures.hothotPerSecond, figures.ratio],
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
