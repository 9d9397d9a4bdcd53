import { readdirSync, readFileSync } from "node:fs";
import type { TestStack } from "../harness/stack.js";

/** Milliseconds that a tick of /proc stands for; 100 ticks a second are what Linux tells programs. */
const tickMs = 10;

/** CPU time used since they began, milliseconds: of all processes of a stack, and of single ones by pid. Null without /proc. */
export interface Cpu {
  readonly stack: number;
  of(pid: number): number;
}

/** What the processes of a stack, and their children, have used so far. */
export function cpuOf(stack: TestStack): Cpu | null {
  const roots = new Set(
    stack.dcs.flatMap((dc) => {
      const { node, postgres, nats } = stack.pids(dc);
      return [...node, ...postgres, ...nats];
    }),
  );
  let pids: string[];
  try {
    pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  } catch {
    return null;
  }
  const used = new Map<number, number>();
  let sum = 0;
  for (const pid of pids) {
    let text: string;
    try {
      text = readFileSync(`/proc/${pid}/stat`, "utf8");
    } catch {
      continue;
    }
    // The name before them may hold anything; user and system time are the 14th and 15th field, the parent is the 4th.
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const ms = (Number(fields[11]) + Number(fields[12])) * tickMs;
    used.set(Number(pid), ms);
    if (roots.has(Number(pid)) || roots.has(Number(fields[1]))) sum += ms;
  }
  return used.size === 0 ? null : { stack: sum, of: (pid) => used.get(pid) ?? NaN };
}
