import type { Time } from "../infra/clock.js";
import type { Position } from "../shards/ids.js";
import type { ByteBudget } from "./byte-budget.js";
import type { OutboxRow } from "./outbox.js";
import type { Committed } from "./writer.js";

const batchRecords = 1000;
const batchBytes = 400_000;
/** Of one shard. */
const memoryBytes = 4_000_000;
/** Of all shards of a process. */
export const unpublishedBytes = 32_000_000;
/** Larger ones are read from the outbox: they may be many. */
const recordBytes = 32_000;

/** Rows read from the outbox at once. */
export const outboxRows = batchRecords;

/**
 * What this process committed to a shard and the log has yet to get, so that the outbox need not be read for it. Dense, but
 * may lack rows that other processes committed or that did not fit: the outbox has them all.
 */
export class Unpublished {
  #records: Committed[] = [];
  #bytes = 0;

  constructor(private readonly budget: ByteBudget) {}

  /** Remembers a commit as far as there is room. */
  add(record: Committed): void {
    const { length } = record.record;
    if (length > recordBytes || this.#bytes + length > memoryBytes || !this.budget.take(length)) return;
    this.#records.push(record);
    this.#bytes += length;
  }

  clear(): void {
    this.budget.give(this.#bytes);
    this.#records = [];
    this.#bytes = 0;
  }

  /** The first that is known behind `mark`. */
  after(mark: Position): Committed | undefined {
    return this.#records.find((record) => record.position > mark);
  }

  /** What follows `mark` without a gap, as far as one message takes it, and forgets what is not behind it; empty when the next one is not here. */
  next(mark: Position, time: Time): OutboxRow[] {
    let published = 0;
    let bytes = 0;
    for (const record of this.#records) {
      if (record.position > mark) break;
      bytes += record.record.length;
      published++;
    }
    if (published > 0) this.#records.splice(0, published);
    this.#bytes -= bytes;
    this.budget.give(bytes);
    const wall = time.wall();
    const now = time.monotonic();
    return fitting(
      this.#records,
      (record) => ({
        position: record.position,
        record: record.record,
        committedAt: wall - (now - record.at),
      }),
      mark,
    );
  }
}

/** The rows that follow `mark` without a gap, and not more than one message takes. */
export function fitting<R extends { readonly position: Position; readonly record: Uint8Array }>(
  rows: readonly R[],
  toRow: (row: R) => OutboxRow,
  mark: Position,
): OutboxRow[] {
  const out: OutboxRow[] = [];
  let bytes = 0;
  for (const row of rows) {
    if (row.position !== mark + 1 + out.length || out.length >= batchRecords) break;
    if (out.length > 0 && bytes + row.record.length > batchBytes) break;
    bytes += row.record.length;
    out.push(toRow(row));
  }
  return out;
}
