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
 * a write looks at a key's age and not at whether it is gone, so nothing depends on when that is. Keys of one shard go in the order
 * of their positions: behind one that an owner with a fast clock wrote, they wait until that one is old, too.
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
        // By the index that their shards' copies need anyway: positions grow with time, so a shard's oldest keys come first.
        text: `WITH RECURSIVE shards AS (SELECT min(shard) AS shard FROM idempotency_keys
            UNION ALL SELECT (SELECT min(shard) FROM idempotency_keys WHERE shard > s.shard) FROM shards s WHERE s.shard IS NOT NULL),
          old AS (SELECT k.tenant, k.key, k.shard FROM shards s CROSS JOIN LATERAL (
            SELECT tenant, key, shard, created_at FROM idempotency_keys WHERE shard = s.shard ORDER BY changed_position LIMIT
              CASE WHEN (SELECT created_at FROM idempotency_keys WHERE shard = s.shard ORDER BY changed_position LIMIT 1) < $1 THEN $2::int ELSE 0 END) AS k
            WHERE s.shard IS NOT NULL AND k.created_at < $1 LIMIT $2::int)
          DELETE FROM idempotency_keys i USING old WHERE i.tenant = old.tenant AND i.key = old.key AND i.shard = old.shard AND i.created_at < $1`,
        values: [before, rowsAtOnce],
      });
      removed += rowCount ?? 0;
      if ((rowCount ?? 0) < rowsAtOnce || this.#stop.signal.aborted) break;
      await this.#o.time.sleep(pauseMs, this.#stop.signal);
    }
    if (removed > 0) this.#log.debug("removed old idempotency keys", { rows: removed });
  }
}
