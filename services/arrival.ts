import { Problem } from "../infra/errors.js";
import type { Epoch, Position, ShardId } from "../shards/ids.js";
import type { Place } from "./api.js";
import type { DatacenterParts } from "./datacenter.js";

/** A shard whose copy still loads is looked at again after so many milliseconds. */
const againMs = 100;

/** Waiting for what was written elsewhere: Hothot-Min-Position. */
export class Arrival {
  readonly #p: Pick<DatacenterParts, "shards" | "progress" | "data" | "restorer" | "router" | "time">;

  constructor(parts: Pick<DatacenterParts, "shards" | "progress" | "data" | "restorer" | "router" | "time">) {
    this.#p = parts;
  }

  /** Waits until this datacenter has applied the place. @throws Problem position_lost, deadline_exceeded, overloaded */
  async of(place: Place, deadline: number, signal?: AbortSignal): Promise<void> {
    const { shard, epoch, position } = place;
    const { progress, time } = this.#p;
    if (shard >= this.#p.shards)
      throw new Problem("invalid_request", undefined, {
        errors: [{ path: "header/Hothot-Min-Position", message: `there are ${this.#p.shards} shards` }],
      });
    const waiting = this.#p.router.room.place();
    try {
      if (!progress.has(shard, epoch, position)) {
        waiting.for("a position");
        await progress.wait(shard, epoch, position, deadline, signal);
      }
      while (progress.place(shard).epoch > epoch) {
        const lost = await this.#lost(shard, epoch, position);
        if (lost === false) return;
        if (lost === true)
          throw new Problem("position_lost", `Epoch ${epoch} of shard ${shard} ended before position ${position}.`);
        waiting.for("a position");
        const left = deadline - time.monotonic();
        if (left <= 0 || signal?.aborted === true)
          throw new Problem("deadline_exceeded", `it is not known here yet where epoch ${epoch} of the shard ended`);
        await time.sleep(Math.min(left, againMs), signal);
      }
    } finally {
      waiting.leave();
    }
  }

  /** Whether the epoch ended without the position; undefined while that isn't known yet. */
  async #lost(shard: ShardId, epoch: Epoch, position: Position): Promise<boolean | undefined> {
    // The log states where epochs ended; further back only the history knows, which a copy gets last.
    const { rows } = await this.#p.data.pool.query<{ now: number; stated: number | null; told: number | null }>(
      `SELECT h.epoch AS now,
         (SELECT (e ->> 'last')::bigint FROM jsonb_array_elements(h.epoch_ends) AS e WHERE (e ->> 'epoch')::bigint = $2) AS stated,
         (SELECT last_position FROM history WHERE shard = $1 AND epoch > $2 ORDER BY epoch LIMIT 1) AS told
       FROM shard_head h WHERE h.shard = $1`,
      [shard, epoch],
    );
    const [row] = rows;
    if (row === undefined) return undefined;
    if (row.stated !== null) return position > row.stated;
    // An own open may be in the log and not yet in the database.
    if (row.now <= epoch || this.#p.restorer.shardWaits(shard)) return undefined;
    return row.told !== null && position > row.told;
  }
}
