import { asError, Problem } from "../infra/errors.js";
import type { Time } from "../infra/clock.js";
import type { LoadRow } from "../replication/load.js";
import type { LoadOutcome } from "../replication/load-writer.js";
import { shardOf, type ShardId } from "../shards/ids.js";
import type { Reply, RequestContext } from "./api.js";
import type { BulkLine, BulkRow } from "./http/types.js";

/** Keys of loads begin like this; no header can hold the control character. */
export const loadKeyPrefix = "load\u0001";

/** Rows that are read before they are given out: of a block, each shard's go to its owner together. */
const blockRows = 16_384;
const blockBytes = 8_000_000;
/** Of one shard's rows together, unless one alone is larger: they travel in one message. */
const groupBytes = 400_000;
/** Without a key a block that is not full goes when no further row has come for so long: somebody may wait for the answers. */
const idleMs = 50;
/** Rows read in one turn of the event loop, about 3 ms. */
const rowsATurn = 256;
/** How long one group may wait for its owner. */
const groupMs = 60_000;
const pauseMs = 200;

export interface BulkOptions {
  readonly shards: number;
  readonly time: Time;
  /** Carries the rows of one shard to its owner, and its answer back. */
  readonly load: (context: RequestContext, shard: ShardId, rows: readonly LoadRow[]) => Promise<Reply>;
  readonly newId: (tenant: string, key: string | null) => string;
  readonly token: () => string;
}

interface Placed {
  readonly line: number;
  readonly shard: ShardId;
  readonly row: LoadRow;
}

/**
 * Many clusters in one request. Blocks of rows are cut by number and size alone, so that a repeated request with the same key asks
 * each owner for the same loads again: each takes effect once. Rows of a shard keep their order; two blocks are under way at most.
 */
export class Bulk {
  constructor(private readonly o: BulkOptions) {}

  async *run(context: RequestContext, rows: AsyncIterable<BulkRow>, signal: AbortSignal): AsyncGenerator<BulkLine> {
    const key = context.idempotencyKey ?? null;
    // Without the caller's key a random one still lets a load be sent again to whoever owns its shard next.
    const base = key ?? this.o.token();
    const busy = new Map<ShardId, Promise<unknown>>();
    const under: Promise<BulkLine[]>[] = [];
    const blocks = this.#blocks(context.caller.tenant, rows, key);
    try {
      for (;;) {
        const block = await nextWithin(blocks, under);
        if (block === "answered") {
          yield* (await under.shift()) ?? [];
          continue;
        }
        if (block === null || signal.aborted) break;
        const answers = this.#send(context, base, block, busy);
        // A failure is met where the block is awaited.
        answers.catch(() => undefined);
        under.push(answers);
        while (under.length > 1) yield* (await under.shift()) ?? [];
      }
      for (const answers of under) yield* await answers;
    } catch (error) {
      // What can't be read ends the request; what was sent before may have taken effect, and so is told first.
      for (const answers of under.splice(0)) yield* await answers;
      throw error;
    } finally {
      await blocks.end();
    }
  }

