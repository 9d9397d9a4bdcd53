import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import { position as toPosition, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import { damagedClusters, digestEach, type ShardDigest } from "./digest.js";
import { readDigests } from "./heads.js";
import { lockOwned } from "./owner-store.js";
import { encodeRecord } from "./record.js";
import type { Committed, WriteGate, WriterEvents } from "./writer.js";

export interface DigestKeeperOptions {
  readonly site: SiteName;
  readonly database: Database;
  readonly map: ShardMap;
  readonly gate: Pick<WriteGate, "enter">;
  readonly events: Pick<WriterEvents, "committed">;
  readonly place: (shard: ShardId) => { readonly position: Position };
  readonly time: Time;
  readonly log: Logger;
  /** Between two digests of a shard in the log. */
  readonly everyMs: number;
  /** Between two passes over all rows here. */
  readonly scrubMs: number;
  /** This process is its datacenter's replicator. */
  readonly active: () => boolean;
  /** A copy here is not what it should be; the clusters that are known to differ. */
  readonly onDamage: (shard: ShardId, clusters: readonly string[]) => void;
}

const shardsAtOnce = 16;
const scrubbedAtOnce = 8;
/** The scrub rests so many times as long as it worked: it takes 2.4 % of one processor at most. */
const restFactor = 40;
const idsNamed = 100;

/**
 * Owners put the digests of their shards into the log, those that have changed; a slow scrub recomputes what is here from the rows
 * and finds what was damaged at rest, in owners and replicas alike.
 */
export class DigestKeeper implements Service {
  readonly name = "digest-keeper";
  readonly #o: DigestKeeperOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  /** The last digest's position, by shard. */
  readonly #told = new Map<ShardId, Position>();
  /** What is known to be damaged, so that it is told once. */
  readonly #known = new Map<number, string>();
  #loops: Promise<void>[] = [];

  constructor(options: DigestKeeperOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "digest" });
  }

  async start(): Promise<void> {
    this.#loops = [this.#loop(this.#o.everyMs, () => this.#tell()), this.#loop(this.#o.scrubMs, () => this.#scrub())];
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#loops);
  }

  async #loop(everyMs: number, work: () => Promise<void>): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await this.#o.time.sleep(everyMs, signal);
      if (signal.aborted || !this.#o.active()) continue;
      await work().catch((error: unknown) => this.#log.warn("a round over digests failed", { error: asError(error) }));
    }
  }

  async #tell(): Promise<void> {
    const due = this.#o.map
      .ownedBy(this.#o.site)
      .map((head) => head.shard)
      .filter((shard) => this.#o.place(shard).position > (this.#told.get(shard) ?? 0));
    for (let at = 0; at < due.length && !this.#stop.signal.aborted; at += shardsAtOnce)
      await this.#append(due.slice(at, at + shardsAtOnce));
  }

  /** Puts digests of own shards into the log now. @returns their positions by shard */
  async tell(shards: readonly ShardId[]): Promise<Map<ShardId, Position>> {
    await this.#append(shards);
    return new Map(shards.map((shard) => [shard, this.#told.get(shard) ?? toPosition(0)]));
  }

  /** The digest of what stands before it is in the record, since the shard's head is locked. */
  async #append(shards: readonly ShardId[]): Promise<void> {
    const allowed = shards.filter((shard) => {
      try {
        return this.#o.gate.enter(shard) > 0;
      } catch {
        return false;
      }
    });
    if (allowed.length === 0) return;
    const wall = this.#o.time.wall();
    const records = await this.#o.database.transaction(async (client) => {
      const heads = await lockOwned(client, allowed);
      const digests = await readDigests(client, allowed);
      const made = [...heads].flatMap(([shard, head]): Omit<Committed, "at">[] => {
        const digest = digests.get(shard);
        if (head.state !== "owned" || head.owner !== this.#o.site || digest === undefined) return [];
        const record = encodeRecord({ type: "digest", at: wall, digest });
        return [{ shard, epoch: head.epoch, position: toPosition(head.position + 1), record }];
      });
      await client.query(
        `WITH h AS (UPDATE shard_head s SET position = v.position, compared_epoch = v.epoch, compared_position = v.position, compared_equal = true FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS v(shard, epoch, position)
           WHERE s.shard = v.shard AND s.epoch = v.epoch AND s.state = 'owned')
         INSERT INTO outbox (shard, epoch, position, record, committed_at)
         SELECT s, e, p, r, to_timestamp($5::float8 / 1000) FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bytea[]) AS v(s, e, p, r)`,
        [
          made.map((r) => r.shard),
          made.map((r) => r.epoch),
          made.map((r) => r.position),
          made.map((r) => Buffer.from(r.record.buffer, r.record.byteOffset, r.record.byteLength)),
          wall,
        ],
      );
      return made;
    });
    for (const { shard, position } of records) this.#told.set(shard, position);
    const at = this.#o.time.monotonic();
    this.#o.events.committed(records.map((record) => ({ ...record, at })));
  }

  async #scrub(): Promise<void> {
    const shards = this.#o.map.all().map((head) => head.shard);
    const monotonic = (): number => this.#o.time.monotonic();
    let began = monotonic();
    for await (const { found, failed } of digestEach(this.#o.database, shards, scrubbedAtOnce, monotonic)) {
      if (failed !== null) this.#log.warn("a shard could not be scrubbed", failed);
      for (const each of found) await this.#judge(each);
      await this.#o.time.sleep(restFactor * (monotonic() - began), this.#stop.signal);
      if (this.#stop.signal.aborted || !this.#o.active()) return;
      began = monotonic();
    }
  }

  async #judge({ shard, digest, expected, restoring }: ShardDigest): Promise<void> {
    if (restoring > 0 || digest === expected) {
      this.#known.delete(shard);
      return;
    }
    const clusters = await damagedClusters(this.#o.database, shard, idsNamed).catch((error: unknown) => {
      this.#log.warn("what is damaged can't be named", { shard, error: asError(error) });
      return [];
    });
    const what = `${digest} ${clusters.join(" ")}`;
    if (this.#known.get(shard) !== what) this.#o.onDamage(shard as ShardId, clusters);
    this.#known.set(shard, what);
  }
}
