import { latencyOf } from "./figures.js";
import { JobCalls } from "./jobs.js";
import { onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";

const everyMs = 40;

/** How soon a worker that waits has the first task of a job. */
export const takeLatency: Scenario = {
  name: "take-latency",
  what: "from the request that starts a job until a waiting take is answered, and what that adds to the start's own answer, beside a plain write, idle; milliseconds",
  run: (options) => onStack(options, (bench) => measure(bench, options), { worker: false }),
};

async function measure(bench: Bench, { seconds, tell }: BenchOptions): Promise<BenchResult> {
  const [dc = ""] = bench.stack.dcs;
  const calls = new JobCalls(bench, dc);
  const clusters = bench.idsOf(dc, 50);
  await calls.makeClusters(clusters, ["a"]);
  await calls.register("bench-worker");
  const whole: number[] = [];
  const added: number[] = [];
  const plain: number[] = [];
  const one = async (number: number): Promise<void> => {
    const taking = calls.take("bench-worker", 1, 10_000).then((taken) => ({ taken, at: performance.now() }));
    await pause(everyMs);
    const startedAt = performance.now();
    await calls.start(clusters[number % clusters.length] ?? "", "stop");
    const answeredAt = performance.now();
    const { taken, at } = await taking;
    const [task] = taken;
    if (task === undefined) throw new Error("the take was answered without a task");
    whole.push(at - startedAt);
    added.push(Math.max(0, at - answeredAt));
    await calls.finish(task, "bench-worker");
    const writtenAt = performance.now();
    await calls.call("PUT", `/v1/clusters/${clusters[number % clusters.length] ?? ""}`, {
      name: "x",
      spec: { nodes: ["a"] },
    });
    plain.push(performance.now() - writtenAt);
  };
  tell("warming up");
  for (let number = 0; number < 50; number++) await one(number);
  whole.length = added.length = plain.length = 0;
  const until = performance.now() + seconds * 1_000;
  for (let number = 0; performance.now() < until; number++) await one(number);
  const figures = { fromRequestMs: latencyOf(whole), afterAnswerMs: latencyOf(added), plainWriteMs: latencyOf(plain) };
  const row = (what: string, { count, p50, p99, max }: typeof figures.afterAnswerMs) => [what, count, p50, p99, max];
  return {
    rows: [
      ["take answered", "count", "p50 ms", "p99 ms", "max ms"],
      row("after the start's request", figures.fromRequestMs),
      row("after the start's answer", figures.afterAnswerMs),
      row("a plain write, for comparison", figures.plainWriteMs),
    ],
    figures,
  };
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
