import { decodeHeader, lastOf } from "../../replication/record.js";
import { ShardLog, type LogTransport, type Tail } from "../../replication/shard-log.js";
import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import type { ShardId } from "../../shards/ids.js";

/**
 * Faults that runs have found in the product and that are not repaired there yet. So that further ones can be found
 * behind them, the simulation's own parts (stores, wiring, restorer) do here what the repair would do; `--plain` runs
 * without them, `--plain-of NAME` without one. Each entry, and the places that ask for it, go with the product's repair.
 */
export const mends = {
  "foreign-move":
    "Resume settles a moving shard whose move another process of the datacenter drives; that one may call its move off and acknowledge writes, which the settling open then cuts off",
  "own-restore":
    "an owner whose own open cut off its tail never fetches the rows that were undone (it only asks the owner, itself), writes onto the missing rows, and hands them out as copies",
  "node-gone":
    "a node's row counts as gone after leaseMs + marginMs, but its lease lasts until dbDeadMs + leaseMs after its last canary: a move does not ask it to hold, and it goes on serving reads",
  "node-returns":
    "a node that was gone gets a lease again before it has read its database's heads: it serves reads by a view from before",
  "mark-goes-back":
    "the publisher lowers its mark to a tail that a stale replica gave; without the rows in the outbox (the database went back) it never appends, and the shard stays suspended",
  "late-waiting":
    "what waits to be restored is read apart from the heads: a process that hears of a newer epoch by its heads opens, writes and reads the shard before it knows which rows are missing",
} as const;

export type Mend = keyof typeof mends;

/** Reads the tail again when it is below what the log is known to hold. */
export class RereadingLog extends ShardLog {
  #route = 0;

  constructor(
    private readonly of: { transport: LogTransport; partitions: number; time: Time; log: Logger },
    private readonly mark: (shard: ShardId) => number | null,
  ) {
    super(of);
  }

  override async tail(shard: ShardId, deadline: number, since = 0): Promise<Tail | undefined> {
    const { transport, time } = this.of;
    for (;;) {
      const known = await super.tail(shard, deadline, since);
      if (known === undefined || lastOf(known.header) >= (this.mark(shard) ?? 0)) return known;
      if (time.monotonic() >= deadline) return undefined;
      try {
        const way = ++this.#route % transport.routes;
        const found = await transport.readLast(this.partitionOf(shard), shard, 250, way);
        if (found !== undefined) this.observe(shard, found.sequence, decodeHeader(found.data));
      } catch {
        // Another way, next time.
      }
      await time.sleep(20);
    }
  }
}
