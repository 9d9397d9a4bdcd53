import { Problem } from "../infra/errors.js";
import type { Epoch, Position, ShardId } from "../shards/ids.js";
import type { Place } from "./api.js";
import type { DatacenterParts } from "./datacenter.js";

/** Waiting for what was written elsewhere: Hothot-Min-Position. */
export class Arrival {
  readonly #p: Pick<DatacenterParts, "shards" | "progress" | "data">;

  constructor(parts: Pick<DatacenterParts, "shards" | "progress" | "data">) {
    this.#p = parts;
  }

  /** Waits until this datacenter has applied the place. @throws Problem position_lost, deadline_exceeded */
  async of(place: Place, deadline: number): Promise<void> {
    if (place.shard >= this.#p.shards)
      throw new Problem("invalid_request", undefined, {
        errors: [{ path: "header/Hothot-Min-Position", message: `there are ${this.#p.shards} shards` }],
      });
    await this.#p.progress.wait(place.shard, place.epoch, place.position, deadline);
    if (
      this.#p.progress.place(place.shard).epoch > place.epoch &&
      (await this.#lost(place.shard, place.epoch, place.position))
    )
      throw new Problem(
        "position_lost",
        `Epoch ${place.epoch} of shard ${place.shard} ended before position ${place.position}.`,
      );
  }

  async #lost(shard: ShardId, epoch: Epoch, position: Position): Promise<boolean> {
    // The log states where epochs ended; further back only the history knows, which a copy gets last.
    const { rows } = await this.#p.data.pool.query<{ last: number | null }>(
      `SELECT coalesce(
         (SELECT (e ->> 'last')::bigint FROM shard_head h, jsonb_array_elements(h.epoch_ends) AS e
            WHERE h.shard = $1 AND (e ->> 'epoch')::bigint = $2),
         (SELECT last_position FROM history WHERE shard = $1 AND epoch > $2 ORDER BY epoch LIMIT 1)) AS last`,
      [shard, epoch],
    );
    const ended = rows[0]?.last ?? null;
    return ended !== null && position > ended;
  }
}
