import { promisify } from "node:util";
import { deflateRaw } from "node:zlib";
import { pack, unpack } from "msgpackr";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Message, Messenger } from "../infra/nats/messaging.js";
import { jsonAsBytes, type Client, type Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "../shards/ids.js";
import { copyTables, pageCompare, rowHash, rowJson, type CopyTable } from "./copy-tables.js";
import type { EpochEnd } from "./record.js";

/** Asks a datacenter for its fold of a partition, or for a chunk of its copy of a shard. */
export const snapshotSubject = (group: string, dc: SiteName): string => `hothot.${group}.dc.${dc}.snapshot`;

export interface Cut {
  readonly epoch: number;
  readonly position: number;
}

/** Rows of one table of a shard behind `after`, in the order of its pages. */
export interface ChunkRequest {
  readonly kind: "chunk";
  readonly shard: number;
  readonly table: string;
  readonly after: readonly (string | number)[] | null;
  /** Only rows changed behind this place are sent; null: all. */
  readonly since: Cut | null;
}

export interface Chunk {
  /** The chunk is the state at this place of the shard. */
  readonly epoch: number;
  readonly position: number;
  /** A JSON array of rows, deflated. */
  readonly rows: Uint8Array;
  /** Rows sent. */
  readonly count: number;
  /** The page of the last row in range; null: the table ends here. */
  readonly last: readonly (string | number)[] | null;
  /** Rows in range, sent or not, and the sum of their hashes. */
  readonly total: number;
  readonly digest: string;
}

/** Where a partition's fold stands. */
export interface FoldRequest {
  readonly kind: "fold";
  readonly partition: number;
}

/** A shard at the end of the messages that are folded in: what the log says, not what its owner has committed since. */
export interface FoldedShard {
  readonly shard: number;
  readonly owner: SiteName | null;
  readonly epoch: number;
  readonly position: number;
  readonly since: string;
  readonly kind: string;
  readonly reason: string;
  readonly epochEnds: readonly EpochEnd[];
}

export interface Folded {
  readonly sequence: number;
  readonly shards: readonly FoldedShard[];
}

const chunkBytes = 400_000;
/** Rows of one chunk that are looked at, sent or not. */
const chunkRows = 5_000;
const firstRows = 16;
/** Of one NATS message. */
const partBytes = 500_000;
const deflate = promisify(deflateRaw);

/**
 * Gives this datacenter's copy to others, chunk by chunk, each cut at its own position; an answer in parts ends with an empty one.
 * A copy that waits for rows itself, or has stopped, gives nothing.
 */
export class CopySource implements Service {
  readonly name = "copy-source";
  readonly #log: Logger;
  #unsubscribe: (() => void) | undefined;

  constructor(
    private readonly o: {
      readonly group: string;
      readonly site: SiteName;
      readonly database: Database;
      readonly messenger: Messenger;
      readonly log: Logger;
    },
  ) {
    this.#log = o.log.with({ component: "copy-source" });
  }

  async start(): Promise<void> {
    this.#unsubscribe = this.o.messenger.subscribe(
      snapshotSubject(this.o.group, this.o.site),
      (message) => void this.#answer(message),
      { queue: "snapshot" },
    );
  }

  async stop(): Promise<void> {
    this.#unsubscribe?.();
  }

  async #answer(message: Message): Promise<void> {
    let data: Uint8Array;
    try {
      const request = unpack(message.data) as ChunkRequest | FoldRequest;
      const ok = request.kind === "fold" ? await this.#fold(request) : await this.#chunk(request);
      data = pack({ ok });
    } catch (error) {
      this.#log.info("a copy can't be given", { error: asError(error) });
      data = pack({ refused: asError(error).message });
    }
    for (let at = 0; at < data.length; at += partBytes) message.respond(data.subarray(at, at + partBytes));
    message.respond(new Uint8Array(0));
  }

  #read<T>(action: (client: Client) => Promise<T>): Promise<T> {
    return this.o.database.transaction(async (client) => {
      await client.query(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL TIME ZONE 'UTC'; SET LOCAL lock_timeout = '2s'",
      );
      return action(client);
    });
  }

  #fold(request: FoldRequest): Promise<Folded> {
    return this.#read(async (client) => {
      const progress = await client.query<{ sequence: number }>(
        "SELECT sequence FROM partition_progress WHERE partition = $1",
        [request.partition],
      );
      const { rows } = await client.query<{
        shard: number;
        owner: string | null;
        epoch: number;
        published: number;
        since: string;
        kind: string;
        reason: string;
        epoch_ends: EpochEnd[];
        stopped: string | null;
      }>(
        "SELECT shard, owner, epoch, published, since, kind, reason, epoch_ends, stopped FROM shard_head WHERE partition = $1 ORDER BY shard",
        [request.partition],
      );
      const sequence = progress.rows[0]?.sequence;
      if (sequence === undefined) throw new Error("there is no such partition");
      const stopped = rows.find((row) => row.stopped !== null);
      if (stopped !== undefined) throw new Error(`shard ${stopped.shard} has stopped here: ${stopped.stopped ?? ""}`);
      return {
        sequence,
        // Of an own shard, too, the published mark is what the log holds up to this message.
        shards: rows.map((row) => ({
          shard: row.shard,
          owner: row.owner,
          epoch: row.epoch,
          position: row.published,
          since: row.since,
          kind: row.kind,
          reason: row.reason,
          epochEnds: row.epoch_ends,
        })),
      };
    });
  }

  #chunk(request: ChunkRequest): Promise<Chunk> {
    const table = copyTables.find((each) => each.name === request.table);
    if (table === undefined) throw new Error(`there is no table ${request.table} to copy`);
    return this.#read(async (client) => {
      const { rows } = await client.query<{ epoch: number; position: number; stopped: string | null; waits: boolean }>(
        "SELECT epoch, position, stopped, EXISTS (SELECT 1 FROM restores r WHERE r.shard = h.shard) AS waits FROM shard_head h WHERE shard = $1",
        [request.shard],
      );
      const head = rows[0];
      if (head === undefined) throw new Error("there is no such shard");
      if (head.stopped !== null) throw new Error(`shard ${request.shard} has stopped here: ${head.stopped}`);
      if (head.waits) throw new Error(`rows of shard ${request.shard} wait to be restored themselves`);
      const range = await readRange(client, table, request);
      return {
        epoch: head.epoch,
        position: head.position,
        rows: await deflate(jsonArray(range.rows), { level: 1 }),
        count: range.rows.length,
        last: range.last,
        total: range.total,
        digest: range.digest.toString(),
      };
    });
  }
}

