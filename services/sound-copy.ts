import type { ShardDigest } from "../replication/digest.js";
import type { SiteName } from "../shards/ids.js";

export type Copies = ReadonlyMap<SiteName, ShardDigest>;

/** From whom the others are mended; or why nobody can say. */
export type Judged =
  | { readonly source: SiteName; readonly damaged: readonly SiteName[] }
  | { readonly refused: "none is sound" | "they disagree" };

/** Copies that can be judged: what loads, or has stopped, is brought up to date in another way. */
export const wholeCopies = (copies: Copies): Copies =>
  new Map([...copies].filter(([, copy]) => copy.restoring === 0 && (copy.stopped ?? null) === null));

/** It has what its own head says that it should have. */
export const isSound = (copy: ShardDigest): boolean => copy.digest === copy.expected;

/** All stand at the same place. */
export function areAligned(copies: Copies): boolean {
  const [first] = copies.values();
  return [...copies.values()].every((copy) => copy.epoch === first?.epoch && copy.position === first.position);
}

/**
 * Which copies of a shard are right: pure. Copies agree that have the same sum at the same place; where they don't stand at the same
 * place, the log's last comparison says whether a copy agrees with its owner. The owner is believed, unless more copies agree among
 * themselves on something else: then a wrong choice would remove good rows everywhere, so it is left to the operator. The exception is
 * an owner that its own rows contradict.
 * @param copies whole ones
 */
export function judgeCopies(owner: SiteName | null, copies: Copies): Judged {
  const aligned = areAligned(copies);
  const saying = new Map<number | boolean, SiteName[]>();
  for (const [dc, copy] of copies) {
    const says = aligned ? copy.expected : dc === owner || copy.comparedEqual;
    saying.set(says, [...(saying.get(says) ?? []), dc]);
  }
  const groups = [...saying.values()].sort((a, b) => b.length - a.length);
  const trusted = groups.find((group) => group.some((dc) => dc === owner));
  const [own = [], rival = []] =
    trusted === undefined ? groups : [trusted, ...groups.filter((group) => group !== trusted)];
  const soundOf = (group: readonly SiteName[]): SiteName[] =>
    group.filter((dc) => {
      const copy = copies.get(dc);
      return copy !== undefined && isSound(copy);
    });
  const choose = (group: readonly SiteName[]): Judged => {
    const sound = soundOf(group);
    const source = sound.find((dc) => dc === owner) ?? sound[0];
    if (source === undefined) return { refused: groups.length === 1 ? "none is sound" : "they disagree" };
    return { source, damaged: [...copies.keys()].filter((dc) => !sound.includes(dc)) };
  };
  if (soundOf([...copies.keys()]).length === 0) return { refused: "none is sound" };
  if (rival.length < own.length || (rival.length === own.length && trusted !== undefined)) return choose(own);
  const ownerIsSound = soundOf(own).some((dc) => dc === owner);
  // Copies that the log contradicts may differ from each other as well.
  if (trusted !== undefined && !ownerIsSound && aligned) return choose(rival);
  return { refused: "they disagree" };
}

/** The operator says which copy is right. */
export function judgeBy(source: SiteName, copies: Copies): Judged {
  const right = copies.get(source);
  if (right === undefined || !isSound(right)) return { refused: "none is sound" };
  const aligned = areAligned(copies);
  const same = (copy: ShardDigest): boolean => aligned && isSound(copy) && copy.expected === right.expected;
  return { source, damaged: [...copies].filter(([, copy]) => copy !== right && !same(copy)).map(([dc]) => dc) };
}