  #blocks(tenant: string, rows: AsyncIterable<BulkRow>, key: string | null): Blocks {
    return new Blocks(rows, key === null ? idleMs : null, this.o.time, (row) => {
      if ("errors" in row)
        return {
          line: row.line,
          ...(row.id === undefined ? {} : { id: row.id }),
          status: 400,
          code: "invalid_request",
          detail: row.errors.map((fault) => `${fault.path} ${fault.message}`.trim()).join("; "),
        };
      const { fields } = row;
      const id = row.id ?? this.o.newId(tenant, key === null ? null : `${key}:${row.line}`);
      return {
        line: row.line,
        shard: shardOf(id, this.o.shards),
        row: {
          id,
          name: fields.name,
          spec: JSON.stringify(fields.spec),
          state: JSON.stringify(fields.state ?? {}),
          labels: JSON.stringify(fields.labels ?? {}),
          expiresAt: fields.expiresAt ?? null,
        },
      };
    });
  }

  /** Gives a block's rows to their owners. @returns its lines, in order */
  async #send(
    context: RequestContext,
    base: string,
    block: readonly (Placed | BulkLine)[],
    busy: Map<ShardId, Promise<unknown>>,
  ): Promise<BulkLine[]> {
    const answers = new Map<number, BulkLine>();
    const groups: Placed[][] = [];
    const open = new Map<ShardId, { rows: Placed[]; bytes: number }>();
    for (const item of block) {
      if (!("row" in item)) {
        answers.set(item.line, item);
        continue;
      }
      let group = open.get(item.shard);
      const bytes = sizeOf(item.row);
      if (group === undefined || group.bytes + bytes > groupBytes) {
        group = { rows: [], bytes: 0 };
        open.set(item.shard, group);
        groups.push(group.rows);
      }
      group.rows.push(item);
      group.bytes += bytes;
    }
    await Promise.all(
      groups.map(async (rows) => {
        const shard = (rows[0] as Placed).shard;
        const mine = (busy.get(shard) ?? Promise.resolve()).then(() => this.#load(context, base, shard, rows));
        busy.set(
          shard,
          mine.catch(() => undefined),
        );
        for (const line of await mine) answers.set(line.line, line);
      }),
    );
    return block.flatMap(({ line }) => answers.get(line) ?? []);
  }

  async #load(
    context: RequestContext,
    base: string,
    shard: ShardId,
    placed: readonly Placed[],
  ): Promise<readonly BulkLine[]> {
    const key = `${loadKeyPrefix}${base}:${placed[0]?.line ?? 0}`;
    const deadline = Math.min(context.deadline, this.o.time.monotonic() + groupMs);
    const rows = placed.map(({ row }) => row);
    for (;;) {
      try {
        const reply = await this.o.load({ ...context, idempotencyKey: key, deadline }, shard, rows);
        const outcome = reply.body as LoadOutcome;
        return placed.map(({ line, row }, index): BulkLine => {
          const [status, version] = outcome[index] ?? [500, 0];
          return { line, id: row.id, status, version, ...(reply.replayed === true ? { replayed: true } : {}) };
        });
      } catch (error) {
        const problem =
          error instanceof Problem ? error : new Problem("internal", undefined, { cause: asError(error) });
        // These had no effect: the owner is asked again while there is time.
        const again = problem.code === "unpublished_limit" || problem.code === "overloaded";
        if (again && this.o.time.monotonic() + pauseMs < deadline) {
          await this.o.time.sleep(pauseMs);
          continue;
        }
        return placed.map(({ line, row }) => ({
          line,
          id: row.id,
          status: problem.status,
          code: problem.code,
          detail: problem.message,
        }));
      }
    }
  }
}

/** Names of the fields, the time, lengths. */
const overheadBytes = 80;
/** As it travels. */
const sizeOf = (row: LoadRow): number =>
  overheadBytes +
  Buffer.byteLength(row.id) +
  Buffer.byteLength(row.name) +
  Buffer.byteLength(row.spec) +
  Buffer.byteLength(row.state) +
  Buffer.byteLength(row.labels);

type Item = Placed | BulkLine;

/** Cuts rows into blocks, one ahead of who takes them. */
class Blocks {
  readonly #rows: AsyncIterator<BulkRow>;
  #next: Promise<IteratorResult<BulkRow>> | undefined;
  #block: Promise<Item[] | null> | undefined;

  constructor(
    rows: AsyncIterable<BulkRow>,
    private readonly idle: number | null,
    private readonly time: Time,
    private readonly place: (row: BulkRow) => Item,
  ) {
    this.#rows = rows[Symbol.asyncIterator]();
  }

  /** The block under way; the same promise until it is taken. Null: there is none. */
  get block(): Promise<Item[] | null> {
    return (this.#block ??= this.#read());
  }

  take(): void {
    this.#block = undefined;
  }

  async end(): Promise<void> {
    this.#block?.catch(() => undefined);
    await this.#rows.return?.();
  }

  async #read(): Promise<Item[] | null> {
    const block: Item[] = [];
    let bytes = 0;
    while (block.length < blockRows && bytes < blockBytes) {
      this.#next ??= this.#rows.next();
      const next =
        block.length === 0 || this.idle === null ? await this.#next : await this.#soon(this.#next, this.idle);
      if (next === null) return block;
      this.#next = undefined;
      if (next.done === true) return block.length === 0 ? null : block;
      // What has arrived already is read without a wait: others must get their turns.
      if (block.length % rowsATurn === rowsATurn - 1) await new Promise<void>((resolve) => this.time.soon(resolve));
      const item = this.place(next.value);
      block.push(item);
      bytes += "row" in item ? sizeOf(item.row) : 200;
    }
    return block;
  }

  #soon<T>(next: Promise<T>, ms: number): Promise<T | null> {
    return new Promise((resolve, reject) => {
      const timer = this.time.after(ms, () => resolve(null));
      next.then(
        (value) => {
          timer.cancel();
          resolve(value);
        },
        (error: unknown) => {
          timer.cancel();
          reject(asError(error));
        },
      );
    });
  }
}

/** The next block, or the word that the oldest one under way was answered before. */
async function nextWithin(blocks: Blocks, under: readonly Promise<BulkLine[]>[]): Promise<Item[] | null | "answered"> {
  const oldest = under[0];
  const next =
    oldest === undefined
      ? await blocks.block
      : await Promise.race([blocks.block, oldest.then(() => "answered" as const)]);
  if (next !== "answered") blocks.take();
  return next;
}
