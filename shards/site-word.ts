import type { Clock, Timers } from "../infra/clock.js";
import type { SiteName } from "./ids.js";
import type { Vote, VoteStore } from "./store.js";

/** Acknowledged votes, by site: a number counts only under the incarnation that it names (rule i). */
export type Acknowledgements = Readonly<Record<SiteName, readonly [incarnation: number, number: number]>>;

/** What a node of a datacenter says every heartbeat, to all sites. */
export interface Heartbeat {
  /** Number of the site set. */
  readonly set: number;
  readonly dc: SiteName;
  readonly node: string;
  readonly beat: number;
  readonly incarnation: number;
  readonly acks: Acknowledgements;
}

/** A site's answer: a promise for `leaseMs` from receipt, or the vote that the node has to acknowledge first. */
export type SiteAnswer =
  | {
      readonly kind: "promise";
      readonly site: SiteName;
      /** Number of the site set that the site knows. */
      readonly set: number;
      readonly incarnation: number;
      readonly beat: number;
    }
  | {
      readonly kind: "refusal";
      readonly site: SiteName;
      readonly set: number;
      readonly incarnation: number;
      readonly beat: number;
      readonly vote: Vote;
    };

export interface VoteRequest {
  readonly set: number;
  readonly candidate: SiteName;
  readonly target: SiteName;
  readonly epochs: Readonly<Record<string, number>>;
  /** An operator's: the site stops promising at once, and votes when its last promise has run out. */
  readonly forced?: boolean;
}

export interface SiteWordOptions {
  readonly site: SiteName;
  readonly leaseMs: number;
  /** Term of the coordinator's lock. */
  readonly termMs: number;
  readonly marginMs: number;
  readonly clock: Clock;
  readonly votes: VoteStore;
  readonly setNumber: () => number;
  readonly incarnation: () => number;
}

const nobody: Vote = { number: 0, epochs: {} };

/**
 * A site's word (rules a, b, c): promises to the datacenters that it hears, votes against one whose promise has run out.
 * Given by one process of the site at a time, its coordinator; silent after each restart or change of that process.
 */
export class SiteWord {
  readonly #o: SiteWordOptions;
  readonly #promises = new Map<SiteName, number>();
  /** Nothing is promised until then, since an operator forces a takeover (monotonic). */
  readonly #denied = new Map<SiteName, number>();
  /** Largest incarnation heard, by datacenter; also while the site is silent. */
  readonly #incarnations = new Map<SiteName, number>();
  /** Of each node of a datacenter the last promise, and the incarnation under which it asked. */
  readonly #nodes = new Map<SiteName, Map<string, { readonly incarnation: number; readonly until: number }>>();
  #votes = new Map<SiteName, Vote>();
  /** The coordinator's lock is held until here (monotonic). */
  #heldUntil = -Infinity;
  /** Wall minus monotonic clock when the lock was renewed: a suspended machine shows as a jump. */
  #offset = 0;
  /** Silent before (monotonic). */
  #speaksFrom = Infinity;
  #loaded = false;

  constructor(options: SiteWordOptions) {
    this.#o = options;
  }

