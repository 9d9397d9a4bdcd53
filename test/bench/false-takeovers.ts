import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
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

/** Whether a busy machine is mistaken for a dead datacenter. */
export const falseTakeovers: Scenario = {
  name: "false-takeovers",
  what: "all cores loaded to 100 % by other work, 20 writes/s: takeovers, which must be none (use --seconds 600)",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, rate = 20, tell }: BenchOptions): Promise<BenchResult> {
  const { stack, client } = bench;
  const ids = stack.dcs.flatMap((dc) => bench.idsOf(dc, 50));
  const took: number[] = [];
  let failed = 0;
  const cores = availableParallelism();
  tell(`${cores} cores are kept busy for ${seconds} s`);
  const burners = Array.from({ length: cores }, () =>
    spawn(process.execPath, ["-e", "for (;;) ;"], { stdio: "ignore" }),
  );
  try {
    await atRate(rate, seconds, async (number) => {
      const through = stack.dcs[number % stack.dcs.length] ?? "";
      const path = `/v1/clusters/${ids[(number * 7) % ids.length] ?? ""}`;
      const answer = await client.request(through, "PUT", path, { body: clusterBody(`busy-${number}`) });
      if (answer.status < 200 || answer.status >= 300) failed++;
      else took.push(answer.endedAt - answer.startedAt);
    });
  } finally {
    for (const burner of burners) burner.kill("SIGKILL");
  }
  const { text } = await client.request(stack.dcs[0] ?? "", "GET", "/v1/history?limit=1000");
  const { items } = JSON.parse(text) as { items: { kind: string; from: string | null; to: string }[] };
  const takeovers = items.filter(({ kind, from, to }) => kind === "takeover" && from !== to).length;
  const resumed = items.filter(({ kind, from, to }) => kind === "takeover" && from === to).length;
  const writeMs = latencyOf(took);
  return {
    rows: [
      ["", ""],
      ["seconds", seconds],
      ["shards taken over from a live datacenter", takeovers],
      ["shards fenced and resumed by their owner", resumed],
      ["writes", took.length],
      ["failed writes", failed],
      ["write p50 ms", writeMs.p50],
      ["write p99 ms", writeMs.p99],
    ],
    figures: { seconds, takeovers, resumed, failed, writeMs },
  };
}
