import { parseArgs } from "node:util";
import { bulk } from "./bulk.js";
import { catchUp } from "./catch-up.js";
import { digestCpu } from "./digest-cpu.js";
import { table } from "./figures.js";
import { jobBytes } from "./job-bytes.js";
import { logBytes } from "./log-bytes.js";
import { memory } from "./memory.js";
import { replicationLag } from "./replication-lag.js";
import { drain } from "./drain.js";
import { forwarded } from "./forwarded.js";
import { keys } from "./keys.js";
import { keyedTakeover } from "./keyed-takeover.js";
import { falseTakeovers } from "./false-takeovers.js";
import { restartJobs } from "./restart-jobs.js";
import { overload } from "./overload.js";
import type { Scenario } from "./scenario.js";
import { singlePuts } from "./single-puts.js";
import { snapshot } from "./snapshot.js";
import { takeLatency } from "./take-latency.js";
import { takeover } from "./takeover.js";
import { tasks } from "./tasks.js";
import { throughput } from "./throughput.js";
import { writeLatency } from "./write-latency.js";

const scenarios: readonly Scenario[] = [
  writeLatency,
  replicationLag,
  takeover,
  drain,
  falseTakeovers,
  overload,
  catchUp,
  memory,
  singlePuts,
  tasks,
  takeLatency,
  restartJobs,
  jobBytes,
  throughput,
  bulk,
  snapshot,
  logBytes,
  digestCpu,
  forwarded,
  keys,
  keyedTakeover,
];

const help = `Usage: npm run bench -- [SCENARIO ...] [options]

Measures a stack of three datacenters on this machine, which it starts and removes for each scenario. Without a
scenario it runs all.

Scenarios:
${scenarios.map(({ name, what }) => `  ${name.padEnd(16)} ${what}`).join("\n")}

Options:
  --scenario NAME  the same as NAME alone; may be given again
  --seconds N      length of each measurement (default 10)
  --runs N         repetitions of takeover, single-puts and keys (default 3)
  --shards N       shards of the stack (default 64; drain 384)
  --rows N         rows of each import of bulk (default 100000); writes that catch-up's datacenter misses at least
  --mb N           megabytes of the shard of snapshot (default 200)
  --clusters N,N   clusters that are loaded first, by takeover; several numbers are measured one after the other
  --rate W         writes per second, where a scenario has a rate
  --json           print one JSON object per scenario (progress goes to stderr)
  --help           this text

Exit codes: 0 measured, 1 a measurement failed, 2 wrong usage.
`;

process.exitCode = await main(process.argv.slice(2));

async function main(argv: string[]): Promise<number> {
  const options = parse(argv);
  if (typeof options === "string") {
    process.stderr.write(`${options}\n\n${help}`);
    return 2;
  }
  if (options.help) {
    process.stdout.write(help);
    return 0;
  }
  const tell = (line: string): void => void process.stderr.write(`  ${line}\n`);
  let code = 0;
  for (const scenario of options.chosen) {
    process.stderr.write(`${scenario.name}: ${scenario.what}\n`);
    try {
      const { rows, figures } = await scenario.run({ ...options, tell });
      process.stdout.write(
        options.json
          ? `${JSON.stringify({ scenario: scenario.name, ...figures })}\n`
          : `\n${scenario.name}\n${table(rows)}\n\n`,
      );
    } catch (error) {
      process.stderr.write(`bench: ${scenario.name}: ${(error as Error).message}\n`);
      code = 1;
    }
  }
  return code;
}

interface Options {
  readonly chosen: readonly Scenario[];
  readonly seconds: number;
  readonly runs: number;
  readonly rate: number | undefined;
  readonly shards: number | undefined;
  readonly rows: number | undefined;
  readonly mb: number | undefined;
  readonly clusters: readonly number[] | undefined;
  readonly json: boolean;
  readonly help: boolean;
}

function parse(argv: string[]): Options | string {
  try {
    const { values, positionals } = parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        seconds: { type: "string", default: "10" },
        runs: { type: "string", default: "3" },
        rate: { type: "string" },
        shards: { type: "string" },
        scenario: { type: "string", multiple: true, default: [] },
        rows: { type: "string" },
        mb: { type: "string" },
        clusters: { type: "string" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    const named = [...positionals, ...values.scenario];
    const unknown = named.find((name) => !scenarios.some((scenario) => scenario.name === name));
    if (unknown !== undefined) return `there is no scenario ${unknown}`;
    const [seconds, runs] = [Number(values.seconds), Number(values.runs)];
    const rate = values.rate === undefined ? undefined : Number(values.rate);
    if (!(seconds >= 1 && seconds <= 600)) return "--seconds must be from 1 to 600";
    if (!Number.isInteger(runs) || runs < 1 || runs > 100) return "--runs must be a whole number from 1 to 100";
    if (rate !== undefined && !(rate >= 1 && rate <= 20_000)) return "--rate must be from 1 to 20000";
    const shards = values.shards === undefined ? undefined : Number(values.shards);
    if (shards !== undefined && !(Number.isInteger(shards) && shards >= 1 && shards <= 4096))
      return "--shards must be a whole number from 1 to 4096";
    const rows = values.rows === undefined ? undefined : Number(values.rows);
    if (rows !== undefined && !(Number.isInteger(rows) && rows >= 1 && rows <= 10_000_000))
      return "--rows must be a whole number from 1 to 10000000";
    const mb = values.mb === undefined ? undefined : Number(values.mb);
    if (mb !== undefined && !(Number.isInteger(mb) && mb >= 1 && mb <= 10_000))
      return "--mb must be a whole number from 1 to 10000";
    const clusters = values.clusters?.split(",").map(Number);
    if (clusters?.some((count) => !Number.isInteger(count) || count < 1 || count > 10_000_000))
      return "--clusters must be whole numbers from 1 to 10000000";
    const chosen = scenarios.filter(({ name }) => named.length === 0 || named.includes(name));
    return { chosen, seconds, runs, rate, shards, rows, mb, clusters, json: values.json, help: values.help };
  } catch (error) {
    return (error as Error).message;
  }
}
