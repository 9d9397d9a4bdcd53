import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import { lockHeads, type FullHead } from "./heads.js";
import { fromColumns, shapes, upsert } from "./rows.js";
import type { ClusterRow, DocumentRow, JobRow, WorkerRow } from "./entities.js";

/** Asks a datacenter for its copy of some rows. */
export const copySubject = (group: string, dc: SiteName): string => `hothot.${group}.dc.${dc}.copy`;

interface CopyRequest {
  readonly shard: number;
  readonly clusters: readonly { readonly tenant: string; readonly id: string }[];
  readonly workers: readonly { readonly tenant: string; readonly id: string }[];
  /** `<kind>/<id>` each. */
  readonly documents: readonly string[];
}

interface CopyAnswer {
  /** The copy is the state at this place of the shard. */
  readonly epoch: number;
  readonly position: number;
  readonly clusters: readonly ClusterRow[];
  readonly jobs: readonly JobRow[];
  readonly workers: readonly WorkerRow[];
  readonly documents: readonly DocumentRow[];
}

export interface RestorerOptions {
  readonly group: string;
  readonly site: SiteName;
  readonly database: Database;
  readonly messenger: Messenger;
  readonly map: ShardMap;
  readonly time: Time;
  readonly log: Logger;
  readonly datacenters: () => readonly SiteName[];
  /** This process is the datacenter's replicator. */
  readonly active: () => boolean;
}

const atOnce = 64;
const tickMs = 200;
const timeoutMs = 2_000;

/**
 * Brings back the rows that a divergent tail had touched (section 6): from the shard's owner, cut at one position. The copy
 * counts once the own mark has reached the cut in the same line of epochs: what an owner never published must not live on in a copy.
 */
