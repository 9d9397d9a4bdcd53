import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";

export interface KeyExpiryOptions {
  readonly database: Database;
  readonly time: Time;
  readonly log: Logger;
  /** How long a key is remembered, milliseconds. */
  readonly retentionMs: number;
  /** This process is its datacenter's replicator. */
  readonly active: () => boolean;
}

const rowsAtOnce = 500;
const pauseMs = 20;
const longestEveryMs = 60_000;

/**
 * Idempotency keys that are older than they are remembered go, in small steps, in each datacenter by itself: whoever decides
 * a write looks at a key's age and not at whether it is gone, so nothing depends on when that is.
 */
export class KeyExpiry implements Service {
  readonly name = "key-expiry";
  readonly #o: KeyExpiryOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: KeyExpiryOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "key-expiry" });
  }

  async start(): Promise<void> {
    const everyMs = Math.min(longestEveryMs, Math.max(200, this.#o.retentionMs / 10));
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#o.time.sleep(everyMs, this.#stop.signal);
        if (!this.#stop.signal.aborted && this.#o.active())
          await this.#round().catch((error: unknown) =>
            this.#log.warn("old idempotency keys can't be removed", { error: asError(error) }),
          );
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #round(): Promise<void> {
    const before = new Date(this.#o.time.wall() - this.#o.retentionMs).toISOString();
    let removed = 0;
    for (;;) {
      const { rowCount } = await this.#o.database.pool.query({
        name: "expire_keys",
        text: `DELETE FROM idempotency_keys i USING (
            SELECT tenant, key, shard FROM idempotency_keys WHERE created_at < $1 ORDER BY created_at LIMIT $2) AS old
          WHERE i.tenant = old.tenant AND i.key = old.key AND i.shard = old.shard AND i.created_at < $1`,
        values: [before, rowsAtOnce],
      });
      removed += rowCount ?? 0;
      if ((rowCount ?? 0) < rowsAtOnce || this.#stop.signal.aborted) break;
      await this.#o.time.sleep(pauseMs, this.#stop.signal);
    }
    if (removed > 0) this.#log.debug("removed old idempotency keys", { rows: removed });
  }
}
