import { latencyOf } from "./figures.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

const defaultShards = 384;

/** What a planned move costs the writers: every shard of one datacenter is given away under load. */
export const drain: Scenario = {
  name: "drain",
  what: "drain of a datacenter that owns a third of the shards, under 500 writes/s through all datacenters: failed requests, holds; milliseconds",
  run: (options) => {
    const shards = options.shards ?? defaultShards;
    return onStack({ ...options, shards }, (bench) => measure(bench, options));
  },
};

async function measure(bench: Bench, { seconds, rate = 500, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, client } = bench;
  const [dc = "", asked = ""] = stack.dcs;
  const ids = stack.dcs.flatMap((owner) => bench.idsOf(owner, 400));
  const before: number[] = [];
  const during: number[] = [];
  const failures: string[] = [];
  let latencies = before;
  const write = async (number: number): Promise<void> => {
    const through = stack.dcs[number % stack.dcs.length] ?? "";
    const path = `/v1/clusters/${ids[(number * 7) % ids.length] ?? ""}`;
    const mine = latencies;
    const answer = await client.request(through, "PUT", path, { body: clusterBody(`drain-${number}`) });
    if (answer.status < 200 || answer.status >= 300) failures.push(`${answer.status} ${answer.text}`);
    else mine.push(answer.endedAt - answer.startedAt);
  };
  tell("warming up");
  await atRate(rate, 3, write);
  before.length = failures.length = 0;
  tell(`${rate} writes/s for ${seconds} s without a move`);
  await atRate(rate, seconds, write);
  latencies = during;
  tell(`drains ${dc}`);
  let draining = true;
  let totalMs = 0;
  let moved = 0;
  const loading = (async () => {
    while (draining) await atRate(rate, 1, write);
  })();
  try {
    const startedAt = performance.now();
    const started = await client.request(asked, "POST", "/v1/drains", { body: { dc } });
    if (started.status !== 202) throw new Error(`the drain was refused: ${started.text}`);
    const { id } = JSON.parse(started.text) as { id: string };
    for (;;) {
      const { text } = await client.request(asked, "GET", `/v1/drains/${id}`);
      const { status, progress, error } = JSON.parse(text) as {
        status: string;
        progress: { done: number };
        error: string | null;
      };
      moved = progress.done;
      if (status === "complete") break;
      if (status !== "running" || performance.now() - startedAt > 120_000)
        throw new Error(`the drain ${status}: ${error ?? ""}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    totalMs = Math.round(performance.now() - startedAt);
  } finally {
    draining = false;
    await loading;
  }
  const { holds, phases } = movesOf(stack.logs(dc));
  const figures = {
    shards: moved,
    failedRequests: failures.length,
    totalMs,
    holdMs: latencyOf(holds),
    phasesMs: Object.fromEntries(phaseNames.map((name) => [name, latencyOf(phases[name])])),
    writeMs: { before: latencyOf(before), during: latencyOf(during) },
  };
  for (const failure of failures.slice(0, 5)) tell(failure);
  const row = (what: string, { count, p50, p99, max }: ReturnType<typeof latencyOf>) => [what, count, p50, p99, max];
  return {
    rows: [
      ["", "count", "p50 ms", "p99 ms", "max ms"],
      row("a shard is held", figures.holdMs),
      ...phaseNames.map((name) => row(`  ${phaseTexts[name]}`, latencyOf(phases[name]))),
      row("write before", figures.writeMs.before),
      row("write during the drain", figures.writeMs.during),
      [`${moved} shards in ${totalMs} ms`, `${failures.length} failed`, "", "", ""],
    ],
    figures,
  };
}

const phaseNames = ["hold", "flush", "carry", "open", "serve"] as const;
type PhaseName = (typeof phaseNames)[number];
const phaseTexts: Readonly<Record<PhaseName, string>> = {
  hold: "every process holds it",
  flush: "the log has its last write",
  carry: "the target has its progress",
  open: "the log opens it",
  serve: "the target serves it",
};

/** From each shard being set `moving` until its target serves it, and the parts of that, as the owner has logged it. */
function movesOf(log: string): {
  readonly holds: readonly number[];
  readonly phases: Readonly<Record<PhaseName, readonly number[]>>;
} {
  const moves = log
    .split("\n")
    .flatMap((line) =>
      line.includes('"message":"moved"')
        ? [JSON.parse(line) as Partial<Record<PhaseName, number>> & { heldMs?: number }]
        : [],
    );
  const of = (name: PhaseName): number[] => moves.flatMap((move) => move[name] ?? []);
  return {
    holds: moves.flatMap(({ heldMs }) => heldMs ?? []),
    phases: { hold: of("hold"), flush: of("flush"), carry: of("carry"), open: of("open"), serve: of("serve") },
  };
}