  /** Milliseconds of silence after a restart or after taking the lock: what a predecessor may still have promised (rules b, c). */
  get silenceMs(): number {
    return (this.#o.leaseMs + this.#o.termMs) * 1.02 + 50;
  }

  /** The lock was taken or renewed; `asked` is when the statement was sent, by both clocks. */
  async lockHeld(asked: { readonly at: number; readonly wallAt: number }, fresh: boolean): Promise<void> {
    if (fresh || !this.#loaded) {
      // Silent until the votes are read: should that fail, the next renewal tries again.
      this.#loaded = false;
      this.#heldUntil = -Infinity;
      this.#promises.clear();
      this.#nodes.clear();
      this.#votes = await this.#o.votes.load();
      this.#loaded = true;
      this.#speaksFrom = this.#o.clock.monotonic() + this.silenceMs;
    }
    this.#heldUntil = asked.at + this.#o.termMs - this.#o.marginMs;
    this.#offset = asked.wallAt - asked.at;
  }

  /** The lock is another's, or the database another one: what was promised counts for nothing any more. */
  lockLost(): void {
    this.#heldUntil = -Infinity;
    this.#speaksFrom = Infinity;
    this.#loaded = false;
    this.#promises.clear();
    this.#nodes.clear();
  }

  get speaks(): boolean {
    const now = this.#o.clock.monotonic();
    // A machine that was suspended does not know how long: by the database's clock the lock may be another's.
    const suspended = this.#o.clock.wall() - now - this.#offset > this.#o.marginMs;
    return now < this.#heldUntil && now >= this.#speaksFrom && !suspended;
  }

  /** @returns undefined while the site is silent, or hears of another site set. */
  heartbeat(heartbeat: Heartbeat): SiteAnswer | undefined {
    const newest = Math.max(this.#incarnations.get(heartbeat.dc) ?? 0, heartbeat.incarnation);
    this.#incarnations.set(heartbeat.dc, newest);
    if (!this.speaks || heartbeat.set !== this.#o.setNumber()) return undefined;
    const now = this.#o.clock.monotonic();
    if (now < (this.#denied.get(heartbeat.dc) ?? -Infinity)) return undefined;
    // Of two databases that both believe to be a datacenter's, only the newer one's nodes are promised anything (rule i), and
    // nothing before the others' last promises are over: they may serve from the older one until then.
    if (heartbeat.incarnation < newest || this.#servesOlder(heartbeat, now)) return undefined;
    if ((heartbeat.acks[this.#o.site]?.[0] ?? 0) > this.#o.incarnation()) {
      // Somebody has met a newer database of this very site: this process speaks for an older one.
      this.lockLost();
      return undefined;
    }
    const answer = { site: this.#o.site, set: heartbeat.set, incarnation: this.#o.incarnation(), beat: heartbeat.beat };
    if (heartbeat.dc !== this.#o.site) {
      const vote = this.#votes.get(heartbeat.dc) ?? nobody;
      const [incarnation, number] = heartbeat.acks[this.#o.site] ?? [0, 0];
      if (incarnation !== answer.incarnation || number < vote.number) return { kind: "refusal", ...answer, vote };
    }
    const until = now + this.#o.leaseMs;
    this.#promises.set(heartbeat.dc, until);
    this.#nodes.get(heartbeat.dc)?.set(heartbeat.node, { incarnation: heartbeat.incarnation, until });
    return { kind: "promise", ...answer };
  }

  /** Another node of the datacenter has a promise under an earlier incarnation; those that are over are forgotten. */
  #servesOlder({ dc, node, incarnation }: Heartbeat, now: number): boolean {
    const nodes = this.#nodes.get(dc) ?? new Map<string, { readonly incarnation: number; readonly until: number }>();
    this.#nodes.set(dc, nodes);
    for (const [name, promise] of nodes) if (now >= promise.until) nodes.delete(name);
    return [...nodes].some(([name, promise]) => name !== node && promise.incarnation < incarnation);
  }

  /** Milliseconds until the last promise to the datacenter has run out; 0 when none holds. */
  promisedMs(target: SiteName): number {
    return Math.max(0, (this.#promises.get(target) ?? -Infinity) - this.#o.clock.monotonic());
  }

  /** Whether this site has not promised anything to the datacenter any more (or yet). */
  free(target: SiteName): boolean {
    return this.#o.clock.monotonic() >= (this.#promises.get(target) ?? -Infinity);
  }

  /**
   * Milliseconds since the promise to the datacenter ran out; below 0 while it holds. One that was never heard since this
   * site began to speak gets two leases to be heard first: a group that starts together does not vote against its late-comers.
   */
  silentMs(target: SiteName): number {
    const late = 2 * this.#o.leaseMs;
    // Kept silent by an operator's takeover, a datacenter gets the same time to come back before anybody calls it dead.
    const denied = (this.#denied.get(target) ?? -Infinity) + late;
    const since = Math.max(this.#promises.get(target) ?? this.#speaksFrom + late, denied);
    return this.#o.clock.monotonic() - since;
  }

  /** For a forced takeover: promises nothing more to the target for `ms`. @returns milliseconds until its last promise has run out */
  deny(target: SiteName, ms: number): number {
    const now = this.#o.clock.monotonic();
    this.#denied.set(target, now + ms);
    return Math.max(0, (this.#promises.get(target) ?? -Infinity) - now);
  }

  /** Votes against the target: stored before it is given, and given only if nothing has changed meanwhile. */
  async vote(request: VoteRequest): Promise<Vote | undefined> {
    const may = (): boolean =>
      this.speaks &&
      request.set === this.#o.setNumber() &&
      request.target !== this.#o.site &&
      this.free(request.target);
    if (!may()) return undefined;
    const vote = await this.#o.votes.vote(request.target, request.epochs);
    const known = this.#votes.get(request.target);
    if (known === undefined || vote.number > known.number) this.#votes.set(request.target, vote);
    return may() ? vote : undefined;
  }
}

/** How long a site keeps its word back during a forced takeover. */
export const denyMs = 4_000;

/** A candidate that asks by so much too early gets its answer when the promise has run out, if nothing was heard meanwhile. */
const earlyMs = 400;

/** A vote now, or, when an operator forces it, as soon as the site's last promise has run out. */
export async function castVote(word: SiteWord, request: VoteRequest, timers: Timers): Promise<Vote | undefined> {
  if (request.forced === true && word.speaks) await timers.sleep(word.deny(request.target, denyMs) + 5);
  else {
    // Sites hear a datacenter's last word at slightly different times: one that is asked a little early answers a little late.
    const left = word.promisedMs(request.target);
    if (left > 0 && left <= earlyMs) await timers.sleep(left + 1);
  }
  return word.vote(request);
}
