import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Service } from "../infra/service.js";
import type { Partition, ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import { planPurge, type PurgeMember } from "./purge-plan.js";
import type { Incoming } from "./replica-store.js";

/** What retention asks of the streams: LogStreams of infra/nats. */
export interface RetentionStreams {
  state(
    partition: number,
    timeoutMs: number,
  ): Promise<
    | {
        readonly firstSequence: number;
        readonly lastSequence: number;
        readonly messages: number;
        readonly bytes: number;
      }
    | undefined
  >;
  firstSince(partition: number, since: Date, timeoutMs: number): Promise<number | undefined>;
  purgeBelow(partition: number, sequence: number, timeoutMs: number): Promise<number>;
}

export interface RetentionOptions {
  readonly site: SiteName;
  readonly partitions: number;
  readonly streams: RetentionStreams;
  readonly map: ShardMap;
  readonly time: Time;
  readonly log: Logger;
  /** Milliseconds that the log keeps a message. */
  readonly retentionMs: number;
  /** Bytes of all partitions together, in one replica; each gets an equal share. */
  readonly maxBytes: number;
  /** All datacenters but this one are live or dead with what they have applied; this one too. */
  readonly members: (partition: Partition) => readonly PurgeMember[];
  /** States these shards anew, soon. */
  readonly restate: (shards: readonly ShardId[]) => void;
  /** This process has a lease and is its datacenter's replicator. */
  readonly active: () => boolean;
  readonly onEndangered: (dcs: ReadonlySet<SiteName>) => void;
  readonly onLeftBehind: (dc: SiteName) => void;
}

const requestMs = 3_000;

/**
 * Keeps the log within its age and size by purging below the newest statements (section 2). The streams have no limits of
 * their own. Each partition is looked after by the replicator of the datacenter that owns its first shard.
 */
export class Retention implements Service {
  readonly name = "retention";
  readonly #o: RetentionOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #statements = new Map<ShardId, number>();
  readonly #full = new Set<Partition>();
  readonly #endangered = new Map<Partition, readonly SiteName[]>();
  #warned: ReadonlySet<SiteName> = new Set();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: RetentionOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "retention" });
  }

  async start(): Promise<void> {
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  /** Messages of the log as they are folded in: the newest open or statement of each shard is never purged. */
  observe(messages: readonly Pick<Incoming, "shard" | "sequence" | "header">[]): void {
    for (const { shard, sequence, header } of messages)
      if (header !== null && header.kind !== "records" && sequence > (this.#statements.get(shard) ?? 0))
        this.#statements.set(shard, sequence);
  }

  /** The partition is so near its size bound that there is only room for ownership changes. */
  full(partition: Partition): boolean {
    return this.#full.has(partition);
  }

  get #tickMs(): number {
    return Math.min(30_000, Math.max(500, this.#o.retentionMs / 10));
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      await this.#o.time.sleep(this.#tickMs, this.#stop.signal);
      for (let p = 0; p < this.#o.partitions && !this.#stop.signal.aborted; p++) {
        const partition = p as Partition;
        try {
          if (this.#mine(partition)) await this.#look(partition);
          else this.#forget(partition);
        } catch (error) {
          this.#log.debug("looking after the log's size failed", { partition, error: asError(error) });
        }
      }
      this.#tell();
    }
  }

  #mine(partition: Partition): boolean {
    return this.#o.active() && this.#heads(partition)[0]?.owner === this.#o.site;
  }

  #heads(partition: Partition) {
    return this.#o.map.all().filter((head) => head.partition === partition);
  }

  #forget(partition: Partition): void {
    this.#full.delete(partition);
    this.#endangered.delete(partition);
  }

  async #look(partition: Partition): Promise<void> {
    const { streams, time, retentionMs } = this.#o;
    const state = await streams.state(partition, requestMs);
    if (state === undefined) return;
    const wall = time.wall();
    const end = state.lastSequence + 1;
    const heads = this.#heads(partition);
    const statements = heads.map((head) => this.#statements.get(head.shard));
    const oldestStatement = statements.some((s) => s === undefined)
      ? undefined
      : Math.min(...statements.map((s) => s ?? 0));
    const plan = planPurge({
      ...state,
      oldestStatement,
      expired: (await streams.firstSince(partition, new Date(wall - retentionMs), requestMs)) ?? end,
      expiring: (await streams.firstSince(partition, new Date(wall - retentionMs * 0.9), requestMs)) ?? end,
      maxBytes: this.#o.maxBytes / this.#o.partitions,
      members: this.#o.members(partition),
    });
    this.#endangered.set(partition, plan.endangered);
    if (plan.full !== this.#full.has(partition)) {
      if (plan.full) this.#full.add(partition);
      else this.#full.delete(partition);
      this.#log[plan.full ? "error" : "info"](
        plan.full
          ? "a partition of the log is full: its records wait in the outbox until it can be purged"
          : "a partition of the log has room again",
        { partition, bytes: state.bytes },
      );
    }
    if (plan.restate) this.#o.restate(heads.filter((h) => h.owner === this.#o.site).map((h) => h.shard));
    if (plan.below <= state.firstSequence || !this.#mine(partition)) return;
    for (const dc of plan.left) {
      this.#o.onLeftBehind(dc);
      this.#log.error("the log is purged past what a datacenter has applied: it will need a snapshot", {
        partition,
        dc,
        below: plan.below,
      });
    }
    const purged = await streams.purgeBelow(partition, plan.below, requestMs);
    this.#log.info("purged the log", { partition, below: plan.below, messages: purged, bytes: state.bytes });
  }

  #tell(): void {
    const endangered = new Set([...this.#endangered.values()].flat());
    this.#o.onEndangered(endangered);
    for (const dc of endangered)
      if (!this.#warned.has(dc))
        this.#log.warn("the log is soon purged past what a datacenter has applied: bring it back before that", { dc });
    this.#warned = endangered;
  }
}
