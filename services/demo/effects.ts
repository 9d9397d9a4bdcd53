import { outcomeOf, type FinalView, type History, type JobStart, type Write } from "./journal.js";
import { SurvivingLine } from "./settle.js";

/** Jobs whose status is one of these have ended. */
export const ended = new Set(["complete", "failed", "cancelled"]);

/** Keyed requests that took effect more than once, or answered differently (invariant 5). */
export function keyFaults(history: History): string[] {
  const line = new SurvivingLine(history);
  const faults: string[] = [];
  for (const write of [...history.writes, ...history.jobs]) {
    if (write.key === null) continue;
    const acknowledged = write.attempts.filter(({ outcome }) => outcome === "ok");
    const standing = acknowledged.filter((attempt) => !line.excused(write.mark, attempt));
    const effects = standing.filter(({ replayed }) => !replayed);
    if (effects.length > 1)
      faults.push(`${write.mark}: ${effects.length} answers of one key say that they did the work`);
    const setAside = history.divergent.filter(({ idempotencyKey }) => idempotencyKey === write.key);
    // Of a write that was set aside and then done again, both answers were true in their time.
    if (setAside.length === 0 && new Set(acknowledged.map(answerText)).size > 1) {
      faults.push(
        `${write.mark}: one key, different answers: ${[...new Set(acknowledged.map(answerText))].join(" / ").slice(0, 300)}`,
      );
    }
    for (const { dc, status } of setAside) {
      if (effects.length > 0 && status !== "superseded") {
        faults.push(`${write.mark}: took effect, and is listed as ${status} at ${dc}, where it could be replayed`);
      }
    }
  }
  return [...faults, ...versionFaults(history, line)];
}

/**
 * Each effect raises its cluster's version by one. So where all of a cluster's writes are known, its last version counts
 * them: fewer is a loss that a later write hides, more is a write that was done twice.
 */
function versionFaults(history: History, line: SurvivingLine): string[] {
  const skip = new Set([
    ...history.jobs.map(({ clusterId }) => clusterId),
    ...history.writes.filter(({ kind }) => kind === "delete").map(({ clusterId }) => clusterId),
  ]);
  const bounds = new Map<string, { least: number; most: number }>();
  for (const write of history.writes) {
    if (skip.has(write.clusterId)) continue;
    const bound = bounds.get(write.clusterId) ?? { least: 0, most: 0 };
    bounds.set(write.clusterId, bound);
    if (line.standing(write).length > 0) bound.least++;
    bound.most += mostEffects(write, line);
  }
  const faults: string[] = [];
  for (const [clusterId, { least, most }] of bounds) {
    for (const { dc, clusters } of history.finals) {
      const version = clusters.get(clusterId)?.version ?? 0;
      if (version < least) faults.push(`${dc}: ${clusterId} has version ${version} after at least ${least} writes`);
      if (version > most) faults.push(`${dc}: ${clusterId} has version ${version} after at most ${most} writes`);
    }
  }
  return faults;
}

function mostEffects(write: Write, line: SurvivingLine): number {
  const possible = write.attempts.filter(
    (attempt) => attempt.outcome === "unknown" || (attempt.outcome === "ok" && !line.excused(write.mark, attempt)),
  );
  return write.key === null ? possible.length : Math.min(1, possible.length);
}

function answerText({ status, version, answer }: Write["attempts"][number]): string {
  return `${status} ${version ?? ""} ${answer ?? ""}`;
}

/** Jobs that vanished, did not end, ended twice, or came to be without having been accepted. */
export function jobFaults(history: History): string[] {
  const faults: string[] = [];
  for (const start of history.jobs) faults.push(...startFaults(start, history));
  const ends = new Map<string, Set<string>>();
  const note = (jobId: string, end: { status: string; attempt: number; finishedAt: string | null }): void => {
    if (!ended.has(end.status)) return;
    const found = ends.get(jobId) ?? new Set<string>();
    ends.set(jobId, found.add(`${end.status} in attempt ${end.attempt} at ${end.finishedAt ?? "no time"}`));
  };
  for (const sighting of history.sightings) note(sighting.jobId, sighting);
  for (const { jobs } of history.finals) for (const [id, job] of jobs) note(id, job);
  for (const [jobId, found] of ends) {
    const setAside = history.divergent.some(({ value }) => value.includes(jobId));
    if (found.size > 1 && !setAside) faults.push(`${jobId} ended more than once: ${[...found].join("; ")}`);
  }
  return faults;
}

function startFaults(start: JobStart, history: History): string[] {
  const outcome = outcomeOf(start.attempts);
  const setAside = history.divergent.some(({ value }) => value.includes(start.mark));
  return history.finals.flatMap((view) => {
    const found = jobsWithMark(view, start.mark);
    const most =
      outcome === "fail" ? 0 : start.key === null ? start.attempts.filter((a) => a.outcome !== "fail").length : 1;
    const faults: string[] = [];
    if (found.length > most) faults.push(`${view.dc}: ${start.mark} (${outcome}) made ${found.length} jobs`);
    if (found.length === 0 && outcome === "ok" && (start.durability === "replicated" || !setAside)) {
      faults.push(`${view.dc}: job ${start.jobId ?? start.mark} was accepted (${start.durability}) and is not there`);
    }
    for (const [id, { status }] of found) if (!ended.has(status)) faults.push(`${view.dc}: job ${id} is ${status}`);
    return faults;
  });
}

function jobsWithMark(view: FinalView, mark: string): (readonly [string, { readonly status: string }])[] {
  return [...view.jobs].filter(([, job]) => job.mark === mark);
}

/** Places where the datacenters' last views differ (invariant 8). */
export function equalityFaults(finals: readonly FinalView[]): string[] {
  const [first, ...others] = finals;
  if (first === undefined) return ["no datacenter was looked at"];
  return others.flatMap((other) =>
    (["clusters", "jobs"] as const).flatMap((what) => {
      const ids = new Set([...first[what].keys(), ...other[what].keys()]);
      const differ = [...ids].filter((id) => first[what].get(id)?.json !== other[what].get(id)?.json);
      if (differ.length === 0) return [];
      const id = differ[0] ?? "";
      const shown = [first, other].map((view) => `${view.dc}: ${view[what].get(id)?.json ?? "nothing"}`.slice(0, 400));
      return [`${differ.length} ${what} differ between ${first.dc} and ${other.dc}; ${id}: ${shown.join(" / ")}`];
    }),
  );
}
