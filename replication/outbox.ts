import type { Database } from "../infra/postgres/database.js";
import { position as toPosition, type Epoch, type Position, type ShardId } from "../shards/ids.js";

export interface OutboxRow {
  readonly position: Position;
  readonly record: Uint8Array;
  /** Milliseconds since 1970. */
  readonly committedAt: number;
}

/** Rows that were committed and may not be in the log yet. */
export interface Outbox {
  /** In position order, from after `after` on, of one epoch. */
  read(shard: ShardId, epoch: Epoch, after: Position, limit: number): Promise<readonly OutboxRow[]>;
}

/** What one read may bring beyond its first row; loads are large. */
const readBytes = 2_000_000;

/** The outbox in the datacenter's Postgres, paged by the dense position: no row can be missed (FACTS: paging by serial loses rows). */
export class PostgresOutbox implements Outbox {
  constructor(private readonly database: Database) {}

  async read(shard: ShardId, epoch: Epoch, after: Position, limit: number): Promise<readonly OutboxRow[]> {
    const { rows } = await this.database.pool.query<{ position: number; record: Buffer; committed_at: string }>({
      name: "read_outbox",
      text: `SELECT position, record, committed_at FROM (
          SELECT position, record, committed_at, sum(octet_length(record)) OVER (ORDER BY position) - octet_length(record) AS before
          FROM (SELECT * FROM outbox WHERE shard = $1 AND epoch = $2 AND position > $3 ORDER BY position LIMIT $4) AS o) AS s
        WHERE before < $5 ORDER BY position`,
      values: [shard, epoch, after, limit, readBytes],
    });
    return rows.map((row) => ({
      position: toPosition(row.position),
      record: row.record,
      committedAt: Date.parse(row.committed_at),
    }));
  }
}
