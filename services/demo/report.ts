import { outcomeOf, type Durability, type History } from "./journal.js";
import { equalityFaults, jobFaults, keyFaults } from "./effects.js";
import { settle, type Settled } from "./settle.js";
import { spread } from "./probe.js";

/** What the run measured beside its history. Times are milliseconds. */
export interface Measured {
  readonly dc: string;
  readonly shards: number;
  readonly survivors: readonly string[];
  /** Kill to first accepted write of each shard of the dead datacenter; null where none came in time. */
  readonly firstWriteMs: readonly (number | null)[];
  readonly restartedJobs: readonly string[];
  readonly convergeMs: number | null;
  /** Why the datacenters had not converged in time, or why verify finds them unequal. */
  readonly notConverged: string | null;
}

/** The object that `npm run demo -- --json` prints. */
export interface DemoResult {
  readonly ok: boolean;
  readonly acknowledged: Readonly<Record<Durability, number>>;
  readonly lost: Readonly<Record<Durability, number>>;
  readonly firstWriteMs: { readonly worst: number | null; readonly median: number | null };
  readonly jobs: { readonly restarted: number; readonly finished: number };
  readonly convergeMs: number | null;
  readonly divergent: number;
  readonly digestsEqual: boolean;
}

export interface Report {
  readonly result: DemoResult;
  /** Every promise that broke, in words. */
  readonly broken: readonly string[];
  readonly outcomes: Readonly<Record<string, number>>;
}

/** Counts, and finds the promises that broke. */
export function report(history: History, measured: Measured): Report {
  const settled = settle(history);
  const lost = settled.filter(({ fate }) => fate === "lost");
  const unequal = equalityFaults(history.finals);
  const firstWrites = measured.firstWriteMs.filter((ms) => ms !== null);
  const late = measured.firstWriteMs.length - firstWrites.length;
  const spreadOf = late > 0 ? null : spread(firstWrites);
  const finished = measured.restartedJobs.filter((id) =>
    history.finals.every(({ jobs }) => jobs.get(id)?.status === "complete"),
  );
  const broken = [
    ...lost.map(
      ({ write, why }) => `an acknowledged ${write.durability} write of ${write.clusterId} is lost: ${why ?? ""}`,
    ),
    ...(late > 0 ? [`${late} shards of ${measured.dc} accepted no write in time`] : []),
    ...(measured.restartedJobs.length === 0 ? [`no job of ${measured.dc} was restarted`] : []),
    ...jobFaults(history),
    ...unfinished(history),
    ...keyFaults(history),
    ...unequal,
    ...(measured.notConverged === null ? [] : [`not converged: ${measured.notConverged}`]),
  ];
  return {
    broken,
    outcomes: outcomes(history),
    result: {
      ok: broken.length === 0,
      acknowledged: countByDurability(settled),
      lost: countByDurability(lost),
      firstWriteMs: { worst: spreadOf?.worst ?? null, median: spreadOf?.median ?? null },
      jobs: { restarted: measured.restartedJobs.length, finished: finished.length },
      convergeMs: measured.convergeMs === null ? null : Math.round(measured.convergeMs),
      divergent: history.divergent.length,
      digestsEqual: unequal.length === 0 && measured.notConverged === null,
    },
  };
}

/** The report as people read it. */
export function summary({ result, broken, outcomes: counts }: Report, measured: Measured): string {
  const { acknowledged, lost, firstWriteMs, jobs } = result;
  const rows: [string, string][] = [
    ["writes acknowledged", `${acknowledged.local} local, ${acknowledged.replicated} replicated`],
    ["  without an answer", `${counts["unknown"] ?? 0} (the caller was told that the outcome is unknown)`],
    ["  refused", `${counts["fail"] ?? 0} (no effect; most of them at ${measured.dc} while it was down)`],
    ["writes lost", `${lost.local} local, ${lost.replicated} replicated`],
    [
      "set aside as divergent",
      `${result.divergent} (listed at ${measured.dc}, acknowledged with durability local or not at all)`,
    ],
    [
      `first write after the kill`,
      `worst ${firstWriteMs.worst ?? "-"} ms, median ${firstWriteMs.median ?? "-"} ms, over the ${measured.shards} shards of ${measured.dc}`,
    ],
    ["jobs of the dead datacenter", `${jobs.restarted} restarted, ${jobs.finished} of them finished`],
    [`${measured.dc} converged`, `${result.convergeMs ?? "-"} ms after its restart, under load`],
    ["digests", result.digestsEqual ? "equal in every datacenter" : "NOT equal"],
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return [
    ...rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`),
    "",
    ...(broken.length === 0
      ? ["  Every promise was kept."]
      : [`  ${broken.length} promises broke:`, ...broken.slice(0, 20).map((line) => `    ${line}`)]),
  ].join("\n");
}

function countByDurability(settled: readonly Settled[]): Record<Durability, number> {
  const count = (durability: Durability): number =>
    settled.filter(({ write }) => write.durability === durability).length;
  return { local: count("local"), replicated: count("replicated") };
}

function outcomes({ writes }: History): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { attempts } of writes) counts[outcomeOf(attempts)] = (counts[outcomeOf(attempts)] ?? 0) + 1;
  return counts;
}

/** The handlers of the demo don't fail, so every job ends as `complete`. */
function unfinished({ finals }: History): string[] {
  return finals.flatMap(({ dc, jobs }) =>
    [...jobs].flatMap(([id, { status }]) =>
      status === "failed" || status === "cancelled" ? [`${dc}: job ${id} ended as ${status}`] : [],
    ),
  );
}
