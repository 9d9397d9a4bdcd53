import type { Command } from "commander";
import type { Row } from "./output.js";
import { wholeNumber } from "./parse.js";
import { common, verb } from "./session.js";

export function addShards(program: Command): void {
  listVerb(program, "shards", "who owns each shard, since when and why", "/v1/shards", [
    "shard",
    "partition",
    "owner",
    "epoch",
    "state",
    "position",
    "since",
    "reason",
    "stopped",
  ]);
}

export function addLag(program: Command): void {
  listVerb(program, "lag", "how far this datacenter is behind, per shard", "/v1/lag", [
    "shard",
    "owner",
    "positions",
    "ms",
  ]);
}

export function addHistory(program: Command): void {
  const columns = ["at", "shard", "epoch", "from", "to", "kind", "reason", "by", "divergent"];
  listVerb(program, "history", "changes of ownership, oldest first", "/v1/history", columns);
}

function listVerb(program: Command, name: string, description: string, path: string, columns: readonly string[]): void {
  const command = program
    .command(name)
    .description(description)
    .option("--limit <n>", "at most so many", wholeNumber(1, 1_000_000));
  common(command).action(
    verb<{ limit?: number }>(async (session, { limit }) => {
      const items = await session.client.list<Row>(path, {}, limit);
      session.show({ items, nextCursor: null }, chosen(items, columns));
      return 0;
    }),
  );
}

/** The rows with these columns only. */
export function chosen(items: readonly Row[], columns: readonly string[]): Row[] {
  return items.map((item) => Object.fromEntries(columns.map((column) => [column, item[column]])));
}
