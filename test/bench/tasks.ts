import { rounded } from "./figures.js";
import { each, JobCalls } from "./jobs.js";
import { spentMs } from "./spent.js";
import { onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";

const takers = 4;
const perTake = 25;
const nodes = ["a", "b", "c"];
const stages = 7;
/** More than the machine can do: the work must not run out. */
const mostPerSecond = 2_500;

/** Tasks through take and finish in one datacenter: each is two commits, and its stage's end a third. */
export const tasks: Scenario = {
  name: "tasks",
  what: "tasks taken and finished per second in one datacenter, by 4 workers over HTTP; jobs of 7 stages on 3 nodes",
  run: (options) => onStack(options, (bench) => measure(bench, options), { worker: false }),
};

async function measure(bench: Bench, { seconds, tell }: BenchOptions): Promise<BenchResult> {
  const [dc = ""] = bench.stack.dcs;
  const calls = new JobCalls(bench, dc);
  const count = Math.ceil((mostPerSecond * (seconds + 2)) / (stages * nodes.length));
  const clusters = bench.idsOf(dc, count);
  tell(`${count} jobs`);
  await calls.makeClusters(clusters, nodes);
  await each(clusters, async (id) => void (await calls.start(id, "create")));
  const workers = Array.from({ length: takers }, (_, number) => `bench-worker-${number}`);
  for (const id of workers) await calls.register(id);
  let finished = 0;
  let going = true;
  const working = workers.map(async (id) => {
    while (going)
      await Promise.all(
        (await calls.take(id, perTake, 1_000)).map(async (task) => {
          await calls.finish(task, id);
          finished++;
        }),
      );
  });
  const failed = Promise.all(working);
  const measured = (async () => {
    await pause(1_000);
    const [before, startedAt, spent] = [finished, performance.now(), spentMs(bench.stack, [dc])];
    await pause(seconds * 1_000);
    const done = finished - before;
    return {
      tasksPerSecond: rounded((done * 1_000) / (performance.now() - startedAt), 0),
      processorMsPerTask: rounded((spentMs(bench.stack, [dc]) - spent) / done),
    };
  })();
  const figures = await Promise.race([measured, failed.then(() => Promise.reject(new Error("the workers ended")))]);
  going = false;
  await failed;
  if (finished >= count * stages * nodes.length) throw new Error("the work ran out: raise mostPerSecond");
  return {
    rows: [
      ["", "tasks/s", "processor ms per task"],
      ["taken and finished", figures.tasksPerSecond, figures.processorMsPerTask],
    ],
    figures,
  };
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
