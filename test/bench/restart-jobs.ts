import { readLog } from "../integration/log-reader.js";
import { latencyOf, rounded, type Latency } from "./figures.js";
import { each, everywhere, JobCalls } from "./jobs.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

const count = 5_000;
const patienceMs = 60_000;

/** What a takeover with many unfinished jobs costs, and what the survivors' own writers feel of it. */
export const restartJobs: Scenario = {
  name: "restart-jobs",
  what: "kill -9 of the datacenter that owns 5,000 unfinished jobs: their restarts, and live writes of the survivors' own shards meanwhile",
  run: (options) =>
    onStack(options, (bench) => measure(bench, options), {
      worker: false,
      env: { HOTHOT_AUTOMATIC_FAILBACK: "false" },
    }),
};

interface Sample {
  readonly startedAt: number;
  readonly ms: number;
}

async function measure(bench: Bench, { rate = 100, seconds, tell }: BenchOptions): Promise<BenchResult> {
  const [dead = "", ...survivors] = bench.stack.dcs;
  const calls = new JobCalls(bench, dead);
  const clusters = bench.idsOf(dead, count);
  tell(`${count} jobs`);
  await calls.makeClusters(clusters, ["a", "b"]);
  await each(clusters, async (id) => void (await calls.start(id, "create")));
  await everywhere(bench);
  const ids = new Map(survivors.map((dc) => [dc, bench.idsOf(dc, 200)]));
  const samples: Sample[] = [];
  let refused = 0;
  const write = async (number: number): Promise<void> => {
    const dc = survivors[number % survivors.length] ?? "";
    const own = ids.get(dc) ?? [];
    const path = `/v1/clusters/${own[Math.floor(number / survivors.length) % own.length] ?? ""}`;
    const answer = await bench.client.request(dc, "PUT", path, { body: clusterBody(`live-${number}`) });
    if (answer.status < 200 || answer.status >= 300) refused++;
    else samples.push({ startedAt: answer.startedAt, ms: answer.endedAt - answer.startedAt });
  };
  tell(`${rate} live writes/s`);
  await atRate(rate, 3, write);
  samples.length = refused = 0;
  await atRate(rate, seconds, write);
  const calm = latencyOf(samples.map(({ ms }) => ms));
  samples.length = 0;
  let going = true;
  const live = (async () => {
    while (going) await atRate(rate, 1, write);
  })();
  tell(`kills ${dead}`);
  // Of the records: their owners' clocks, which are this machine's.
  const wallAtZero = Date.now() - performance.now();
  const killedAt = Date.now();
  await bench.stack.simulate("crash", dead);
  try {
    await allRestarted(bench, survivors[0] ?? "");
  } finally {
    going = false;
    await live;
  }
  const restarts = (await readLog(bench.stack, survivors[0] ?? "")).entries
    .filter(({ record }) => record.type === "job.restart")
    .map(({ record }) => record.at)
    .sort((a, b) => a - b);
  if (restarts.length !== count) throw new Error(`the log has ${restarts.length} restarts of ${count} jobs`);
  const [first = 0, last = 0] = [restarts[0], restarts.at(-1)];
  const meanwhile = latencyOf(
    samples
      .filter(({ startedAt }) => startedAt + wallAtZero >= first && startedAt + wallAtZero <= last)
      .map(({ ms }) => ms),
  );
  const figures = {
    jobs: count,
    restartSeconds: rounded((last - first) / 1_000),
    restartsPerSecond: rounded(count / Math.max(0.001, (last - first) / 1_000), 0),
    killToFirstMs: first - killedAt,
    killToLastMs: last - killedAt,
    liveWriteMs: { calm, meanwhile },
    refused,
  };
  const row = (what: string, { count: n, p50, p99, max }: Latency) => [what, n, p50, p99, max];
  return {
    rows: [
      ["", "count", "p50 ms", "p99 ms", "max ms"],
      row("live writes, before", calm),
      row("live writes, during the restarts", meanwhile),
      [
        "restarts: s, per s, first and last after the kill ms",
        figures.restartSeconds,
        figures.restartsPerSecond,
        figures.killToFirstMs,
        figures.killToLastMs,
      ],
    ],
    figures,
  };
}

async function allRestarted(bench: Bench, dc: string): Promise<void> {
  await bench.stack.until(
    async () => {
      const [row] = await bench.query(dc, "SELECT count(*)::int AS n FROM jobs WHERE attempt > 1");
      return Number(row?.["n"]) >= count;
    },
    patienceMs,
    `${dc} has every job in its next attempt`,
  );
}
