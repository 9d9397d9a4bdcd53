import { epoch as toEpoch, position as toPosition, type Position, type SiteName } from "../shards/ids.js";
import type { Cut, FoldedShard } from "./copy-source.js";
import type { FullHead } from "./heads.js";

/** What becomes of one shard when its datacenter skips a part of the log that is gone. */
export interface JumpPlan {
  readonly head: FullHead;
  /** Where the epoch that stood here ended. */
  readonly ended: Position;
  /** Own operations above it were never published: they are set aside. */
  readonly divergentAbove: Position | null;
  /** Rows are missing. */
  readonly loads: boolean;
  /** The copy is right up to here, so that only rows changed behind it are missing; null: all are fetched. */
  readonly since: Cut | null;
}

/** The source has folded less than stands here: it can't be jumped to. */
export class SourceBehind extends Error {
  constructor(shard: number) {
    super(`the other datacenter's fold of shard ${shard} is behind the own one`);
    this.name = "SourceBehind";
  }
}

/**
 * Pure. A shard that the log gives to this very datacenter in an epoch that was not seen here is suspended: an own open with the
 * next epoch settles it, by an append. An own tail above the place where the own epoch ended is divergent; where that place is
 * not known any more, all that the log was not seen to hold is.
 * @throws SourceBehind
 */
export function planJump(self: SiteName, head: FullHead, there: FoldedShard): JumpPlan {
  if (there.epoch < head.epoch) throw new SourceBehind(head.shard);
  const position = toPosition(there.position);
  const whole = head.stopped !== null || head.epoch === 0;
  if (there.epoch === head.epoch) {
    const loads = whole ? there.epoch > 0 : there.position > head.position;
    const reached = toPosition(Math.max(head.position, there.position));
    return {
      head: {
        ...head,
        position: reached,
        published: head.owner === self ? toPosition(Math.max(head.published, position)) : reached,
        stopped: null,
        revision: head.revision + 1,
      },
      ended: head.position,
      divergentAbove: null,
      loads,
      since: whole ? null : { epoch: head.epoch, position: head.position },
    };
  }
  const mine = head.owner === self;
  const end = there.epochEnds.find((each) => each.epoch === head.epoch)?.last;
  const ended = toPosition(Math.min(end ?? (mine ? head.published : head.position), head.position));
  // A replica holds what the log held: one that is above the end of its epoch can't be built on.
  const sound = !whole && (mine || end === undefined || end >= head.position);
  return {
    head: {
      ...head,
      owner: there.owner,
      epoch: toEpoch(there.epoch),
      state: there.owner === self ? "suspended" : "replica",
      position,
      published: position,
      tenure: toEpoch(there.owner === self ? there.epoch : 0),
      confirmed: false,
      since: there.since,
      kind: there.kind,
      reason: there.reason,
      epochEnds: there.epochEnds,
      stopped: null,
      revision: head.revision + 1,
    },
    ended,
    divergentAbove: mine && ended < head.position ? ended : null,
    loads: !sound || there.position > ended,
    since: sound ? { epoch: head.epoch, position: ended } : null,
  };
}

/**
 * Pure. Where the epoch in which a copy was cut ended, of the epochs that a jump passes: what was cut above it was never published.
 * Where that is not known any more it is 0, and all of the copy is void.
 */
export function endOfCut(cutEpoch: number, head: FullHead, plan: JumpPlan, there: FoldedShard): Position {
  if (cutEpoch === head.epoch) return plan.ended;
  return toPosition(there.epochEnds.find((each) => each.epoch === cutEpoch)?.last ?? 0);
}
