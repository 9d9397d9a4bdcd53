import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import type { Epoch, Position, ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";

export interface BacklogOptions {
  readonly site: SiteName;
  readonly database: Database;
  readonly map: ShardMap;
  readonly time: Time;
  readonly log: Logger;
  /** What `local` may lose: age in milliseconds, of one shard, and bytes of all shards together. */
  readonly maxMs: number;
  readonly maxBytes: number;
  /** Committed here, by any process of the datacenter. */
  readonly place: (shard: ShardId) => { readonly epoch: Epoch; readonly position: Position };
  /** Last position of the epoch that is known to be in the log. */
  readonly mark: (shard: ShardId) => Position | null;
  /** Milliseconds since the oldest commit that this process knows of and that is not in the log. */
  readonly unpublishedMs: (shard: ShardId) => number;
}

interface Behind {
  readonly epoch: Epoch;
  mark: Position;
  /** Counted up to here. */
  through: Position;
  bytes: number;
  /** When the oldest was committed, monotonic. */
  oldestAt: number;
}

const tickMs = 500;
const pollMs = 50;
const maxWaiting = 10_000;
/** The refusal has to arrive before the caller gives up. */
const answerMs = 200;
/** `replicated` writes wait for the log, but don't fill the disk. */
const replicatedFactor = 2;

/**
 * What is committed here and not in the log yet: the bound of what `local` writes may lose. Past it they wait, then they are
 * refused, and go on by themselves once the log has caught up. It is counted in the database, so that a restart forgets nothing.
 */
export class Backlog implements Service {
  readonly name = "backlog";
  readonly #o: BacklogOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #behind = new Map<ShardId, Behind>();
  #bytes = 0;
  #waiting = 0;
  #over = false;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: BacklogOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "backlog" });
  }

  async start(): Promise<void> {
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#count().catch((error: unknown) =>
          this.#log.debug("the backlog can't be counted", { error: asError(error) }),
        );
        await this.#o.time.sleep(tickMs, this.#stop.signal);
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  /** Bytes of records, all shards together; exact while it grows, estimated while it shrinks. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Undefined when there is room for a write. Else resolves once there is.
   * @throws Problem unpublished_limit shortly before the deadline
   */
  room(shard: ShardId, durability: "local" | "replicated", deadline: number): Promise<void> | undefined {
    if (this.#why(shard, durability) === undefined) return undefined;
    return this.#wait(shard, durability, deadline);
  }

  async #wait(shard: ShardId, durability: "local" | "replicated", deadline: number): Promise<void> {
    const { time, site } = this.#o;
    const left = deadline - time.monotonic();
    const until = deadline - Math.min(answerMs, left / 4);
    this.#waiting++;
    try {
      for (;;) {
        const why = this.#why(shard, durability);
        if (why === undefined) return;
        const now = time.monotonic();
        if (now >= until || this.#waiting > maxWaiting || this.#stop.signal.aborted)
          throw new Problem("unpublished_limit", why, { retryAfterSeconds: 1, owner: site });
        await time.sleep(Math.min(pollMs, until - now), this.#stop.signal);
      }
    } finally {
      this.#waiting--;
    }
  }

  #why(shard: ShardId, durability: "local" | "replicated"): string | undefined {
    const { maxMs, maxBytes } = this.#o;
    if (this.#bytes > maxBytes * (durability === "replicated" ? replicatedFactor : 1))
      return `the log has not taken ${Math.round(this.#bytes / 1e6)} MB of what this datacenter has committed; it may hold back ${Math.round(maxBytes / 1e6)} MB`;
    if (durability === "local" && this.#ageMs(shard) > maxMs)
      return `the log has not taken what this shard committed more than ${maxMs} ms ago`;
    return undefined;
  }

  #ageMs(shard: ShardId): number {
    const counted = this.#behind.get(shard);
    const fromDatabase = counted === undefined ? 0 : this.#o.time.monotonic() - counted.oldestAt;
    return Math.max(this.#o.unpublishedMs(shard), fromDatabase);
  }

  async #count(): Promise<void> {
    const now = this.#o.time.monotonic();
    const asked: { readonly shard: ShardId; readonly seen: Behind; readonly fresh: boolean }[] = [];
    const open = new Set<ShardId>();
    for (const head of this.#o.map.ownedBy(this.#o.site)) {
      const { shard, epoch } = head;
      const place = this.#o.place(shard);
      const mark = this.#o.mark(shard) ?? head.published;
      if (place.epoch !== epoch || place.position <= mark) continue;
      open.add(shard);
      const known = this.#behind.get(shard);
      const seen = known?.epoch === epoch ? known : { epoch, mark, through: mark, bytes: 0, oldestAt: now };
      const advanced = mark > seen.mark;
      if (advanced) {
        const before = seen.through - seen.mark;
        seen.bytes = mark >= seen.through || before <= 0 ? 0 : (seen.bytes * (seen.through - mark)) / before;
        seen.through = Math.max(seen.through, mark) as Position;
        seen.mark = mark;
      }
      if (advanced || seen !== known || place.position > seen.through)
        asked.push({ shard, seen, fresh: advanced || seen !== known });
      this.#behind.set(shard, seen);
    }
    for (const shard of this.#behind.keys()) if (!open.has(shard)) this.#behind.delete(shard);
    if (asked.length > 0) await this.#ask(asked);
    this.#bytes = [...this.#behind.values()].reduce((sum, seen) => sum + seen.bytes, 0);
    this.#tell();
  }

  async #ask(asked: readonly { readonly shard: ShardId; readonly seen: Behind; readonly fresh: boolean }[]) {
    const { rows } = await this.#o.database.pool.query<{
      shard: number;
      bytes: string | null;
      through: number | null;
      age: number | null;
    }>({
      name: "count_backlog",
      text: `SELECT k.shard, n.bytes, n.through,
          (SELECT extract(epoch FROM clock_timestamp() - f.committed_at)::float8 * 1000 FROM outbox f
            WHERE f.shard = k.shard AND f.epoch = k.epoch AND f.position = k.mark + 1) AS age
        FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[]) AS k(shard, epoch, mark, above),
        LATERAL (SELECT sum(octet_length(o.record)) AS bytes, max(o.position) AS through FROM outbox o
          WHERE o.shard = k.shard AND o.epoch = k.epoch AND o.position > k.above) AS n`,
      values: [
        asked.map((each) => each.shard),
        asked.map((each) => each.seen.epoch),
        asked.map((each) => each.seen.mark),
        asked.map((each) => each.seen.through),
      ],
    });
    const now = this.#o.time.monotonic();
    for (const row of rows) {
      const found = asked.find((each) => each.shard === row.shard);
      if (found === undefined) continue;
      found.seen.bytes += Number(row.bytes ?? 0);
      if (row.through !== null) found.seen.through = row.through as Position;
      if (found.fresh) found.seen.oldestAt = now - Math.max(0, row.age ?? 0);
    }
  }

  #tell(): void {
    const { maxBytes, maxMs, map, site } = this.#o;
    const shards = map.ownedBy(site).filter(({ shard }) => this.#ageMs(shard) > maxMs).length;
    const over = this.#bytes > maxBytes || shards > 0;
    if (over === this.#over) return;
    this.#over = over;
    if (over)
      this.#log.error("local writes are held back: the log does not take what was committed", {
        bytes: Math.round(this.#bytes),
        shards,
      });
    else this.#log.info("local writes go on");
  }
}
