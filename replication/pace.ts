import type { Clock } from "../infra/clock.js";

/** A rate that several share: each reserves its bytes and is told how long to wait before it sends them. */
export class Pace {
  #free = -Infinity;

  /** @param burstMs how much may go at once, as milliseconds of the rate */
  constructor(
    private readonly clock: Clock,
    private readonly bytesPerSecond: number,
    private readonly burstMs = 100,
  ) {}

  /** @returns milliseconds to wait first */
  reserve(bytes: number): number {
    const now = this.clock.monotonic();
    const from = Math.max(this.#free, now - this.burstMs);
    this.#free = from + (bytes / this.bytesPerSecond) * 1000;
    return Math.max(0, from - now);
  }
}
