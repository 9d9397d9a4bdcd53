import { decodeHeader } from "../../replication/record.js";
import { ShardLog, type LogTransport, type Tail } from "../../replication/shard-log.js";
import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import type { Partition, ShardId } from "../../shards/ids.js";
import type { ShardMap } from "../../shards/map.js";

/**
 * Faults that runs have found in the product, with what is put around it so that further ones can be found behind them.
 * `--plain` runs without these; each goes when the product is repaired.
 */
export const mends = {
  "stale-tail":
    "ShardLog keeps a tail that a stale replica gave; publisher and restatement then wait for a newer one that nobody brings",
  "missed-wake":
    "a commit in a process that does not publish is told to the one that does by a message that may be lost, or is not sent while the list of nodes is short; nobody looks again",
  "foreign-move":
    "Resume settles a moving shard whose move another process of the datacenter drives; that one may call its move off and acknowledge writes, which the settling open then cuts off",
  "node-gone":
    "a node's row counts as gone after leaseMs + marginMs, but its lease lasts until dbDeadMs + leaseMs after its last canary: a move does not ask it to hold, and it goes on serving reads",
  "own-restore":
    "an owner whose own open cut off its tail never fetches the rows that were undone (it only asks the owner, itself), writes onto the missing rows, and hands them out as copies",
} as const;

export type Mend = keyof typeof mends;

/** Reads the tail again when the one that is known is older than the datacenter's own epoch. */
export class RereadingLog extends ShardLog {
  #route = 0;

  constructor(
    private readonly of: { transport: LogTransport; partitions: number; time: Time; log: Logger },
    private readonly map: ShardMap,
  ) {
    super(of);
  }

  override async tail(shard: ShardId, deadline: number): Promise<Tail | undefined> {
    const known = await super.tail(shard, deadline);
    const epoch = this.map.get(shard)?.epoch ?? 0;
    if (known === undefined || known.header.epoch >= epoch) return known;
    const partition: Partition = this.partitionOf(shard);
    try {
      const found = await this.of.transport.readLast(partition, shard, 250, ++this.#route % this.of.transport.routes);
      if (found !== undefined) this.observe(shard, found.sequence, decodeHeader(found.data));
    } catch {
      // Another way, next time.
    }
    return this.known(shard);
  }
}
