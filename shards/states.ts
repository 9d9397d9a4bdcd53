import type { Epoch } from "./ids.js";

/**
 * What a datacenter's own database says about a shard (`shard_head.state`).
 * - replica: another datacenter owns it, or nobody yet.
 * - owned: the log gave it to this datacenter, above every fence (invariant 1).
 * - moving: owned, and about to be given away; nothing is acknowledged.
 * - suspended: the log gave it to this datacenter, but a fence or a closing stands above; an own `open` brings it back.
 */
export const shardStates = ["replica", "owned", "moving", "suspended"] as const;
export type ShardState = (typeof shardStates)[number];

/** What happens to a shard. `open` events are folded from the log, the others come from inside the datacenter. */
export type ShardEvent =
  "open_self" | "open_self_fenced" | "open_other" | "fence" | "close" | "move" | "move_called_off" | "move_abandoned";

export interface Transition {
  readonly current: ShardState | "any";
  readonly event: ShardEvent;
  readonly next: ShardState;
  /** What the log line and the history say. */
  readonly why: string;
}

/** The one table. An event without a row changes nothing. */
export const shardTransitions: readonly Transition[] = [
  { current: "any", event: "open_self", next: "owned", why: "the log opened the shard here" },
  {
    current: "any",
    event: "open_self_fenced",
    next: "suspended",
    why: "the log opened the shard here, at or below a fence",
  },
  { current: "any", event: "open_other", next: "replica", why: "the log opened the shard in another datacenter" },
  { current: "owned", event: "fence", next: "suspended", why: "a site voted against this epoch" },
  { current: "moving", event: "fence", next: "suspended", why: "a site voted against this epoch during a move" },
  { current: "owned", event: "close", next: "suspended", why: "a database of the group may have forgotten" },
  { current: "moving", event: "close", next: "suspended", why: "a database of the group may have forgotten" },
  { current: "owned", event: "move", next: "moving", why: "a planned move began" },
  { current: "moving", event: "move_called_off", next: "owned", why: "the move was called off before its append" },
  {
    current: "moving",
    event: "move_abandoned",
    next: "suspended",
    why: "nobody drives the move any more: an append settles it",
  },
];

export function transition(current: ShardState, event: ShardEvent): Transition | undefined {
  return shardTransitions.find((row) => row.event === event && (row.current === current || row.current === "any"));
}

/** Facts that an own open is judged by (rules d and i). */
export interface OpenFacts {
  readonly epoch: Epoch;
  readonly fencedThrough: Epoch;
  /** The closing that stands in the database; 0: none. */
  readonly closing: number;
  /** The closing that the open's sender knew; it lifts that one and no later one. */
  readonly knownClosing: number;
}

/** Whether an epoch that the log gives to this datacenter may be served, and what is left of a closing. */
export function judgeOwnOpen(facts: OpenFacts): { readonly event: ShardEvent; readonly closing: number } {
  const closing = facts.closing === facts.knownClosing ? 0 : facts.closing;
  const fenced = facts.epoch <= facts.fencedThrough || closing !== 0;
  return { event: fenced ? "open_self_fenced" : "open_self", closing };
}
