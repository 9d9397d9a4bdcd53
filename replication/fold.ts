import { position, type Epoch, type Position, type SiteName } from "../shards/ids.js";
import { judgeOwnOpen, transition, type ShardState } from "../shards/states.js";
import { lastOf, type BatchHeader, type EpochEnd, type OpenBody } from "./record.js";

/** What a datacenter's database knows of a shard, as far as the fold of the log needs it. */
export interface FoldHead {
  readonly owner: SiteName | null;
  readonly epoch: Epoch;
  readonly state: ShardState;
  readonly position: Position;
  readonly published: Position;
  readonly tenure: Epoch;
  readonly fencedThrough: Epoch;
  readonly closing: number;
  readonly epochEnds: readonly EpochEnd[];
}

/** What one log message does to a datacenter's copy of its shard. */
export type FoldStep =
  /** Nothing new. */
  | { readonly kind: "none" }
  /** Own records are seen in the log. */
  | { readonly kind: "mark"; readonly head: FoldHead }
  /** Records from index `skip` on are applied. */
  | { readonly kind: "apply"; readonly skip: number; readonly head: FoldHead }
  /** A newer epoch. Own operations above `divergentAbove` never reached the log: they are set aside and undone. */
  | { readonly kind: "adopt"; readonly head: FoldHead; readonly divergentAbove: Position | null; readonly why: string }
  /** The message can't follow what is here. The shard stops, and raises an alarm (invariant 4). */
  | { readonly kind: "stop"; readonly why: string };

const keptEnds = 256;

/**
 * The fold: pure, the same in every datacenter (invariants 1 and 4).
 * @param self the datacenter whose copy it is
 */
export function fold(self: SiteName, head: FoldHead, header: BatchHeader, open: OpenBody | null): FoldStep {
  return header.kind === "open" ? foldOpen(self, head, header, open) : foldInEpoch(self, head, header);
}

/** Records and statements belong to the epoch that is open. */
function foldInEpoch(self: SiteName, head: FoldHead, header: BatchHeader): FoldStep {
  if (header.epoch < head.epoch) return stop(`a message of epoch ${header.epoch} after epoch ${head.epoch} was opened`);
  if (header.epoch > head.epoch)
    return stop(`a message of epoch ${header.epoch}, whose open was not seen; here is epoch ${head.epoch}`);
  if (header.owner !== head.owner) return stop(`a message of ${header.owner} in an epoch of ${String(head.owner)}`);
  const last = lastOf(header);
  if (header.kind === "statement") {
    if (last > head.position) return stop(`a statement of position ${last}, here is ${head.position}`);
    return { kind: "none" };
  }
  const published = position(Math.max(head.published, last));
  if (last <= head.position)
    return self === head.owner && published > head.published
      ? { kind: "mark", head: { ...head, published } }
      : { kind: "none" };
  if (header.first > head.position + 1) return stop(`a gap: records from ${header.first}, here is ${head.position}`);
  return { kind: "apply", skip: head.position + 1 - header.first, head: { ...head, position: last, published: last } };
}

function foldOpen(self: SiteName, head: FoldHead, header: BatchHeader, open: OpenBody | null): FoldStep {
  if (open === null) return stop("an open without a body");
  if (header.epoch === head.epoch && header.owner === head.owner) return { kind: "none" };
  if (header.epoch <= head.epoch) return stop(`an open of epoch ${header.epoch} after epoch ${head.epoch}`);
  const last = lastOf(header);
  if (last > head.position) return stop(`an open that ends its epoch at ${last}, here is ${head.position}`);
  const mine = header.owner === self;
  const wasMine = head.owner === self;
  if (last < head.position && !wasMine)
    return stop(`an open that ends its epoch at ${last}, this replica is at ${head.position}`);
  const judged = mine
    ? judgeOwnOpen({
        epoch: header.epoch,
        fencedThrough: head.fencedThrough,
        closing: head.closing,
        knownClosing: open.closing,
      })
    : { event: "open_other" as const, closing: head.closing };
  const row = transition(head.state, judged.event);
  if (row === undefined) return stop(`no transition from ${head.state} by ${judged.event}`);
  const end: EpochEnd[] = head.owner === null ? [] : [{ epoch: head.epoch, owner: head.owner, last }];
  return {
    kind: "adopt",
    why: row.why,
    divergentAbove: last < head.position ? last : null,
    head: {
      owner: header.owner,
      epoch: header.epoch,
      state: row.next,
      position: last,
      published: last,
      tenure: !mine ? (0 as Epoch) : wasMine && open.sameTenure && head.tenure > 0 ? head.tenure : header.epoch,
      fencedThrough: head.fencedThrough,
      closing: judged.closing,
      epochEnds: [...head.epochEnds, ...end].slice(-keptEnds),
    },
  };
}

const stop = (why: string): FoldStep => ({ kind: "stop", why });
