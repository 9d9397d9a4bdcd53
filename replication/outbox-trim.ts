import type { Time } from "../infra/clock.js";
import type { Logger } from "../infra/logger.js";
import type { Database } from "../infra/postgres/database.js";
import { Rounds } from "../infra/rounds.js";
import type { Service } from "../infra/service.js";
import { partitionOf, shardId } from "../shards/ids.js";
import { decodeHeader } from "./record.js";

export interface OutboxTrimOptions {
  readonly database: Database;
  readonly partitions: number;
  /** The oldest message of a shard that the log still holds. */
  readonly first: (partition: number, shard: number) => Promise<{ readonly data: Uint8Array } | undefined>;
  readonly time: Time;
  readonly log: Logger;
  /** Milliseconds between looks. */
  readonly everyMs: number;
  /** This process is its datacenter's replicator. */
  readonly active: () => boolean;
}

const rowsAtOnce = 1_000;
const pauseMs = 20;

/**
 * Published outbox rows stay as long as the log keeps them: should it lose its tail, they are appended again. What the log has
 * purged goes here too, in small steps. Rows that the log has not confirmed are never touched.
 */
export class OutboxTrim implements Service {
  readonly name = "outbox-trim";
  readonly #o: OutboxTrimOptions;
  readonly #log: Logger;
  readonly #rounds: Rounds;

  constructor(options: OutboxTrimOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "outbox-trim" });
    const { time, everyMs } = options;
    const round = (stopped: AbortSignal): Promise<void> => this.#round(stopped);
    this.#rounds = new Rounds({ what: "trim the outbox", everyMs, round, time, log: this.#log });
  }

  async start(): Promise<void> {
    this.#rounds.start();
  }

  stop(): Promise<void> {
    return this.#rounds.stop();
  }

  async #round(stopped: AbortSignal): Promise<void> {
    if (!this.#o.active()) return;
    const { rows } = await this.#o.database.pool.query<{ shard: number }>(
      "SELECT shard FROM shard_head h WHERE EXISTS (SELECT 1 FROM outbox o WHERE o.shard = h.shard) ORDER BY shard",
    );
    for (const { shard } of rows) {
      if (stopped.aborted || !this.#o.active()) return;
      const found = await this.#o.first(partitionOf(shardId(shard), this.#o.partitions), shard);
      if (found !== undefined) await this.#trim(shard, found.data, stopped);
    }
  }

  async #trim(shard: number, first: Uint8Array, stopped: AbortSignal): Promise<void> {
    const header = decodeHeader(first);
    let removed = 0;
    for (;;) {
      const { rowCount } = await this.#o.database.pool.query({
        name: "trim_outbox",
        text: `DELETE FROM outbox USING (
            SELECT o.shard, o.epoch, o.position FROM outbox o JOIN shard_head h ON h.shard = o.shard
            WHERE o.shard = $1 AND (o.epoch, o.position) < ($2, $3) AND (o.epoch < h.epoch OR o.position <= h.published)
            ORDER BY o.epoch, o.position LIMIT $4) AS old
          WHERE outbox.shard = old.shard AND outbox.epoch = old.epoch AND outbox.position = old.position`,
        values: [shard, header.epoch, header.first, rowsAtOnce],
      });
      removed += rowCount ?? 0;
      if ((rowCount ?? 0) < rowsAtOnce || stopped.aborted) break;
      await this.#o.time.sleep(pauseMs, stopped);
    }
    if (removed > 0) this.#log.debug("trimmed the outbox", { shard, rows: removed });
  }
}
