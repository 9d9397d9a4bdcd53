import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { AccessBook } from "./book.js";
import { Rates } from "./rates.js";

/** How often a tenant writes, against how often it may: of one process. */
export class WriteRates {
  readonly #rates = new Rates();

  constructor(
    private readonly book: Pick<AccessBook, "limits">,
    private readonly time: Time,
  ) {}

  /** Whether the tenant's writes are counted, or its clusters. */
  limited(tenant: string): boolean {
    const limits = this.book.limits(tenant);
    return limits !== undefined && (limits.writesPerSecond !== null || limits.maxClusters !== null);
  }

  /** Counts one write. @throws Problem quota_exceeded */
  take(tenant: string): void {
    const waitSeconds = this.#try(tenant, 1);
    if (waitSeconds > 0) throw this.#exceeded(tenant, waitSeconds);
  }

  /**
   * Counts rows that are written together, once their turn has come: a large load is slowed down, and refused only if its turn
   * doesn't come by the deadline. They may be more than the tenant has left; whoever is next waits the longer.
   * @returns what gives them back when they had no effect. @throws Problem quota_exceeded
   */
  async takeRows(tenant: string, rows: number, deadline: number): Promise<() => void> {
    for (;;) {
      const waitSeconds = this.#try(tenant, rows);
      if (waitSeconds === 0) return () => this.#rates.give(tenant, rows);
      if (this.time.monotonic() + waitSeconds * 1000 >= deadline) throw this.#exceeded(tenant, waitSeconds);
      await this.time.sleep(Math.max(1, waitSeconds * 1000));
    }
  }

  #try(tenant: string, count: number): number {
    const most = this.book.limits(tenant)?.writesPerSecond;
    if (most === undefined || most === null) return 0;
    return this.#rates.take(tenant, most, this.time.monotonic(), count);
  }

  #exceeded(tenant: string, retryAfterSeconds: number): Problem {
    const most = this.book.limits(tenant)?.writesPerSecond ?? 0;
    return new Problem("quota_exceeded", `This tenant may write ${most} times a second.`, { retryAfterSeconds });
  }
}
