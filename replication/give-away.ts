import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { Rounds } from "../infra/rounds.js";
import type { Service } from "../infra/service.js";
import type { Epoch, Partition, ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import type { OwnershipLog } from "../shards/ownership-log.js";
import type { ShardStore } from "../shards/store.js";
import type { ShardLog, Tail } from "./shard-log.js";

export interface GiveAwayOptions {
  readonly site: SiteName;
  readonly shards: number;
  readonly time: Time;
  readonly log: Logger;
  readonly map: ShardMap;
  readonly store: Pick<ShardStore, "renounce">;
  readonly shardLog: Pick<ShardLog, "known" | "partitionOf">;
  readonly ownership: OwnershipLog;
  /** This node has a lease and is the datacenter's replicator. */
  readonly active: () => boolean;
  /** A move, or the settling of the shard, is driven by somebody else now. */
  readonly moving: (shard: ShardId) => boolean;
  /** Rows of the shard wait to be restored, so that it is not written. */
  readonly waits: (shard: ShardId) => boolean;
  /** Datacenters that could open the partition now, in the order of succession, without this one. */
  readonly successors: (partition: Partition) => readonly SiteName[];
}

const tickMs = 500;
/** An owner that doesn't serve this long after its `open` is of no use (section 4). */
export const patienceMs = 5_000;
const appendMs = 3_000;

/**
 * Gives away what the log gave to this datacenter and it can't serve: its copy is stopped or incomplete, or can't reach the
 * record. First the own database renounces the epoch for good (a fence, as for a vote), so that it is not served here later;
 * then an `open` in the log names a datacenter that can. Between the two the shard has no server, and the own `resume`
 * may take it back in the next epoch: one append decides.
 */
export class GiveAway implements Service {
  readonly name = "give-away";
  readonly #o: GiveAwayOptions;
  readonly #log: Logger;
  readonly #rounds: Rounds;
  /** Since when (monotonic) the shard should have been served in this epoch. */
  readonly #idle = new Map<ShardId, { readonly epoch: Epoch; readonly since: number }>();

  constructor(options: GiveAwayOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "give-away" });
    const round = (): Promise<void> => this.#round();
    this.#rounds = new Rounds({ what: "give shards away", everyMs: tickMs, round, time: options.time, log: this.#log });
  }

  async start(): Promise<void> {
    this.#rounds.start();
  }

  stop(): Promise<void> {
    return this.#rounds.stop();
  }

  async #round(): Promise<void> {
    if (this.#o.active()) await Promise.all(this.#due().map(([shard, tail]) => this.#giveAway(shard, tail)));
    else this.#idle.clear();
  }

  /** What should have been served for too long. */
  #due(): [ShardId, Tail][] {
    const now = this.#o.time.monotonic();
    const due: [ShardId, Tail][] = [];
    for (let number = 0; number < this.#o.shards; number++) {
      const shard = number as ShardId;
      const tail = this.#o.shardLog.known(shard);
      if (tail === undefined || tail.header.owner !== this.#o.site || this.#serves(shard, tail.header.epoch)) {
        this.#idle.delete(shard);
        continue;
      }
      const idle = this.#idle.get(shard);
      if (idle?.epoch !== tail.header.epoch) this.#idle.set(shard, { epoch: tail.header.epoch, since: now });
      else if (now - idle.since >= patienceMs) due.push([shard, tail]);
    }
    return due;
  }

  #serves(shard: ShardId, epoch: Epoch): boolean {
    const head = this.#o.map.get(shard);
    if (this.#o.moving(shard)) return true;
    return (
      head?.owner === this.#o.site &&
      head.epoch >= epoch &&
      head.state === "owned" &&
      head.confirmed &&
      !this.#o.waits(shard)
    );
  }

  async #giveAway(shard: ShardId, { header }: Tail): Promise<void> {
    const [to] = this.#o.successors(this.#o.shardLog.partitionOf(shard));
    // Later, with the present head: meanwhile another datacenter may have become able to.
    this.#idle.delete(shard);
    if (to === undefined) {
      this.#log.error("a shard can't be served here, and nobody else can open it", { shard, epoch: header.epoch });
      return;
    }
    try {
      const head = await this.#o.store.renounce(shard, header.epoch);
      if (head === undefined) return;
      this.#o.map.adopt(head);
      // What was written here and is not in the log would become divergent: its publisher comes first.
      if (head.owner === this.#o.site && head.published < head.position) return;
      const result = await this.#o.ownership.open(
        {
          shard,
          against: header.epoch,
          from: this.#o.site,
          to,
          // Not planned: failback still knows who owned the shard before this datacenter.
          kind: "takeover",
          reason: `${this.#o.site} could not serve it: ${head.stopped ?? (this.#o.waits(shard) ? "rows wait to be restored" : "its copy did not reach the open")}`,
          by: this.#o.site,
          sameTenure: false,
          closing: 0,
          phasesMs: {},
          since: head.published,
        },
        this.#o.time.monotonic() + appendMs,
      );
      this.#log.warn("gives a shard away", { shard, epoch: header.epoch, to, result: result.kind });
    } catch (error) {
      this.#log.warn("giving a shard away failed", { shard, error: asError(error) });
    }
  }
}
