import type { Attempt, History, Place } from "../../services/demo/journal.js";
import { placeKey, SurvivingLine } from "../../services/demo/settle.js";

interface Acknowledged {
  readonly what: string;
  readonly clusterId: string;
  readonly isWrite: boolean;
  readonly place: Place;
  readonly attempt: Attempt;
}

/**
 * Invariant 1, seen from outside: in an epoch one datacenter acknowledges, a place is given once, epochs and positions
 * of a shard grow in real time, and versions of a cluster grow with its places.
 */
export function orderFaults(history: History): string[] {
  const all = acknowledgements(history);
  const line = new SurvivingLine(history);
  const faults: string[] = [];
  for (const shard of groupBy(all, ({ place }) => String(place.shard)).values()) {
    faults.push(...ownerFaults(shard), ...placeFaults(shard), ...timeFaults(shard));
  }
  const standing = all.filter(({ isWrite, place }) => isWrite && !line.listed(place) && !line.cutOff(place));
  for (const cluster of groupBy(standing, ({ clusterId }) => clusterId).values())
    faults.push(...versionOrderFaults(cluster));
  return faults;
}

function acknowledgements({ writes, jobs }: History): Acknowledged[] {
  const of = (isWrite: boolean) => (item: { mark: string; clusterId: string; attempts: readonly Attempt[] }) =>
    item.attempts.flatMap((attempt): Acknowledged[] =>
      attempt.outcome === "ok" && !attempt.replayed && attempt.place !== null
        ? [{ what: item.mark, clusterId: item.clusterId, isWrite, place: attempt.place, attempt }]
        : [],
    );
  return [...writes.flatMap(of(true)), ...jobs.flatMap(of(false))];
}

function ownerFaults(shard: readonly Acknowledged[]): string[] {
  return [...groupBy(shard, ({ place }) => String(place.epoch))].flatMap(([epoch, inEpoch]) => {
    const dcs = new Set(inEpoch.flatMap(({ attempt }) => (attempt.servedBy === null ? [] : [attempt.servedBy])));
    const owners = new Set(inEpoch.flatMap(({ attempt }) => (attempt.owner === null ? [] : [attempt.owner])));
    const both = new Set([...dcs, ...owners]);
    const where = `shard ${inEpoch[0]?.place.shard ?? ""} epoch ${epoch}`;
    return both.size > 1 ? [`${where}: served by ${[...dcs].join(", ")}, owned by ${[...owners].join(", ")}`] : [];
  });
}

function placeFaults(shard: readonly Acknowledged[]): string[] {
  return [...groupBy(shard, ({ place }) => placeKey(place))].flatMap(([place, same]) =>
    same.length > 1 ? [`place ${place} was given to ${same.map(({ what }) => what).join(", ")}`] : [],
  );
}

/** Of two acknowledgements where one ended before the other was asked for, the later has the larger place. */
function timeFaults(shard: readonly Acknowledged[]): string[] {
  const byStart = [...shard].sort((a, b) => a.attempt.startedAt - b.attempt.startedAt);
  const byEnd = [...shard].sort((a, b) => a.attempt.endedAt - b.attempt.endedAt);
  const faults: string[] = [];
  let next = 0;
  let epoch: Acknowledged | undefined;
  const positions = new Map<number, Acknowledged>();
  for (const later of byStart) {
    for (
      let done = byEnd[next];
      done !== undefined && done.attempt.endedAt < later.attempt.startedAt;
      done = byEnd[++next]
    ) {
      if (epoch === undefined || done.place.epoch > epoch.place.epoch) epoch = done;
      const largest = positions.get(done.place.epoch);
      if (largest === undefined || done.place.position > largest.place.position) positions.set(done.place.epoch, done);
    }
    if (epoch !== undefined && epoch.place.epoch > later.place.epoch) {
      faults.push(`${later.what} got ${placeKey(later.place)} after ${epoch.what} had got ${placeKey(epoch.place)}`);
    }
    const before = positions.get(later.place.epoch);
    if (before !== undefined && before.place.position >= later.place.position) {
      faults.push(`${later.what} got ${placeKey(later.place)} after ${before.what} had got ${placeKey(before.place)}`);
    }
  }
  return faults;
}

function versionOrderFaults(cluster: readonly Acknowledged[]): string[] {
  const inOrder = cluster
    .filter(({ attempt }) => attempt.version !== null)
    .sort((a, b) => a.place.epoch - b.place.epoch || a.place.position - b.place.position);
  return inOrder.flatMap((later, index) => {
    const before = inOrder[index - 1];
    if (before === undefined || (later.attempt.version ?? 0) > (before.attempt.version ?? 0)) return [];
    // A cluster that was deleted begins again at version 1.
    if (later.attempt.version === 1 && later.attempt.status === 201) return [];
    const [a, b] = [before, later].map(
      ({ what, place, attempt }) => `${what} at ${placeKey(place)} is version ${attempt.version ?? 0}`,
    );
    return [`${later.clusterId}: ${a ?? ""}, then ${b ?? ""}`];
  });
}

function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const found = groups.get(key(item));
    if (found === undefined) groups.set(key(item), [item]);
    else found.push(item);
  }
  return groups;
}
