import { readdirSync, readFileSync } from "node:fs";
import type { TestStack } from "../harness/stack.js";

const ticksPerSecond = 100;

/** Processor time, user and system, of the databases and nodes of these datacenters, those that ended among their children too; milliseconds. */
export function spentMs(stack: TestStack, dcs: readonly string[] = stack.dcs): number {
  const roots = new Set(dcs.flatMap((dc) => [...stack.pids(dc).node, ...stack.pids(dc).postgres.slice(0, 1)]));
  let ticks = 0;
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const parent = Number(fields[1]);
      if (!roots.has(Number(entry)) && !roots.has(parent)) continue;
      ticks += Number(fields[11]) + Number(fields[12]);
      if (roots.has(Number(entry))) ticks += Number(fields[13]) + Number(fields[14]);
    } catch {
      // It has ended since.
    }
  }
  return (ticks * 1000) / ticksPerSecond;
}
