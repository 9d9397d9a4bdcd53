import { applyHistogram, since } from "./apply-histogram.js";
import { latencyOf, median, quantile, rounded } from "./figures.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { steady } from "./steady.js";
import { hammer, putBytes } from "./wire.js";

const connections = 8;
/** Seconds for which a rate is tried. */
const trialSeconds = 15;
/** Seconds at a share of the largest rate. */
const shareSeconds = 60;
const sampleMs = 500;
/** Lag that is no lag to speak of, and how much larger its last third may be than its first. */
const calmMs = 250;
const growth = 1.5;

/**
 * The largest rate of single PUTs, over all datacenters, at which no copy falls behind: what hammering clients get, then less
 * until the lag keeps still for the whole length. Then the lag at 80 % and 50 % of it.
 */
export const throughput: Scenario = {
  name: "throughput",
  what: "the largest rate of PUTs over three datacenters at which lag does not grow; lag at it, at 80 % and at 50 % of it",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

interface Phase {
  readonly asked: number;
  readonly perSecond: number;
  readonly failedShare: number;
  readonly writeMs: { readonly p50: number; readonly p99: number };
  readonly appliedMs: { readonly p50: number; readonly p99: number };
  /** Medians of the worst shard's lag, first and last third of the time. */
  readonly lagMs: { readonly first: number; readonly last: number; readonly max: number };
}

async function measure(bench: Bench, { seconds, tell, rate }: BenchOptions): Promise<BenchResult> {
  const { dcs } = bench.stack;
  const targets = dcs.map((dc) => {
    const url = new URL(bench.stack.url(dc));
    return { url, requests: bench.idsOf(dc, 500).map((id) => putBytes(url, `/v1/clusters/${id}`, clusterBody(id))) };
  });
  tell("warming up");
  const hammered = async (length: number): Promise<number> =>
    (await Promise.all(targets.map(({ url, requests }) => hammer(url, requests, connections, length)))).reduce(
      (sum, each) => sum + each,
      0,
    );
  await hammered(3);
  const most = rate ?? (await hammered(5));
  tell(`clients that do not wait get ${Math.round(most)} writes/s`);
  const phase = async (perSecond: number, length: number): Promise<Phase> => {
    await settled(bench);
    const lags: number[] = [];
    const before = await applyHistogram(bench);
    let over = false;
    const watch = (async () => {
      while (!over) {
        lags.push(Math.max(...(await Promise.all(dcs.map((dc) => worstLag(bench, dc))))));
        await new Promise((resolve) => setTimeout(resolve, sampleMs));
      }
    })();
    const found = await Promise.all(
      targets.map(({ url, requests }) =>
        steady(url, requests, { connections: connections * 4, perSecond: perSecond / dcs.length, seconds: length }),
      ),
    );
    over = true;
    await watch;
    const applied = since(before, await applyHistogram(bench));
    const third = Math.max(1, Math.floor(lags.length / 3));
    const failed = found.reduce((sum, each) => sum + each.failed, 0);
    const write = latencyOf(found.flatMap((each) => each.latencies));
    return {
      asked: rounded(perSecond, 0),
      perSecond: rounded(
        found.reduce((sum, each) => sum + each.perSecond, 0),
        0,
      ),
      failedShare: rounded(failed / Math.max(1, failed + write.count), 4),
      writeMs: { p50: write.p50, p99: write.p99 },
      appliedMs: { p50: applied.at(0.5), p99: applied.at(0.99) },
      lagMs: {
        first: rounded(median(lags.slice(0, third)), 0),
        last: rounded(median(lags.slice(-third)), 0),
        max: rounded(quantile(lags, 1), 0),
      },
    };
  };
  let largest: Phase | undefined;
  for (let asked = most * 0.95; largest === undefined && asked > most * 0.2; asked *= 0.85) {
    const trial = await phase(asked, Math.min(seconds, trialSeconds));
    tell(`${trial.asked}/s asked, ${trial.perSecond}/s done, lag ${trial.lagMs.first} -> ${trial.lagMs.last} ms`);
    if (!sustained(trial)) continue;
    const whole = await phase(asked, seconds);
    tell(
      `${whole.perSecond}/s for ${seconds} s, ${whole.failedShare * 100} % failed: lag ${whole.lagMs.first} -> ${whole.lagMs.last} ms`,
    );
    if (sustained(whole)) largest = whole;
  }
  if (largest === undefined) throw new Error("lag grows at every rate that was tried");
  const phases = new Map([["largest", largest]]);
  for (const share of [0.8, 0.5])
    phases.set(`${share * 100} %`, await phase(largest.asked * share, Math.min(seconds, shareSeconds)));
  return {
    rows: [
      ["", "writes/s", "write p50 ms", "p99", "applied p50 ms", "p99", "worst lag first third ms", "last third", "max"],
      ...[...phases].map(([name, each]) => [
        name,
        each.perSecond,
        each.writeMs.p50,
        each.writeMs.p99,
        each.appliedMs.p50,
        each.appliedMs.p99,
        each.lagMs.first,
        each.lagMs.last,
        each.lagMs.max,
      ]),
    ],
    figures: { unpacedPerSecond: rounded(most, 0), ...Object.fromEntries(phases) },
  };
}

/** The rate was met, and the lag did not grow. */
const sustained = ({ asked, perSecond, failedShare, lagMs }: Phase): boolean =>
  failedShare < 0.01 && perSecond >= asked * 0.97 && (lagMs.last < calmMs || lagMs.last <= lagMs.first * growth);

async function worstLag({ client }: Bench, dc: string): Promise<number> {
  const { text } = await client.request(dc, "GET", "/v1/lag?limit=1000");
  return Math.max(0, ...(JSON.parse(text) as { items: { ms: number }[] }).items.map((each) => each.ms));
}

/** Waits until what was written before is everywhere. */
async function settled(bench: Bench): Promise<void> {
  const deadline = performance.now() + 60_000;
  while (performance.now() < deadline) {
    const lags = await Promise.all(bench.stack.dcs.map((dc) => worstLag(bench, dc)));
    if (Math.max(...lags) === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  throw new Error("the copies do not catch up");
}
