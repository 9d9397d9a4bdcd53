import { parseArgs } from "node:util";
import { seededRandom } from "../../infra/random.js";
import { startStack } from "../harness/stack.js";
import { faults } from "./faults.js";
import { runJobChaos } from "./jobs.js";
import { runRounds } from "./rounds.js";
import { runSecondDeaths } from "./second-death.js";
import { runCase } from "./switchover.js";
import { switchoverCases } from "./switchover-cases.js";

const help = `Usage: npm run chaos -- --scenario NAME [options]

Writes, reads and runs jobs in three datacenters while one after the other is hurt and mended, then checks all that
was recorded against the invariants of DESIGN.md.

Scenarios:
${faults.map(({ name, what }) => `  ${name.padEnd(15)} ${what}`).join("\n")}
  jobs            200 jobs while one datacenter after the other is killed at random; a round is a kill
  second-death    four datacenters and a witness: a second one dies while it takes over from the first, then a third one
  second-of-three the second death in three datacenters, which leaves no majority
  switchover      planned moves that go wrong at each of their steps; a round is every case once

Options:
  --rounds N     how often (default 5)
  --seed S       of the random choices of the load (default: another one each time; it is printed)
  --rate W       writes per second (default 150)
  --json         print one JSON object last (progress goes to stderr)
  --help         this text

Exit codes: 0 no violation, 1 a violation or a failed run, 2 wrong usage.
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
  if (options.scenario === "switchover") return switchovers(options.rounds, options.json);
  if (options.scenario === "second-death" || options.scenario === "second-of-three") return secondDeaths(options);
  if (options.scenario === "jobs") return jobs(options.rounds, options.seed, options.json);
  const fault = faults.find(({ name }) => name === options.scenario);
  if (fault === undefined) {
    process.stderr.write(`there is no scenario ${options.scenario}\n\n${help}`);
    return 2;
  }
  const { rounds, seed, rate, json } = options;
  const startedAt = performance.now();
  const tell = (line: string): void => {
    (json ? process.stderr : process.stdout).write(
      `${((performance.now() - startedAt) / 1000).toFixed(1).padStart(6)} s  ${line}\n`,
    );
  };
  tell(`${fault.name}: ${rounds} rounds, seed ${seed}`);
  const stack = await startStack();
  try {
    tell("three datacenters serve");
    const result = await runRounds(stack, { fault, rounds, random: seededRandom(seed), tell, writesPerSecond: rate });
    const { violations, history } = result;
    const counts = {
      writes: history.writes.length,
      reads: history.reads.length,
      jobs: history.jobs.length,
      lateFinishes: history.finishes.length,
      divergent: history.divergent.length,
    };
    tell(
      Object.entries(counts)
        .map(([name, count]) => `${count} ${name}`)
        .join(", "),
    );
    for (const { invariant, what } of violations.slice(0, 50)) tell(`VIOLATION of ${invariant}: ${what}`);
    tell(violations.length === 0 ? "no violation" : `${violations.length} violations; repeat with --seed ${seed}`);
    if (json)
      process.stdout.write(
        `${JSON.stringify({ ok: violations.length === 0, scenario: fault.name, seed, counts, rounds: result.rounds, violations })}\n`,
      );
    return violations.length === 0 ? 0 : 1;
  } catch (error) {
    process.stderr.write(`chaos: ${(error as Error).message}\n`);
    return 1;
  } finally {
    await stack.stop();
  }
}

async function secondDeaths(options: {
  readonly scenario: string;
  readonly rounds: number;
  readonly seed: number;
  readonly rate: number;
  readonly json: boolean;
}): Promise<number> {
  const { scenario, rounds, seed, json } = options;
  const tell = (line: string): void => void (json ? process.stderr : process.stdout).write(`${line}\n`);
  tell(`${scenario}: ${rounds} rounds, seed ${seed}`);
  const stack = await startStack(scenario === "second-death" ? { dcs: ["a", "b", "c", "d"], witness: "w" } : {});
  try {
    const result = await runSecondDeaths(stack, { rounds, random: seededRandom(seed), tell });
    const { violations } = result;
    for (const { invariant, what } of violations.slice(0, 50)) tell(`VIOLATION of ${invariant}: ${what}`);
    tell(violations.length === 0 ? "no violation" : `${violations.length} violations; repeat with --seed ${seed}`);
    if (json)
      process.stdout.write(
        `${JSON.stringify({ ok: violations.length === 0, scenario, seed, rounds: result.rounds, violations })}\n`,
      );
    return violations.length === 0 ? 0 : 1;
  } catch (error) {
    process.stderr.write(`chaos: ${(error as Error).message}\n`);
    return 1;
  } finally {
    await stack.stop();
  }
}

async function jobs(kills: number, seed: number, json: boolean): Promise<number> {
  const tell = (line: string): void => void (json ? process.stderr : process.stdout).write(`${line}\n`);
  const stack = await startStack({ worker: false, env: { HOTHOT_TASK_LEASE_MS: "10000" } });
  try {
    tell(`jobs: seed ${seed}`);
    const result = await runJobChaos(stack, { jobs: 200, kills, untilEnded: true, random: seededRandom(seed), tell });
    const { violations, restarted, late, tasks } = result;
    tell(`${restarted} of 200 jobs restarted, ${tasks} tasks taken, ${late} late finishes`);
    for (const what of violations.slice(0, 50)) tell(`VIOLATION: ${what}`);
    tell(violations.length === 0 ? "no violation" : `${violations.length} violations; repeat with --seed ${seed}`);
    if (json)
      process.stdout.write(`${JSON.stringify({ ok: violations.length === 0, scenario: "jobs", seed, ...result })}\n`);
    return violations.length === 0 ? 0 : 1;
  } catch (error) {
    process.stderr.write(`chaos: ${(error as Error).message}\n`);
    return 1;
  } finally {
    await stack.stop();
  }
}

async function switchovers(rounds: number, json: boolean): Promise<number> {
  const stack = await startStack({ rttMs: 0, env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
  const results: { readonly name: string; readonly ok: boolean; readonly result: string }[] = [];
  try {
    for (let round = 0; round < rounds; round++)
      for (const [index, one] of switchoverCases.entries()) {
        let result: string;
        let ok = true;
        try {
          const { from, to, owner, epochs, ms } = await runCase(stack, one, round * switchoverCases.length + index);
          result = `${from} -> ${to}: ${owner} owns it, ${epochs} epochs later; written again after ${Math.round(ms)} ms`;
        } catch (error) {
          ok = false;
          result = (error as Error).message;
        }
        results.push({ name: one.name, ok, result });
        (json ? process.stderr : process.stdout).write(`${ok ? "ok  " : "FAIL"} ${one.name}\n       ${result}\n`);
      }
  } finally {
    await stack.stop();
  }
  const ok = results.every((each) => each.ok);
  if (json) process.stdout.write(`${JSON.stringify({ ok, scenario: "switchover", results })}\n`);
  return ok ? 0 : 1;
}

function parse(
  argv: string[],
): { scenario: string; rounds: number; seed: number; rate: number; json: boolean; help: boolean } | string {
  try {
    const { values } = parseArgs({
      args: argv,
      options: {
        scenario: { type: "string", default: "kill-rounds" },
        rounds: { type: "string", default: "5" },
        seed: { type: "string", default: String(Date.now() % 1_000_000) },
        rate: { type: "string", default: "150" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    const [rounds, seed, rate] = [Number(values.rounds), Number(values.seed), Number(values.rate)];
    if (!Number.isInteger(rounds) || rounds < 1 || rounds > 1000)
      return "--rounds must be a whole number from 1 to 1000";
    if (!Number.isInteger(seed) || seed < 0) return "--seed must be a whole number";
    if (!Number.isInteger(rate) || rate < 1 || rate > 5000) return "--rate must be a whole number from 1 to 5000";
    return { scenario: values.scenario, rounds, seed, rate, json: values.json, help: values.help };
  } catch (error) {
    return (error as Error).message;
  }
}
