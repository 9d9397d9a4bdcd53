import { cpuOf } from "./cpu.js";
import { median, rounded } from "./figures.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { hammer, putBytes } from "./wire.js";

const connections = 32;

/** What an idempotency key costs: the same PUTs with and without one, in turns. */
export const keys: Scenario = {
  name: "keys",
  what: "most single PUTs per second with an idempotency key each, in turns with the same without; the cost in percent, by rate and by CPU time",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, runs, tell }: BenchOptions): Promise<BenchResult> {
  const [dc = ""] = bench.stack.dcs;
  const url = new URL(bench.stack.url(dc));
  const bodies = bench.idsOf(dc, 256).map((id) => ({ id, text: JSON.stringify(clusterBody(id)) }));
  let made = 0;
  /** With a header in either case, so that the client does the same. */
  const request = (header: string) => (number: number) => {
    const { id = "", text = "" } = bodies[number % bodies.length] ?? {};
    return putBytes(url, `/v1/clusters/${id}`, text, `${header}: bench-${1_000_000 + made++}\r\n`);
  };
  const headers = { plain: "X-Nobody-Reads", keyed: "Idempotency-Key" };
  const rates: Record<keyof typeof headers, number[]> = { plain: [], keyed: [] };
  const cpuMs: Record<keyof typeof headers, number[]> = { plain: [], keyed: [] };
  // Many short turns: what else a machine does comes and goes.
  const length = Math.max(1, seconds / 4);
  tell("warming up");
  for (const name of ["plain", "keyed"] as const) await hammer(url, request(headers[name]), connections, 2);
  for (let turn = 1; turn <= Math.max(3, 2 * runs); turn++) {
    const order = turn % 2 === 1 ? (["plain", "keyed"] as const) : (["keyed", "plain"] as const);
    for (const name of order) {
      const before = cpuOf(bench.stack);
      const first = made;
      const rate = await hammer(url, request(headers[name]), connections, length);
      rates[name].push(rate);
      const after = cpuOf(bench.stack);
      if (before !== null && after !== null) cpuMs[name].push((after.stack - before.stack) / (made - first));
      tell(`turn ${turn}: ${name} ${Math.round(rate)} PUT/s`);
    }
  }
  const ratios = rates.plain.map((plain, turn) => (rates.keyed[turn] ?? NaN) / plain);
  const [plainCpuMs, keyedCpuMs] = [median(cpuMs.plain), median(cpuMs.keyed)];
  const figures = {
    plainPerSecond: rounded(median(rates.plain), 0),
    keyedPerSecond: rounded(median(rates.keyed), 0),
    costPercent: rounded((1 - median(ratios)) * 100, 1),
    plainCpuMs: rounded(plainCpuMs),
    keyedCpuMs: rounded(keyedCpuMs),
    cpuCostPercent: rounded((keyedCpuMs / plainCpuMs - 1) * 100, 1),
  };
  return {
    rows: [
      ["PUT", "per second", "CPU ms each, all processes"],
      ["without a key", figures.plainPerSecond, figures.plainCpuMs],
      ["with a key", figures.keyedPerSecond, figures.keyedCpuMs],
      ["cost, %", figures.costPercent, figures.cpuCostPercent],
    ],
    figures,
  };
}
