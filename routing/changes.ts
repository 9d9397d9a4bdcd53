import { Problem } from "../infra/errors.js";
import type { Time } from "../infra/clock.js";
import type { ShardId } from "../shards/ids.js";

/** Requests that wait for a shard's owner, a lease, or a position: a bounded queue, woken by every change of the shard. */
export class Changes {
  readonly #waiting = new Map<ShardId, Set<() => void>>();
  readonly #time: Time;
  #count = 0;

  constructor(
    time: Time,
    private readonly bound = 20_000,
  ) {
    this.#time = time;
  }

  get count(): number {
    return this.#count;
  }

  changed(shard: ShardId): void {
    const waiting = this.#waiting.get(shard);
    if (waiting === undefined) return;
    this.#waiting.delete(shard);
    for (const wake of waiting) wake();
  }

  changedAll(): void {
    for (const shard of [...this.#waiting.keys()]) this.changed(shard);
  }

  /** Resolves at the shard's next change, at the latest after `ms`. @throws Problem overloaded */
  next(shard: ShardId, ms: number): Promise<void> {
    if (this.#count >= this.bound)
      return Promise.reject(new Problem("overloaded", "too many requests wait for an owner", { retryAfterSeconds: 1 }));
    this.#count++;
    return new Promise((resolve) => {
      const wake = (): void => {
        timer.cancel();
        this.#count--;
        this.#waiting.get(shard)?.delete(wake);
        resolve();
      };
      const timer = this.#time.after(Math.max(0, ms), wake);
      const waiting = this.#waiting.get(shard);
      if (waiting === undefined) this.#waiting.set(shard, new Set([wake]));
      else waiting.add(wake);
    });
  }
}
