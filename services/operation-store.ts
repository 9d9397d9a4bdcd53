import type { Database } from "../infra/postgres/database.js";
import type { SiteName } from "../shards/ids.js";

export interface ShardMove {
  shard: number;
  from: SiteName | null;
  to: SiteName;
  status: "waiting" | "running" | "complete" | "failed" | "cancelled";
  error: string | null;
}

export interface LongOperation {
  id: string;
  kind: string;
  status: "running" | "complete" | "failed" | "cancelled";
  progress: { done: number; total: number };
  shards: ShardMove[];
  error: string | null;
  by: string;
  startedAt: string;
  finishedAt: string | null;
}

export interface StoredOperation {
  readonly body: LongOperation;
  /** Of the request that began it; null without an idempotency key. */
  readonly fingerprint: string | null;
}

/** How it was when it began, to the letter of its first answer. */
export const beginningOf = ({ id, kind, shards, by, startedAt }: LongOperation): LongOperation => ({
  id,
  kind,
  status: "running",
  progress: { done: 0, total: shards.length },
  shards: shards.map(({ shard, from, to }) => ({ shard, from, to, status: "waiting", error: null })),
  error: null,
  by,
  startedAt,
  finishedAt: null,
});

const kept = 200;

const lost = "'the process that ran it stopped'";

/** Long operations of a datacenter: any of its processes shows and cancels them, the one that began each carries it out. */
export class OperationStore {
  constructor(
    private readonly database: Database,
    private readonly node: string,
    private readonly goneMs: number,
  ) {}

  /** @returns the operation that has this id already */
  async begin(operation: LongOperation, fingerprint: string | null): Promise<StoredOperation | undefined> {
    const { rowCount } = await this.database.pool.query(
      "INSERT INTO operations (id, body, node, fingerprint) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
      [operation.id, JSON.stringify(operation), this.node, fingerprint],
    );
    return rowCount === 1 ? undefined : this.find(operation.id);
  }

  /** Stores how far it is. @returns whether somebody has cancelled it */
  async save(operation: LongOperation): Promise<boolean> {
    const { rows } = await this.database.pool.query<{ cancelled: boolean }>({
      name: "save_operation",
      text: "UPDATE operations SET body = $2 WHERE id = $1 AND body ->> 'status' = 'running' RETURNING cancelled",
      values: [operation.id, JSON.stringify(operation)],
    });
    if (operation.status !== "running")
      await this.database.pool.query(
        "DELETE FROM operations WHERE id IN (SELECT id FROM operations ORDER BY started_at DESC OFFSET $1)",
        [kept],
      );
    return rows[0]?.cancelled ?? true;
  }

  /** @returns false when it has ended */
  async cancel(id: string): Promise<boolean> {
    const { rowCount } = await this.database.pool.query(
      "UPDATE operations SET cancelled = true WHERE id = $1 AND body ->> 'status' = 'running'",
      [id],
    );
    return rowCount === 1;
  }

  async find(id: string): Promise<StoredOperation | undefined> {
    const { rows } = await this.database.pool.query<StoredOperation>(
      "SELECT body, fingerprint FROM operations WHERE id = $1",
      [id],
    );
    return rows[0];
  }

  async running(): Promise<LongOperation[]> {
    const { rows } = await this.database.pool.query<{ body: LongOperation }>(
      "SELECT body FROM operations WHERE body ->> 'status' = 'running'",
    );
    return rows.map(({ body }) => body);
  }

  /** Those whose process is gone did not end: they say so. `own`: this process has begun none yet. */
  async endLost(own: boolean): Promise<LongOperation[]> {
    const { rows } = await this.database.pool.query<{ body: LongOperation }>(
      `UPDATE operations o SET body = body || jsonb_build_object('status', 'failed', 'error', ${lost},
         'finishedAt', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
         'shards', (SELECT coalesce(jsonb_agg(CASE WHEN s ->> 'status' IN ('waiting', 'running')
             THEN s || jsonb_build_object('status', 'failed', 'error', ${lost}) ELSE s END ORDER BY n), '[]')
           FROM jsonb_array_elements(body -> 'shards') WITH ORDINALITY AS e (s, n)))
       WHERE body ->> 'status' = 'running' AND CASE WHEN coalesce(node, $1) = $1 THEN $3
         ELSE NOT EXISTS (SELECT 1 FROM nodes n WHERE n.node = o.node AND seen_at > clock_timestamp() - $2 * interval '1 millisecond') END
       RETURNING body`,
      [this.node, this.goneMs, own],
    );
    return rows.map(({ body }) => body);
  }
}