export class Restorer implements Service {
  readonly name = "restorer";
  readonly #o: RestorerOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #waiting = new Map<ShardId, Set<string>>();
  #unsubscribe: (() => void) | undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: RestorerOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "restorer" });
  }

  async start(): Promise<void> {
    await this.refresh();
    this.#unsubscribe = this.#o.messenger.subscribe(
      copySubject(this.#o.group, this.#o.site),
      (message) => {
        void this.#answer(unpack(message.data) as CopyRequest)
          .then((answer) => message.respond(pack(answer)))
          .catch((error: unknown) => this.#log.warn("a copy could not be given", { error: asError(error) }));
      },
      { queue: "copy" },
    );
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    await this.#loop;
  }

  /** Rows that this datacenter must not serve now. */
  isWaiting(shard: ShardId, tenant: string, id: string): boolean {
    return this.#waiting.get(shard)?.has(`${tenant}/${id}`) ?? false;
  }

  /** Such a shard can't be opened here. */
  shardWaits(shard: ShardId): boolean {
    return this.#waiting.has(shard);
  }

  get count(): number {
    let sum = 0;
    for (const set of this.#waiting.values()) sum += set.size;
    return sum;
  }

  /** Reads what waits again; the applier calls it after it set operations aside, before the shard is seen by others. */
  async refresh(): Promise<void> {
    const { rows } = await this.#o.database.pool.query<{ shard: number; tenant: string; cluster_id: string }>(
      "SELECT shard, tenant, cluster_id FROM restores",
    );
    const waiting = new Map<ShardId, Set<string>>();
    for (const row of rows) {
      const shard = row.shard as ShardId;
      const set = waiting.get(shard) ?? new Set();
      set.add(`${row.tenant}/${row.cluster_id}`);
      waiting.set(shard, set);
    }
    this.#waiting = waiting;
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        if (this.#waiting.size > 0) {
          if (this.#o.active()) {
            // A shard whose owner is silent must not hold up the others.
            for (const shard of [...this.#waiting.keys()])
              await this.#restore(shard).catch((error: unknown) =>
                this.#log.warn("restoring rows failed", { shard, error: asError(error) }),
              );
            await this.#settle();
          }
          await this.refresh();
        } else await this.refresh();
      } catch (error) {
        this.#log.warn("restoring rows failed", { error: asError(error) });
      }
      await this.#o.time.sleep(this.#waiting.size > 0 ? tickMs : 5 * tickMs, this.#stop.signal);
    }
  }

  async #restore(shard: ShardId): Promise<void> {
    const owner = this.#o.map.get(shard)?.owner;
    if (owner === undefined || owner === null) return;
    // An own `open` can cut off the own tail: then the other datacenters have the current copies.
    const sources = owner === this.#o.site ? this.#o.datacenters().filter((dc) => dc !== this.#o.site) : [owner];
    let failure: unknown;
    for (const source of sources) {
      try {
        return await this.#restoreFrom(shard, source);
      } catch (error) {
        failure = error;
      }
    }
    throw asError(failure ?? new Error("there is nobody to restore from"));
  }

  async #restoreFrom(shard: ShardId, owner: SiteName): Promise<void> {
    for (let limit = atOnce; ;) {
      const { rows } = await this.#o.database.pool.query<{ tenant: string; cluster_id: string; kind: string }>(
        "SELECT tenant, cluster_id, kind FROM restores WHERE shard = $1 AND cut_epoch IS NULL LIMIT $2",
        [shard, limit],
      );
      if (rows.length === 0 || this.#stop.signal.aborted) return;
      const keysOf = (kind: string): { tenant: string; id: string }[] =>
        rows.filter((r) => r.kind === kind).map((r) => ({ tenant: r.tenant, id: r.cluster_id }));
      const request: CopyRequest = {
        shard,
        clusters: keysOf("cluster"),
        workers: keysOf("worker"),
        documents: keysOf("document").map(({ id }) => id),
      };
      let answer: CopyAnswer;
      try {
        answer = unpack(
          await this.#o.messenger.request(copySubject(this.#o.group, owner), pack(request), timeoutMs),
        ) as CopyAnswer;
      } catch (error) {
        // The answer may be too large for one message: ask for less.
        if (limit === 1) throw error;
        limit = Math.ceil(limit / 8);
        continue;
      }
      const counts = await this.#o.database.transaction(async (client) => {
        const head = (await lockHeads(client, [shard])).get(shard);
        if (head === undefined || !inLine(head, answer)) return false;
        await upsert(client, shapes.clusters, answer.clusters);
        await upsert(client, shapes.jobs, answer.jobs);
        await upsert(client, shapes.workers, answer.workers);
        await upsert(client, shapes.documents, answer.documents);
        await client.query(
          `UPDATE restores SET cut_epoch = $4, cut_position = $5 FROM unnest($1::text[], $2::text[], $6::text[]) AS k(tenant, id, kind)
           WHERE restores.shard = $3 AND restores.tenant = k.tenant AND restores.cluster_id = k.id AND restores.kind = k.kind`,
          [
            rows.map((r) => r.tenant),
            rows.map((r) => r.cluster_id),
            shard,
            answer.epoch,
            answer.position,
            rows.map((r) => r.kind),
          ],
        );
        return true;
      });
      if (!counts) return;
      this.#log.info("rows restored from the owner", {
        shard,
        rows: rows.length,
        owner,
        epoch: answer.epoch,
        position: answer.position,
      });
    }
  }

  /** Copies whose cut the own mark has reached count: their rows are served again. */
  async #settle(): Promise<void> {
    await this.#o.database.pool.query(
      `DELETE FROM restores r USING shard_head h WHERE h.shard = r.shard AND r.cut_epoch IS NOT NULL
         AND (h.epoch > r.cut_epoch OR (h.epoch = r.cut_epoch AND h.position >= r.cut_position))`,
    );
  }

  async #answer(request: CopyRequest): Promise<CopyAnswer> {
    return this.#o.database.transaction(async (client) => {
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

/**
 * Whether a copy may be taken over: cut in the epoch that stands here (or a later one), it is not older than where the undone
 * epoch ended, and holds nothing that an ended epoch never published. An older one is asked for again.
 */
function inLine(head: FullHead, cut: { readonly epoch: number }): boolean {
  return cut.epoch >= head.epoch;
}
