import { outcomeOf, type FinalCluster, type History, type Write } from "../../services/demo/journal.js";
import { SurvivingLine, placeOfWrite } from "../../services/demo/settle.js";

/**
 * Each cluster is a register: what it shows in the end was written by a write that was acknowledged or whose outcome
 * is unknown, and by none that ended before a later acknowledged one of the surviving line was asked for.
 */
export function registerFaults(history: History): string[] {
  const line = new SurvivingLine(history);
  const byMark = new Map(history.writes.map((write) => [write.mark, write]));
  const survivors = new Map<string, Write[]>();
  for (const write of history.writes) {
    if (outcomeOf(write.attempts) !== "ok" || line.standing(write).length === 0) continue;
    survivors.set(write.clusterId, [...(survivors.get(write.clusterId) ?? []), write]);
  }
  return history.finals.flatMap(({ dc, clusters }) =>
    [...clusters].flatMap(([id, final]) =>
      finalFaults(id, final, byMark, survivors.get(id) ?? []).map((fault) => `${dc}: ${fault}`),
    ),
  );
}

function finalFaults(
  id: string,
  final: FinalCluster,
  byMark: ReadonlyMap<string, Write>,
  acknowledged: readonly Write[],
): string[] {
  if (final.mark === null) return [];
  const winner = byMark.get(final.mark);
  if (winner === undefined || winner.clusterId !== id) return [`${id} shows ${final.mark}, which nobody wrote there`];
  const outcome = outcomeOf(winner.attempts);
  if (outcome === "fail") return [`${id} shows ${final.mark}, which was refused`];
  const endedAt = Math.max(...winner.attempts.map((attempt) => attempt.endedAt));
  // A write without an answer may take effect at any later time.
  if (outcome === "unknown" || winner.attempts.some((attempt) => attempt.outcome === "unknown")) return [];
  const later = acknowledged.find(
    (write) =>
      write !== winner &&
      Math.min(...write.attempts.map(({ startedAt }) => startedAt)) > endedAt &&
      placeOfWrite(write) !== null,
  );
  return later === undefined ? [] : [`${id} shows ${final.mark}, which ended before ${later.mark} began`];
}

/**
 * Invariant 4, seen from outside: a datacenter shows no write that was refused or not sent yet, a version has one
 * value, and versions of a cluster don't go back, but where the later one was set aside.
 */
export function readFaults(history: History): string[] {
  const byMark = new Map(history.writes.map((write) => [write.mark, write]));
  const line = new SurvivingLine(history);
  const faults: string[] = [];
  const setAside = (mark: string): boolean => {
    const write = byMark.get(mark);
    if (write === undefined) return false;
    return (
      history.divergent.some(({ value }) => value.includes(mark)) ||
      write.attempts.some(({ place }) => place !== null && (line.listed(place) || line.cutOff(place)))
    );
  };
  const largest = new Map<string, { version: number; mark: string | null; endedAt: number }>();
  const values = new Map<string, string>();
  for (const read of [...history.reads].sort((a, b) => a.endedAt - b.endedAt)) {
    const { dc, clusterId, mark, version } = read;
    const write = mark === null ? undefined : byMark.get(mark);
    if (mark !== null && write === undefined) faults.push(`${dc}: ${clusterId} showed ${mark}, which nobody wrote`);
    if (write !== undefined) {
      if (outcomeOf(write.attempts) === "fail")
        faults.push(`${dc}: ${clusterId} showed ${write.mark}, which was refused`);
      if (setAside(write.mark)) continue;
      const other = values.get(`${clusterId} ${version}`);
      if (other !== undefined && other !== write.mark)
        faults.push(`${clusterId} version ${version} was ${other} and ${write.mark}`);
      values.set(`${clusterId} ${version}`, write.mark);
    }
    const before = largest.get(`${dc} ${clusterId}`);
    if (before !== undefined && before.endedAt < read.startedAt && before.version > version) {
      faults.push(
        `${dc}: ${clusterId} went back from version ${before.version} (${before.mark ?? "-"}) to ${version} (${mark ?? "-"})`,
      );
    }
    if (before === undefined || version > before.version)
      largest.set(`${dc} ${clusterId}`, { version, mark, endedAt: read.endedAt });
  }
  return faults;
}
