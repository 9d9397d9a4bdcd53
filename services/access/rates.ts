interface Bucket {
  tokens: number;
  /** Monotonic milliseconds. */
  at: number;
}

/** Token buckets by name, each as large as a second of its rate. Bounded: the one that was used longest ago goes first. */
export class Rates {
  readonly #buckets = new Map<string, Bucket>();

  constructor(private readonly bound = 10_000) {}

  /** Takes `count` once there is one: what is missing is owed. @returns 0, or the seconds after which there is one again */
  take(name: string, perSecond: number, now: number, count = 1): number {
    const size = Math.max(1, perSecond);
    const bucket = this.#buckets.get(name) ?? { tokens: size, at: now };
    this.#buckets.delete(name);
    this.#buckets.set(name, bucket);
    bucket.tokens = Math.min(size, bucket.tokens + ((now - bucket.at) / 1000) * perSecond);
    bucket.at = now;
    if (this.#buckets.size > this.bound)
      for (const oldest of this.#buckets.keys()) {
        this.#buckets.delete(oldest);
        break;
      }
    if (bucket.tokens >= 1) {
      bucket.tokens -= count;
      return 0;
    }
    return (1 - bucket.tokens) / perSecond;
  }

  /** What was taken and not used. */
  give(name: string, count: number): void {
    const bucket = this.#buckets.get(name);
    if (bucket !== undefined) bucket.tokens += count;
  }
}
