import type { Command } from "commander";
import { UsageError } from "./failure.js";
import { bar, endProgress, progress } from "./output.js";
import { wholeNumber } from "./parse.js";
import { common, verb } from "./session.js";

interface Line {
  readonly shard: number;
  readonly dc: string;
  readonly epoch: number;
  readonly position: number;
  readonly equal: boolean;
  readonly clusters: readonly string[];
}

export function addVerify(program: Command): void {
  const command = program
    .command("verify")
    .description("compare all copies of all shards; exit code 1 when they differ");
  common(command.option("--timeout <s>", "seconds (default: 300)", wholeNumber(1, 100_000))).action(
    verb<{ timeout?: number }>(async (session, { timeout = 300 }) => {
      const items: Line[] = [];
      // In a pipe or a log file a bar is of no use.
      const drawn = process.stderr.isTTY;
      const total = drawn ? (await session.client.get<{ shards: number }>("/v1/topology")).shards : 0;
      for await (const line of session.client.lines<Line>("/v1/verify", timeout * 1000)) {
        items.push(line);
        if (drawn) progress(`${bar(Math.min(1, (line.shard + 1) / total))} of ${total} shards`);
      }
      endProgress();
      const unequal = items.filter((line) => !line.equal);
      const silent = unequal.filter((line) => line.epoch === 0);
      const different = unequal.filter((line) => line.epoch !== 0);
      const equal = unequal.length === 0;
      const shards = new Set(items.map((line) => line.shard)).size;
      const text = [
        ...different.map(
          (line) =>
            `shard ${line.shard} in ${line.dc} differs at ${line.epoch}:${line.position}: ${line.clusters.join(", ")}`,
        ),
        ...silent.map((line) => `shard ${line.shard} in ${line.dc}: no answer`),
        equal ? `${items.length} copies of ${shards} shards: all equal` : summary(items, different, silent),
      ];
      session.show({ equal, items }, text.join("\n"));
      const code = different.length > 0 ? "copies_differ" : "unreachable";
      if (!equal) process.stderr.write(`hothot: ${code}: ${unequal.length} of ${items.length}\n`);
      return equal ? 0 : 1;
    }),
  );
}

function summary(all: readonly Line[], different: readonly Line[], silent: readonly Line[]): string {
  const counts = [
    different.length > 0 ? [`${different.length} of ${all.length} copies differ`] : [],
    silent.length > 0 ? [`${silent.length} of ${all.length} copies do not answer`] : [],
  ];
  return counts.flat().join(", ");
}

export function addRepair(program: Command): void {
  const command = program
    .command("repair")
    .description("copy a shard or a cluster again from a copy whose digest is right");
  command
    .option("--shard <n>", "all of a shard", wholeNumber(0, 65_535))
    .option("--cluster <id>", "one cluster")
    .option("--from <dc>", "whose copy is right, where they disagree (default: found out)");
  common(command, true).action(
    verb<{ shard?: number; cluster?: string; from?: string }>(async (session, { shard, cluster, from }) => {
      if ((shard === undefined) === (cluster === undefined)) throw new UsageError("give either --shard or --cluster");
      const answer = await session.act("POST", "/v1/repair", {
        body: {
          ...(shard === undefined ? { clusterId: cluster } : { shard }),
          ...(from === undefined ? {} : { from }),
        },
        timeoutMs: 300_000,
      });
      if (!session.dryRun) session.show(answer);
      return 0;
    }),
  );
}
