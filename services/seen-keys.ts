import { Problem } from "../infra/errors.js";

interface Seen {
  readonly fingerprint: string;
  /** Monotonic milliseconds. */
  readonly at: number;
}

/**
 * What this process lately saw idempotency keys used for. The owner knows the keys of its shard exactly, and those of other
 * shards as far as its copy is: this closes that gap for whoever stays with one process. Bounded; the oldest go first.
 */
export class SeenKeys {
  readonly #seen = new Map<string, Seen>();

  constructor(
    private readonly keepMs: number,
    private readonly bound = 50_000,
  ) {}

  /** @throws Problem idempotency_key_reused */
  check(tenant: string, key: string, fingerprint: string, now: number): void {
    const seen = this.#seen.get(`${tenant}/${key}`);
    if (seen !== undefined && seen.fingerprint !== fingerprint && now - seen.at < this.keepMs)
      throw new Problem("idempotency_key_reused");
  }

  /** The request took effect. */
  used(tenant: string, key: string, fingerprint: string, now: number): void {
    const at = `${tenant}/${key}`;
    this.#seen.delete(at);
    this.#seen.set(at, { fingerprint, at: now });
    if (this.#seen.size <= this.bound) return;
    for (const oldest of this.#seen.keys()) {
      this.#seen.delete(oldest);
      break;
    }
  }
}
