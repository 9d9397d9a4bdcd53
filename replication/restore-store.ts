import type { Database } from "../infra/postgres/database.js";
import type { ShardId } from "../shards/ids.js";
import { lockHeads, type FullHead } from "./heads.js";
import { fromColumns, shapes, upsert } from "./rows.js";
import type { ClusterRow, DocumentRow, JobRow, WorkerRow } from "./entities.js";

export interface CopyRequest {
  readonly shard: number;
  readonly clusters: readonly { readonly tenant: string; readonly id: string }[];
  readonly workers: readonly { readonly tenant: string; readonly id: string }[];
  /** `<kind>/<id>` each. */
  readonly documents: readonly string[];
}

export interface CopyAnswer {
  /** The copy is the state at this place of the shard. */
  readonly epoch: number;
  readonly position: number;
  readonly clusters: readonly ClusterRow[];
  readonly jobs: readonly JobRow[];
  readonly workers: readonly WorkerRow[];
  readonly documents: readonly DocumentRow[];
}

/** A row that waits for a current copy; of kind `shard`: all rows of the shard (snapshot.ts brings them). */
export interface Awaited {
  readonly kind: string;
  readonly tenant: string;
  readonly id: string;
}

/** Rows that this datacenter had to undo, and the copies that come for them. Each call is one transaction. */
export interface RestoreStore {
  /** All that waits. */
  waiting(): Promise<readonly (Awaited & { readonly shard: ShardId })[]>;
  /** Rows of the shard that no copy has come for yet. */
  wanted(shard: ShardId, limit: number): Promise<readonly Awaited[]>;
  /** Takes a copy over, if it may be; it counts once the own mark has reached its cut. @returns whether it was */
  take(shard: ShardId, rows: readonly Awaited[], copy: CopyAnswer): Promise<boolean>;
  /** Copies whose cut the own mark has reached count from now on. */
  settle(): Promise<void>;
  /** The own copy for another datacenter. @throws when this one waits for rows of the shard itself */
  copy(request: CopyRequest): Promise<CopyAnswer>;
}

/**
 * Whether a copy may be taken over: cut in the epoch that stands here (or a later one), it is not older than where the undone
 * epoch ended, and holds nothing that an ended epoch never published. An older one is asked for again.
 */
export function inLine(head: Pick<FullHead, "epoch">, cut: { readonly epoch: number }): boolean {
  return cut.epoch >= head.epoch;
}

/** RestoreStore on the datacenter's Postgres. */
export class PostgresRestoreStore implements RestoreStore {
  constructor(private readonly database: Database) {}

  async waiting(): Promise<readonly (Awaited & { readonly shard: ShardId })[]> {
    const { rows } = await this.database.pool.query<Awaited & { shard: number }>(
      "SELECT shard, tenant, cluster_id AS id, kind FROM restores",
    );
    return rows.map((row) => ({ ...row, shard: row.shard as ShardId }));
  }

  async wanted(shard: ShardId, limit: number): Promise<readonly Awaited[]> {
    const { rows } = await this.database.pool.query<Awaited>(
      "SELECT tenant, cluster_id AS id, kind FROM restores WHERE shard = $1 AND cut_epoch IS NULL AND kind <> 'shard' LIMIT $2",
      [shard, limit],
    );
    return rows;
  }

  take(shard: ShardId, rows: readonly Awaited[], copy: CopyAnswer): Promise<boolean> {
    return this.database.transaction(async (client) => {
      const head = (await lockHeads(client, [shard])).get(shard);
      if (head === undefined || !inLine(head, copy)) return false;
      // Another process may have brought a copy meanwhile, that counts by now: a later cut would put in what may never be published.
      const waiting = await client.query(
        `SELECT 1 FROM restores r JOIN unnest($1::text[], $2::text[], $4::text[]) AS k(tenant, id, kind)
           ON r.tenant = k.tenant AND r.cluster_id = k.id AND r.kind = k.kind WHERE r.shard = $3 AND r.cut_epoch IS NULL FOR UPDATE OF r`,
        [rows.map((r) => r.tenant), rows.map((r) => r.id), shard, rows.map((r) => r.kind)],
      );
      if (waiting.rowCount !== rows.length) return false;
      await upsert(client, shapes.clusters, copy.clusters);
      await upsert(client, shapes.jobs, copy.jobs);
      await upsert(client, shapes.workers, copy.workers);
      await upsert(client, shapes.documents, copy.documents);
      await client.query(
        `UPDATE restores SET cut_epoch = $4, cut_position = $5 FROM unnest($1::text[], $2::text[], $6::text[]) AS k(tenant, id, kind)
         WHERE restores.shard = $3 AND restores.tenant = k.tenant AND restores.cluster_id = k.id AND restores.kind = k.kind`,
        [rows.map((r) => r.tenant), rows.map((r) => r.id), shard, copy.epoch, copy.position, rows.map((r) => r.kind)],
      );
      return true;
    });
  }

  async settle(): Promise<void> {
    await this.database.pool.query(
      // Keys that came with a snapshot, instead of with their records, take effect here.
      `WITH counts AS (DELETE FROM restores r USING shard_head h WHERE h.shard = r.shard AND r.cut_epoch IS NOT NULL
         AND (h.epoch > r.cut_epoch OR (h.epoch = r.cut_epoch AND h.position >= r.cut_position)) RETURNING r.shard, r.kind)
       UPDATE divergent_operations d SET status = 'superseded' FROM counts, idempotency_keys k
       WHERE counts.kind = 'shard' AND d.shard = counts.shard AND d.status = 'open'
         AND k.tenant = d.tenant AND k.key = d.idempotency_key AND k.shard = d.shard`,
    );
  }

  async copy(request: CopyRequest): Promise<CopyAnswer> {
    return this.database.transaction(async (client) => {
      await client.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
      const { rows } = await client.query<{ epoch: number; position: number; state: string }>(
        "SELECT epoch, position, state FROM shard_head WHERE shard = $1",
        [request.shard],
      );
      const head = rows[0];
      if (head === undefined) throw new Error("there is no such shard");
      const waiting = await client.query("SELECT 1 FROM restores WHERE shard = $1 LIMIT 1", [request.shard]);
      if (waiting.rowCount !== 0) throw new Error("rows of this copy wait to be restored themselves");
      const load = async <T>(sql: string, keys: readonly { tenant: string; id: string }[]): Promise<T[]> => {
        if (keys.length === 0) return [];
        const found = await client.query<Record<string, unknown>>(sql, [
          keys.map((k) => k.tenant),
          keys.map((k) => k.id),
        ]);
        return found.rows.map((row) => fromColumns<T>(row));
      };
      const from = "FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN";
      return {
        epoch: head.epoch,
        position: head.position,
        clusters: await load<ClusterRow>(
          `SELECT t.* ${from} clusters t ON t.tenant = k.tenant AND t.id = k.id`,
          request.clusters,
        ),
        jobs: await load<JobRow>(
          `SELECT t.* ${from} jobs t ON t.tenant = k.tenant AND t.cluster_id = k.id`,
          request.clusters,
        ),
        workers: await load<WorkerRow>(
          `SELECT t.* ${from} workers t ON t.tenant = k.tenant AND t.id = k.id`,
          request.workers,
        ),
        documents:
          request.documents.length === 0
            ? []
            : (
                await client.query<Record<string, unknown>>(
                  "SELECT * FROM documents WHERE kind || '/' || id = ANY($1::text[])",
                  [request.documents],
                )
              ).rows.map((row) => fromColumns<DocumentRow>(row)),
      };
    });
  }
}
