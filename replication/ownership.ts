import { within, type Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Random } from "../infra/random.js";
import { nextEpoch, position as toPosition, type ShardId } from "../shards/ids.js";
import type { OpenRequest, OpenResult, OwnershipLog } from "../shards/ownership-log.js";
import { encodeBatch, lastOf, type BatchHeader, type EpochEnd } from "./record.js";
import type { ShardLog } from "./shard-log.js";

/** An `open` waits no longer for what it says about former epochs. */
const endsWaitMs = 300;

/** Ownership changes are records in the same log, appended with the same compare-and-set (section 2). */
export class LogOwnership implements OwnershipLog {
  readonly #log: ShardLog;
  readonly #generation: number;
  readonly #time: Time;
  readonly #random: Random;
  readonly #logger: Logger;
  readonly #opened: (shard: ShardId, sequence: number, bytes: Uint8Array) => void;
  readonly #epochEnds: (shard: ShardId) => Promise<readonly EpochEnd[]>;

  constructor(options: {
    log: ShardLog;
    generation: number;
    time: Time;
    random: Random;
    logger: Logger;
    /** The log holds this `open` or statement. */
    opened: (shard: ShardId, sequence: number, bytes: Uint8Array) => void;
    /** Where the shard's epochs before the one that stands here ended. */
    epochEnds?: (shard: ShardId) => Promise<readonly EpochEnd[]>;
  }) {
    this.#log = options.log;
    this.#generation = options.generation;
    this.#time = options.time;
    this.#random = options.random;
    this.#logger = options.logger.with({ component: "ownership" });
    this.#opened = options.opened;
    this.#epochEnds = options.epochEnds ?? (async () => []);
  }

  open(request: OpenRequest, deadline: number): Promise<OpenResult> {
    const { shard } = request;
    const began = this.#time.monotonic();
    return this.#log.exclusive(shard, async () => {
      const ends = this.#ends(shard, deadline);
      let tail = await this.#log.tail(shard, deadline, request.against);
      for (;;) {
        if (tail === undefined || this.#time.monotonic() >= deadline) return { kind: "unknown" };
        const { header } = tail;
        if (header.epoch > request.against || (header.epoch === request.against && header.owner !== request.from))
          return { kind: "moved", epoch: header.epoch, owner: header.owner };
        const last = lastOf(header);
        const open: BatchHeader = {
          kind: "open",
          generation: this.#generation,
          shard,
          epoch: nextEpoch(request.against),
          owner: request.to,
          batchId: batchId(this.#random),
          first: toPosition(last + 1),
          count: 0,
          committedAt: this.#time.wall(),
        };
        const body = {
          from: request.from,
          kind: request.kind,
          reason: request.reason,
          by: request.by,
          sameTenure: request.sameTenure,
          closing: request.closing,
          phasesMs: request.phasesMs,
          drained: Math.max(0, last - request.since),
          epochEnds: await ends,
        };
        const batch = { header: open, records: [], open: body };
        const bytes = encodeBatch(batch);
        this.#logger.info("asks the log to open", { shard, epoch: open.epoch, owner: open.owner, position: last });
        const result = await this.#log.append(tail.sequence, batch, deadline, undefined, bytes);
        if (result.kind === "unknown") return { kind: "unknown" };
        if (result.kind === "stored") {
          this.#logger.info("opened in the log", {
            shard,
            epoch: open.epoch,
            owner: open.owner,
            position: last,
            sequence: result.sequence,
            ms: Math.round(this.#time.monotonic() - began),
          });
          this.#opened(shard, result.sequence, bytes);
          return { kind: "opened" };
        }
        tail = result.tail;
      }
    });
  }

  /** A statement without them is better than none: whoever needs them finds them in a copy's history, too. */
  async #ends(shard: ShardId, deadline: number): Promise<readonly EpochEnd[]> {
    try {
      const ms = Math.max(0, Math.min(endsWaitMs, deadline - this.#time.monotonic()));
      return await within(this.#time, ms, this.#epochEnds(shard), []);
    } catch (error) {
      this.#logger.warn("the ends of a shard's epochs can't be read", { shard, error: asError(error) });
      return [];
    }
  }

  /**
   * Repeats in the log that the epoch goes on (a statement): succeeds only while its tail is of this epoch and owner.
   * @returns whether it does; null: not known by the deadline
   */
  restate(
    request: { shard: ShardId; epoch: BatchHeader["epoch"]; owner: string; epochEnds: readonly EpochEnd[] },
    deadline: number,
  ): Promise<boolean | null> {
    const { shard } = request;
    return this.#log.exclusive(shard, async () => {
      let tail = await this.#log.tail(shard, deadline, request.epoch);
      for (;;) {
        if (tail === undefined || this.#time.monotonic() >= deadline) return null;
        const { header } = tail;
        if (header.epoch > request.epoch || (header.epoch === request.epoch && header.owner !== request.owner))
          return false;
        const statement: BatchHeader = {
          kind: "statement",
          generation: this.#generation,
          shard,
          epoch: request.epoch,
          owner: request.owner,
          batchId: batchId(this.#random),
          first: toPosition(lastOf(header) + 1),
          count: 0,
          committedAt: this.#time.wall(),
        };
        const body = {
          from: null,
          kind: "initial" as const,
          reason: "restated",
          by: request.owner,
          sameTenure: true,
          closing: 0,
          phasesMs: {},
          drained: 0,
          epochEnds: request.epochEnds,
        };
        const batch = { header: statement, records: [], open: body };
        const bytes = encodeBatch(batch);
        const result = await this.#log.append(tail.sequence, batch, deadline, undefined, bytes);
        if (result.kind === "unknown") return null;
        if (result.kind === "stored") {
          this.#opened(shard, result.sequence, bytes);
          return true;
        }
        tail = result.tail;
      }
    });
  }
}

export function batchId(random: Random): string {
  const half = (): string =>
    Math.floor(random.next() * 2 ** 32)
      .toString(16)
      .padStart(8, "0");
  return half() + half();
}
