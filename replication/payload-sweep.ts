import type { Time } from "../infra/clock.js";
import type { Logger } from "../infra/logger.js";
import { Rounds } from "../infra/rounds.js";
import type { Service } from "../infra/service.js";
import { partitionOf, shardId, type ShardId } from "../shards/ids.js";
import { isPast } from "./payloads.js";
import { decodeHeader } from "./record.js";

export interface PayloadSweepOptions {
  readonly partitions: number;
  readonly objects: {
    list(timeoutMs: number): Promise<readonly string[]>;
    remove(id: string, timeoutMs: number): Promise<void>;
  };
  /** The oldest message of a shard that the log holds; a replica that lags shows an older one. */
  readonly first: (partition: number, shard: number) => Promise<{ readonly data: Uint8Array } | undefined>;
  readonly owns: (shard: ShardId) => boolean;
  readonly time: Time;
  readonly log: Logger;
  readonly everyMs: number;
  readonly active: () => boolean;
}

const requestMs = 3_000;

/**
 * Removes payloads of own shards that nobody can ask for any more: the log's oldest message of the shard is newer. So those go too
 * whose reference never reached the log.
 */
export class PayloadSweep implements Service {
  readonly name = "payload-sweep";
  readonly #o: PayloadSweepOptions;
  readonly #log: Logger;
  readonly #rounds: Rounds;

  constructor(options: PayloadSweepOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "payload-sweep" });
    const { time, everyMs } = options;
    const round = (stopped: AbortSignal): Promise<void> => this.#round(stopped);
    this.#rounds = new Rounds({ what: "remove old payloads", everyMs, round, time, log: this.#log });
  }

  async start(): Promise<void> {
    this.#rounds.start();
  }

  stop(): Promise<void> {
    return this.#rounds.stop();
  }

  async #round(stopped: AbortSignal): Promise<void> {
    if (!this.#o.active()) return;
    const byShard = new Map<number, string[]>();
    for (const id of await this.#o.objects.list(requestMs)) {
      const shard = Number(/^\d+/.exec(id)?.[0] ?? NaN);
      if (Number.isSafeInteger(shard) && this.#o.owns(shardId(shard)))
        byShard.set(shard, [...(byShard.get(shard) ?? []), id]);
    }
    let removed = 0;
    for (const [shard, ids] of byShard) {
      const found = await this.#o.first(partitionOf(shardId(shard), this.#o.partitions), shard);
      if (found === undefined) continue;
      const oldest = decodeHeader(found.data);
      for (const id of ids) {
        if (stopped.aborted || !this.#o.active()) return;
        if (!isPast(id, oldest)) continue;
        await this.#o.objects.remove(id, requestMs);
        removed++;
      }
    }
    if (removed > 0) this.#log.info("old payloads removed", { objects: removed });
  }
}
