import {
  outcomeOf,
  type Attempt,
  type DivergentItem,
  type FinalCluster,
  type History,
  type Place,
  type Write,
} from "./journal.js";

/**
 * What became of an acknowledged write: `present` or `superseded` (a later write of its cluster stands in its place),
 * `divergent` (set aside and listed), or `lost`.
 */
export type Fate = "present" | "superseded" | "divergent" | "lost";

export interface Settled {
  readonly write: Write;
  readonly fate: Fate;
  /** Why it counts as lost. */
  readonly why: string | null;
}

/**
 * The fate of each acknowledged write, the worst over all datacenters.
 *
 * Positions are dense and go on from the sealed end of the epoch before. So an acknowledged place is off the surviving
 * line as soon as a later epoch of its shard has acknowledged the same or a smaller position, also where a later write
 * of the same cluster hides the loss from a reader.
 */
export function settle(history: History): Settled[] {
  const line = new SurvivingLine(history);
  const byMark = new Map(history.writes.map((write) => [write.mark, write]));
  const deleted = new Set(history.writes.filter(({ kind }) => kind === "delete").map(({ clusterId }) => clusterId));
  return history.writes
    .filter((write) => outcomeOf(write.attempts) === "ok")
    .map((write) => {
      const standing = line.standing(write);
      if (standing.length === 0) return { write, fate: "divergent" as const, why: null };
      let superseded = false;
      const faults: string[] = [];
      for (const attempt of standing) {
        const fault = line.fault(write, attempt);
        if (fault !== null) {
          faults.push(fault);
          continue;
        }
        for (const { dc, clusters } of history.finals) {
          const final = clusters.get(write.clusterId);
          const found = compare(write, attempt, final, byMark, deleted.has(write.clusterId));
          if (found === "superseded") superseded = true;
          else if (found !== "present") faults.push(`${dc}: ${found}`);
        }
        if (faults.length === 0)
          return { write, fate: superseded ? ("superseded" as const) : ("present" as const), why: null };
      }
      return { write, fate: "lost" as const, why: faults.join("; ") };
    });
}

/** What can be said of a write's place from all acknowledged places and the lists of divergent operations. */
export class SurvivingLine {
  /** Per shard, epochs ascending, each with the smallest position that it or a later one acknowledged. */
  readonly #from = new Map<number, { epoch: number; position: number }[]>();
  readonly #listed = new Map<string, DivergentItem>();
  readonly #listedText: string[];

  constructor(history: Pick<History, "writes" | "jobs" | "divergent">) {
    for (const item of history.divergent) this.#listed.set(placeKey(item), item);
    this.#listedText = history.divergent.map(({ value, idempotencyKey }) => `${idempotencyKey ?? ""} ${value}`);
    const smallest = new Map<number, Map<number, number>>();
    for (const { attempts } of [...history.writes, ...history.jobs]) {
      for (const { place, replayed, outcome } of attempts) {
        if (place === null || replayed || outcome !== "ok" || this.#listed.has(placeKey(place))) continue;
        const epochs = smallest.get(place.shard) ?? new Map<number, number>();
        smallest.set(place.shard, epochs);
        epochs.set(place.epoch, Math.min(place.position, epochs.get(place.epoch) ?? Infinity));
      }
    }
    for (const [shard, epochs] of smallest) {
      const ascending = [...epochs].map(([epoch, position]) => ({ epoch, position })).sort((a, b) => a.epoch - b.epoch);
      for (let i = ascending.length - 2; i >= 0; i--) {
        const [here, next] = [ascending[i], ascending[i + 1]];
        if (here !== undefined && next !== undefined) here.position = Math.min(here.position, next.position);
      }
      this.#from.set(shard, ascending);
    }
  }

  /** The acknowledgements of a write that are not excused by a list of divergent operations. */
  standing(write: {
    readonly durability: string;
    readonly mark: string;
    readonly attempts: readonly Attempt[];
  }): Attempt[] {
    // No list excuses a replicated write.
    return write.attempts.filter(
      (attempt) =>
        attempt.outcome === "ok" && (write.durability === "replicated" || !this.excused(write.mark, attempt)),
    );
  }

  /** Whether an acknowledgement is listed as divergent: by its place, or where it was replayed by its mark. */
  excused(mark: string, { place, replayed }: Attempt): boolean {
    if (place !== null && !replayed) return this.listed(place);
    return this.#listedText.some((value) => value.includes(mark));
  }

  listed(place: Place): boolean {
    return this.#listed.has(placeKey(place));
  }

  /** Whether a later epoch of the shard went on below this place. */
  cutOff(place: Place): boolean {
    const next = this.#from.get(place.shard)?.find(({ epoch }) => epoch > place.epoch);
    return next !== undefined && next.position <= place.position;
  }

  /** Why an acknowledgement can't be on the surviving line, or null. */
  fault(write: { readonly mark: string }, { place, replayed }: Attempt): string | null {
    if (place === null || replayed) return null;
    if (this.listed(place)) return `${write.mark} at ${placeKey(place)} is listed as divergent`;
    return this.cutOff(place) ? `${write.mark} at ${placeKey(place)}: a later epoch goes on below this position` : null;
  }
}

export const placeKey = ({ shard, epoch, position }: Place): string => `${shard}:${epoch}:${position}`;

/** Where a write stands if it stands: the place of its acknowledgement that was not replayed. */
export function placeOfWrite(write: Pick<Write, "attempts">): Place | null {
  return write.attempts.filter(({ outcome, replayed }) => outcome === "ok" && !replayed).at(-1)?.place ?? null;
}

/** `present`, `superseded`, or what is wrong. */
function compare(
  write: Write,
  attempt: Attempt,
  final: FinalCluster | undefined,
  byMark: ReadonlyMap<string, Write>,
  deleted: boolean,
): string {
  if (final === undefined) {
    if (write.kind === "delete") return "present";
    return deleted ? "superseded" : `${write.clusterId} is not there`;
  }
  if (final.mark === write.mark) return "present";
  const winner = final.mark === null ? undefined : byMark.get(final.mark);
  const [mine, other] = [attempt.replayed ? null : attempt.place, winner === undefined ? null : placeOfWrite(winner)];
  if (mine !== null && other !== null && other.shard === mine.shard) {
    const later = other.epoch - mine.epoch || other.position - mine.position;
    if (later < 0) return `${write.clusterId} shows ${final.mark}, which is older than ${write.mark}`;
  }
  // A cluster that was deleted begins again with other versions.
  if (deleted || attempt.version === null) return "superseded";
  if (final.version > attempt.version) return "superseded";
  return `${write.clusterId} is at version ${final.version} (${final.mark}), ${write.mark} was acknowledged as version ${attempt.version}`;
}
