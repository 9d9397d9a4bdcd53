import type { SiteName } from "./ids.js";

export interface LeaseRules {
  readonly leaseMs: number;
  /** Covers clock rates (1 %) and scheduling. */
  readonly marginMs: number;
}

interface Beat {
  readonly sentAt: number;
  readonly wallAt: number;
  readonly promised: Set<SiteName>;
}

/**
 * A node's lease: until `send time + leaseMs - margin` of its latest heartbeat that enough sites have promised to (section 4).
 * Arithmetic alone; times come in. All `at` are on the node's monotonic clock, in milliseconds.
 */
export class Lease {
  readonly #rules: LeaseRules;
  readonly #beats = new Map<number, Beat>();
  #until = -Infinity;
  /** Wall minus monotonic clock when the lease was last extended: a suspended machine shows as a jump. */
  #offset = 0;

  constructor(rules: LeaseRules) {
    this.#rules = rules;
  }

  sent(beat: number, at: number, wallAt: number): void {
    this.#beats.set(beat, { sentAt: at, wallAt, promised: new Set() });
    for (const [number, old] of this.#beats) if (at - old.sentAt > this.#rules.leaseMs) this.#beats.delete(number);
  }

  /** A site has promised to the beat. @returns whether the lease now lasts longer. */
  promised(beat: number, site: SiteName, needed: number | ((promised: ReadonlySet<SiteName>) => boolean)): boolean {
    const found = this.#beats.get(beat);
    if (found === undefined) return false;
    found.promised.add(site);
    if (typeof needed === "number" ? found.promised.size < needed : !needed(found.promised)) return false;
    const until = found.sentAt + this.#rules.leaseMs - this.#rules.marginMs;
    if (until <= this.#until) return false;
    this.#until = until;
    this.#offset = found.wallAt - found.sentAt;
    return true;
  }

  /** Ends the lease at once; beats that are under way count for nothing any more (rule d). */
  drop(): void {
    this.#until = -Infinity;
    this.#beats.clear();
  }

  /** Whether the lease holds; a wall clock that ran ahead of the monotonic one by more than the margin ends it. */
  valid(at: number, wallAt: number): boolean {
    return at < this.#until && wallAt - at - this.#offset <= this.#rules.marginMs;
  }

  msLeft(at: number, wallAt: number): number {
    return this.valid(at, wallAt) ? Math.max(0, this.#until - at) : 0;
  }
}

/** Votes and promises that count: more than half of the sites. */
export const majority = (sites: number): number => Math.floor(sites / 2) + 1;

/** In a group without a third vote nothing takes over by itself, so the own site's answer is enough for a lease. */
export const promisesNeeded = (sites: number): number => (sites < 3 ? 1 : majority(sites));
