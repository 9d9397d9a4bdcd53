import { Problem } from "../infra/errors.js";
import type { SiteName } from "../shards/ids.js";

/** Requests that a process has at work at once; those that wait have room among them. */
export const workBound = 2_000;

/** A request's place among those that wait. */
export interface Place {
  /** From now on the request waits for this owner or thing. Only who had no place yet may find none. @throws Problem overloaded */
  for(what: string, owner?: SiteName | null): void;
  /** It waits no more. */
  leave(): void;
}

/**
 * Bounds what waits, by what it waits for: a datacenter, or positions. As many may wait for one thing as there is room left: alone it
 * gets half of all, two get a third each, so that there is always room for what need not wait (dynamic thresholds, Choudhury and
 * Hahne 1998).
 */
export class Room {
  readonly #waiting = new Map<string, number>();
  #count = 0;

  constructor(private readonly size = workBound) {}

  get waiting(): number {
    return this.#count;
  }

  place(): Place {
    let at: string | undefined;
    const go = (to: string | undefined): void => {
      if (at === to) return;
      if (at !== undefined) this.#add(at, -1);
      if (to !== undefined) this.#add(to, 1);
      at = to;
    };
    return {
      for: (what, owner = null) => {
        if (at === undefined && (this.#waiting.get(what) ?? 0) >= this.size - this.#count)
          throw new Problem("overloaded", `too many requests wait for ${what}`, {
            ...(owner === null ? {} : { owner }),
            retryAfterSeconds: 1,
          });
        go(what);
      },
      leave: () => go(undefined),
    };
  }

  #add(what: string, by: 1 | -1): void {
    this.#count += by;
    const waiting = (this.#waiting.get(what) ?? 0) + by;
    if (waiting === 0) this.#waiting.delete(what);
    else this.#waiting.set(what, waiting);
  }
}