const comma = Buffer.from(",");

/** A JSON array of what is in JSON already. */
const jsonArray = (parts: readonly Buffer[]): Buffer =>
  Buffer.concat([
    Buffer.from("["),
    ...parts.flatMap((part, index) => (index === 0 ? [part] : [comma, part])),
    Buffer.from("]"),
  ]);

interface Range {
  /** In JSON. */
  readonly rows: readonly Buffer[];
  readonly last: readonly (string | number)[] | null;
  readonly total: number;
  readonly digest: bigint;
}

/** Row by row through a cursor, so that large rows are never many in memory. */
async function readRange(client: Client, table: CopyTable, request: ChunkRequest): Promise<Range> {
  const values: unknown[] = [request.shard];
  const behind = request.after === null ? "true" : pageCompare(table, ">", 2);
  values.push(...(request.after ?? []));
  let wanted = "true";
  if (request.since !== null && table.placed) {
    wanted = `(t.changed_epoch, t.changed_position) > ($${values.length + 1}::bigint, $${values.length + 2}::bigint)`;
    values.push(request.since.epoch, request.since.position);
  }
  const pages = table.page.map((each, index) => `t.${each.column} AS p${index}`).join(", ");
  const order = table.page.map((each) => each.column).join(", ");
  await client.query(
    `DECLARE chunk NO SCROLL CURSOR FOR SELECT CASE WHEN ${wanted} THEN ${rowJson("t")} END AS r, ${rowHash("t")}::text AS h, ${pages}
      FROM (SELECT ${table.columns.join(", ")} FROM ${table.name} WHERE shard = $1 AND ${table.where} AND ${behind} ORDER BY ${order}) AS t`,
    values,
  );
  const rows: Buffer[] = [];
  let bytes = 0;
  let total = 0;
  let digest = 0n;
  let last: (string | number)[] | null = null;
  for (let next = firstRows; ;) {
    const { rows: found } = await client.query<{ r: Buffer | null; h: string } & Record<string, string | number>>({
      text: `FETCH ${next} FROM chunk`,
      types: jsonAsBytes,
    });
    for (const row of found) {
      total++;
      digest += BigInt(row.h);
      if (row.r !== null) {
        rows.push(row.r);
        bytes += row.r.length;
      }
      last = table.page.map((_, index) => row[`p${index}`] ?? "");
    }
    if (found.length < next) return { rows, last: null, total, digest };
    if (bytes >= chunkBytes || total >= chunkRows) return { rows, last, total, digest };
    const mean = bytes / total;
    next = Math.max(1, Math.min(500, mean > 0 ? Math.ceil((chunkBytes - bytes) / mean) : 500, chunkRows - total));
  }
}
