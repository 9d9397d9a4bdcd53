import { equalityFaults, jobFaults, keyFaults } from "../../services/demo/effects.js";
import type { History } from "../../services/demo/journal.js";
import { settle } from "../../services/demo/settle.js";
import { orderFaults } from "./history-order.js";
import { readFaults, registerFaults } from "./history-register.js";

/** A promise of DESIGN.md section 9 that a history shows broken. */
export interface Violation {
  /** The invariant's number there; 0 for answers that are no part of the contract. */
  readonly invariant: number;
  readonly what: string;
}

/**
 * Checks what was seen from outside against the invariants 1 to 6 and 8. A pure function: a history, recorded
 * or made by hand, gives the same violations each time.
 */
export function checkHistory(history: History): Violation[] {
  const lost = settle(history).filter(({ fate }) => fate === "lost");
  return [
    ...named(1, orderFaults(history)),
    ...lost.map(({ write, why }) => ({
      invariant: write.durability === "replicated" ? 2 : 3,
      what: `acknowledged ${write.durability} write ${write.mark} of ${write.clusterId} is lost: ${why ?? ""}`,
    })),
    ...named(3, registerFaults(history)),
    ...named(3, jobFaults(history)),
    ...named(4, readFaults(history)),
    ...named(5, keyFaults(history)),
    ...named(6, finishFaults(history)),
    ...named(8, equalityFaults(history.finals)),
    ...named(0, answerFaults(history)),
  ];
}

/** Finishes with outdated tokens that were accepted, or that left a trace. */
function finishFaults({ finishes, finals }: History): string[] {
  return finishes.flatMap(({ jobId, attempt, runningAttempt, status, mark }) => {
    if (attempt >= runningAttempt) return [];
    const faults: string[] = [];
    if (status >= 200 && status < 300) {
      faults.push(`a finish of attempt ${attempt} of ${jobId} was accepted while attempt ${runningAttempt} ran`);
    }
    for (const { dc, jobs } of finals) {
      if (jobs.get(jobId)?.json.includes(mark) === true)
        faults.push(`${dc}: ${jobId} holds the result of a refused finish`);
    }
    return faults;
  });
}

/** A 500 is a bug, and so is an acknowledged write that does not say where it stands. */
function answerFaults({ writes, jobs }: History): string[] {
  return [...writes, ...jobs].flatMap(({ mark, attempts }) =>
    attempts.flatMap(({ status, code, outcome, place, dc }) => {
      if (status === 500) return [`${mark}: ${dc} answered 500 ${code ?? ""}`];
      if (status >= 501 && code === null) return [`${mark}: ${dc} answered ${status} without a code`];
      if (outcome === "ok" && place === null) return [`${mark}: ${dc} acknowledged without Hothot-Position`];
      return [];
    }),
  );
}

const named = (invariant: number, faults: readonly string[]): Violation[] =>
  faults.map((what) => ({ invariant, what }));
