import { sql } from "kysely";
import { Problem } from "../../infra/errors.js";
import type { Db } from "../../infra/postgres/database.js";
import type { ClusterRow, JobRow, KeyRow, TaskRow } from "../../replication/entities.js";
import type { ShardId } from "../../shards/ids.js";
import type { ClusterQuery, JobQuery, Page } from "../api.js";

/** Reads of one datacenter's copy. */
export class Queries {
  constructor(private readonly db: Db) {}

  async cluster(tenant: string, id: string): Promise<ClusterRow | undefined> {
    return (await this.db
      .selectFrom("clusters")
      .selectAll()
      .where("tenant", "=", tenant)
      .where("id", "=", id)
      .executeTakeFirst()) as ClusterRow | undefined;
  }

  /** In id order; `shards` narrows to those of an owner. */
  async clusters(
    tenant: string,
    query: ClusterQuery,
    shards: readonly ShardId[] | null,
  ): Promise<{ rows: ClusterRow[]; next: string | null }> {
    let select = this.db.selectFrom("clusters").selectAll().where("tenant", "=", tenant).where("deleted", "=", false);
    if (query.cursor !== undefined) select = select.where("id", ">", decodeCursor(query.cursor));
    if (query.status !== undefined) select = select.where("status", "=", query.status);
    if (query.shard !== undefined) select = select.where("shard", "=", query.shard);
    if (shards !== null) select = select.where(sql<boolean>`shard = ANY(${shards}::int[])`);
    if (query.label !== undefined)
      select = select.where(sql<boolean>`labels ->> ${query.label.name} = ${query.label.value}`);
    return page(
      (await select
        .orderBy("id")
        .limit(query.limit + 1)
        .execute()) as unknown as ClusterRow[],
      query,
      (row) => row.id,
    );
  }

  async job(tenant: string, id: string): Promise<JobRow | undefined> {
    return (await this.db
      .selectFrom("jobs")
      .selectAll()
      .where("tenant", "=", tenant)
      .where("id", "=", id)
      .executeTakeFirst()) as JobRow | undefined;
  }

  /** What the key was used for since then (milliseconds since 1970), as far as this copy is; the first use first. */
  async keys(tenant: string, key: string, since: number): Promise<KeyRow[]> {
    return (await this.db
      .selectFrom("idempotencyKeys")
      .selectAll()
      .where("tenant", "=", tenant)
      .where("key", "=", key)
      .where("createdAt", ">", new Date(since).toISOString())
      .orderBy("createdAt")
      .execute()) as unknown as KeyRow[];
  }

  async jobs(tenant: string, query: JobQuery): Promise<{ rows: JobRow[]; next: string | null }> {
    let select = this.db.selectFrom("jobs").selectAll().where("tenant", "=", tenant);
    if (query.cursor !== undefined) select = select.where("id", ">", decodeCursor(query.cursor));
    if (query.status !== undefined) select = select.where("status", "=", query.status);
    if (query.cluster !== undefined) select = select.where("clusterId", "=", query.cluster);
    return page(
      (await select
        .orderBy("id")
        .limit(query.limit + 1)
        .execute()) as unknown as JobRow[],
      query,
      (row) => row.id,
    );
  }

  async tasks(jobId: string): Promise<TaskRow[]> {
    return (await this.db
      .selectFrom("tasks")
      .selectAll()
      .where("jobId", "=", jobId)
      .orderBy("stageIndex")
      .orderBy("id")
      .execute()) as unknown as TaskRow[];
  }
}

/** One more row than asked for tells whether there is a next page. */
export function page<T>(rows: T[], query: Page, key: (row: T) => string): { rows: T[]; next: string | null } {
  if (rows.length <= query.limit) return { rows, next: null };
  const kept = rows.slice(0, query.limit);
  const last = kept.at(-1);
  return { rows: kept, next: last === undefined ? null : encodeCursor(key(last)) };
}

export const encodeCursor = (text: string): string => Buffer.from(text, "utf8").toString("base64url");

/** @throws Problem invalid_request for what no list has made */
export function decodeCursor(cursor: string): string {
  const text = Buffer.from(cursor, "base64url").toString("utf8");
  return text.includes("\u0000") ? refuseCursor() : text;
}

function refuseCursor(): never {
  throw new Problem("invalid_request", undefined, {
    errors: [{ path: "query/cursor", message: "must be a nextCursor of this list" }],
  });
}

/** A cursor of several parts, as the list made it. @throws Problem invalid_request for anything else */
export function cursorParts(
  cursor: string,
  kinds: readonly ("time" | "text" | "shard" | "epoch")[],
): (string | number)[] {
  let parts: unknown;
  try {
    parts = JSON.parse(decodeCursor(cursor));
  } catch {
    return refuseCursor();
  }
  if (!Array.isArray(parts) || parts.length !== kinds.length) return refuseCursor();
  return kinds.map((kind, index) => {
    const part: unknown = (parts as unknown[])[index];
    if (kind === "shard" || kind === "epoch") {
      const most = kind === "shard" ? 1_000_000 : Number.MAX_SAFE_INTEGER;
      return typeof part === "number" && Number.isInteger(part) && part >= 0 && part <= most ? part : refuseCursor();
    }
    if (typeof part !== "string" || part.includes("\u0000")) return refuseCursor();
    return kind === "text" || isTime(part) ? part : refuseCursor();
  });
}

/** One that the calendar has, as databases are stricter than `Date`: no 30th of February, no year 0. */
function isTime(text: string): boolean {
  if (!timeForm.test(text) || text.startsWith("0000")) return false;
  const ms = Date.parse(text);
  return !Number.isNaN(ms) && new Date(ms).toISOString().startsWith(text.slice(0, 19));
}

const timeForm = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$/;
