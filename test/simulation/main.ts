import { biases, covered } from "./bias.js";
import { rules, type Rule } from "./rules.js";
import { run, type RunResult } from "./world.js";

const args = process.argv.slice(2);
const value = (name: string, otherwise: number): number => {
  const at = args.indexOf(`--${name}`);
  return at < 0 ? otherwise : Number(args[at + 1]);
};
const has = (name: string): boolean => args.includes(`--${name}`);
const out = (line: string): void => void process.stdout.write(`${line}\n`);

function tell(result: RunResult): string {
  return result.violation === null ? "no violation" : `${result.violation.message}`;
}

/** One seed, exactly as it always is. */
async function replay(seed: number, off: ReadonlySet<Rule>): Promise<void> {
  const story: string[] = [];
  const result = await run(seed, { off, ...played, long: has("long"), ...(has("story") ? { story } : {}) });
  for (const line of story) out(line);
  out(
    `seed ${seed}: ${tell(result)}; ${result.events} events, ${JSON.stringify(result.counts)}, healed in ${result.healedMs.toFixed(0)} ms`,
  );
  if (has("stats")) tellStats(result.happened, 1);
  if (result.violation !== null) process.exitCode = 1;
}

/** Prints how often each fault happened. */
function tellStats(happened: ReadonlyMap<string, number>, seeds: number): void {
  for (const [what, times] of [...happened].sort(([, a], [, b]) => b - a))
    out(`${(times / seeds).toFixed(2).padStart(9)} per seed  ${what}`);
}

async function many(from: number, seeds: number, off: ReadonlySet<Rule>): Promise<void> {
  const began = performance.now();
  const happened = new Map<string, number>();
  const sum = { events: 0, opens: 0, answers: 0, records: 0, divergent: 0, worst: 0, failed: 0 };
  for (let seed = from; seed < from + seeds; seed++) {
    const result = await run(seed, { off, ...played, long: has("long") });
    for (const [what, times] of result.happened) happened.set(what, (happened.get(what) ?? 0) + times);
    sum.events += result.events;
    sum.opens += result.counts.opens;
    sum.answers += result.counts.answers;
    sum.records += result.counts.records;
    sum.divergent += result.counts.divergent;
    sum.worst = Math.max(sum.worst, result.healedMs);
    if (result.violation === null) continue;
    out(`seed ${seed}: ${tell(result)}`);
    process.exitCode = 1;
    sum.failed++;
    if (!has("all")) break;
  }
  if (has("stats")) tellStats(happened, seeds);
  out(`${JSON.stringify(sum)} in ${((performance.now() - began) / 1000).toFixed(1)} s`);
}

/** Removes each rule in turn: how soon is it missed? */
async function bite(seeds: number, names: readonly Rule[]): Promise<void> {
  for (const rule of names) {
    const why = covered[rule];
    if (why !== undefined && !has("all")) {
      out(`without ${rule} (${rules[rule]}): can't be noticed alone: ${why}`);
      continue;
    }
    const began = performance.now();
    let found: RunResult | undefined;
    let tried = 0;
    for (let seed = 1; seed <= seeds && found === undefined; seed++) {
      tried++;
      const bias = biases[rule];
      const result = await run(seed, { off: new Set([rule]), ...(bias === undefined ? {} : { bias }) });
      if (result.violation !== null) found = result;
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(0);
    out(
      `without ${rule} (${rules[rule]}): ${found === undefined ? `NOTHING in ${tried} seeds` : `seed ${found.seed}: ${tell(found)}`} [${seconds} s]`,
    );
  }
}

// Refusals are errors too, and there are many: without stack traces they are cheap.
if (!has("seed")) Error.stackTraceLimit = 0;
/** The story of a rule, played with or without that rule. */
const told = args.find((_, at) => args[at - 1] === "--bias") as Rule | undefined;
const bias = told === undefined ? undefined : biases[told];
const played = bias === undefined ? {} : { bias };
const named = args.flatMap((arg, at) =>
  args[at - 1] === "--off" || args[at - 1] === "--rules" ? arg.split(",") : [],
) as Rule[];
const help = `Runs the product's ownership, lease, publish and apply code of several datacenters on a seeded scheduler.

  npm run simulate -- [--seeds N] [--from S]   many seeds (default 2,000 from 1); --all goes on behind a violation
  npm run simulate -- --seed S [--story]       one seed, exactly as it always is; --story tells what happens in it
  npm run simulate -- --bite [--rules A,B] [--seeds N]
                                               leaves out each rule in turn, and says which seed notices (default 20,000);
                                               rules that others cover are named with the reason, --all tries them too
  --off A,B     leaves rules out      --bias RULE  plays the story that is made for a rule
  --long        faults for longer     --stats      how often each kind of fault happened per seed

Rules:
${Object.entries(rules)
  .map(([name, what]) => `  ${name.padEnd(15)} ${what}`)
  .join("\n")}`;
if (has("help")) out(help);
else if (has("bite")) await bite(value("seeds", 20_000), named.length > 0 ? named : (Object.keys(rules) as Rule[]));
else if (has("seed")) await replay(value("seed", 1), new Set(named));
else await many(value("from", 1), value("seeds", 2_000), new Set(named));
