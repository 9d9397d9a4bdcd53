import { logLeaders } from "../harness/log-leaders.js";
import type { Bench } from "./scenario.js";

/** Partitions whose log an owner of them leads, and those that nobody leads. */
export async function misplaced({ stack, client }: Bench): Promise<{ led: Set<number>; without: Set<number> }> {
  const leaders = await logLeaders(stack);
  const [led, without] = [new Set<number>(), new Set<number>()];
  for (const dc of stack.dcs) {
    const items = await client.list<{ partition: number; owner: string | null }>(dc, "/v1/shards");
    if (items === null) continue;
    for (const { partition, owner } of items) {
      if (!leaders.has(partition)) without.add(partition);
      else if (leaders.get(partition) === owner) led.add(partition);
    }
    break;
  }
  return { led, without };
}

/** Null once the log of every partition is led away from its owner; else why not. */
export async function whyLedByOwners(bench: Bench): Promise<string | null> {
  const { led, without } = await misplaced(bench);
  const [wrong] = led;
  if (wrong !== undefined) return `the log of partition ${wrong} is led by its owner`;
  return without.size > 0 ? `${without.size} partitions' logs have no leader` : null;
}
