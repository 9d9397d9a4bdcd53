import type { Time } from "../../infra/clock.js";
import { asError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Progress } from "../../replication/progress.js";
import type { Publisher } from "../../replication/publisher.js";
import type { Applied, Incoming } from "../../replication/replica-store.js";
import type { ReplicatorLock } from "../../replication/replicator-lock.js";
import type { Restorer } from "../../replication/restore.js";
import type { ShardLog } from "../../replication/shard-log.js";
import type { Changes } from "../../routing/changes.js";
import { position as toPosition, type ShardId, type SiteName } from "../../shards/ids.js";
import type { LeaseKeeper } from "../../shards/lease-keeper.js";
import type { Head, ShardMap } from "../../shards/map.js";
import type { Peers } from "../../shards/peers.js";
import type { ShardStore } from "../../shards/store.js";
import type { InsideBus } from "../inside.js";
import type { EngineEvents } from "./ground.js";

interface ViewOptions {
  readonly site: SiteName;
  readonly time: Time;
  readonly log: Logger;
  readonly map: ShardMap;
  readonly peers: Peers;
  readonly store: ShardStore;
  readonly progress: Progress;
  readonly changes: Changes;
  readonly leases: LeaseKeeper;
  readonly shardLog: ShardLog;
  readonly publisher: Publisher;
  readonly restorer: Restorer;
  readonly replicator: ReplicatorLock;
  readonly inside: InsideBus;
  readonly incarnation: () => number;
  readonly events: EngineEvents;
  readonly stopped: AbortSignal;
}

/** This process's view of its datacenter's database: how news get into it, and what follows from them here. */
export class View {
  readonly #o: ViewOptions;
  readonly #owned = new Set<ShardId>();

  constructor(options: ViewOptions) {
    this.#o = options;
    const { map, leases, changes } = options;
    map.onChange((head, before) => this.#changed(head, before));
    leases.onChange(() => changes.changedAll());
  }

  /** Tells of the shards that are served from the start. */
  begin(): void {
    for (const head of this.#o.map.all()) this.#judge(head);
  }

  /** The database's heads. */
  async refresh(): Promise<void> {
    const { incarnation, store, restorer, map, replicator, site, progress, publisher } = this.#o;
    const meant = incarnation();
    const heads = await store.heads();
    // An answer of a database that is not ours any more says nothing.
    if (incarnation() !== meant) return;
    // Rows that were undone must not be served, nor their shard opened, before the restorer knows of them.
    if (heads.some((head) => head.waits === true)) await restorer.refresh();
    for (const head of heads) {
      map.adopt(head);
      // Another process applies: what it has reached is known from the database alone.
      // Of an own shard the database says what any process of the datacenter has committed.
      if (!replicator.holding || head.owner === site) progress.reached(head.shard, head.epoch, head.position);
      if (head.owner !== site) continue;
      if (!replicator.holding) {
        publisher.observeMark(head.shard, head.epoch, head.published);
      } else if (head.position > (publisher.mark(head.shard) ?? head.published)) publisher.wake(head.shard);
    }
  }

  /** What a transaction of the own applier brought. */
  applied(applied: Applied, messages: readonly Incoming[]): void {
    const { shardLog, publisher, map, progress, site, peers, inside, events, restorer } = this.#o;
    for (const message of messages)
      if (message.header !== null) shardLog.observe(message.shard, message.sequence, message.header);
    const diverged = applied.adoptions.some((adoption) => adoption.divergent > 0);
    const adopt = (): void => {
      for (const { head, before, divergent } of applied.adoptions) {
        publisher.ended(head.shard, before.epoch, head.position);
        if (divergent === 0) restorer.sure(head.shard, before.epoch, head.epoch);
      }
      for (const head of applied.heads) {
        map.adopt(head);
        progress.reached(head.shard, head.epoch, head.position);
        if (head.owner === site) publisher.observeMark(head.shard, head.epoch, head.published);
        else peers.learnHead(head.shard, head.epoch, head.position);
      }
    };
    // Rows that were undone must not be served before the restorer knows of them.
    if (diverged) void this.#refreshRestores().then(adopt);
    else adopt();
    if (applied.adoptions.length + applied.stopped.length > 0)
      inside.send({ heads: applied.adoptions.map((adoption) => adoption.head.shard) });
    events.applied(applied, messages);
  }

  #changed(head: Head, before: Head | undefined): void {
    const { replicator, publisher, progress, changes, site, events } = this.#o;
    if (before !== undefined && before.epoch !== head.epoch && this.#owned.delete(head.shard)) events.lost(head.shard);
    this.#judge(head);
    // Without the fold's word on where the old epoch ended, whoever waits for it learns that its outcome is unknown.
    if (before !== undefined && before.epoch < head.epoch && !replicator.holding)
      publisher.ended(head.shard, before.epoch, toPosition(0));
    progress.reached(head.shard, head.epoch, head.position);
    changes.changed(head.shard);
    // A shard that was just opened has nothing to publish yet: to look would be a statement for each of a takeover's shards.
    if (head.owner === site && head.position > head.published) publisher.wake(head.shard);
  }

  #judge(head: Head): void {
    const { site, events } = this.#o;
    const serves = head.owner === site && head.state === "owned" && head.confirmed;
    if (serves && !this.#owned.has(head.shard)) {
      this.#owned.add(head.shard);
      events.owned(head.shard, head.epoch, head.tenure);
    } else if (!serves && this.#owned.delete(head.shard)) events.lost(head.shard);
  }

  async #refreshRestores(): Promise<void> {
    const { stopped, restorer, log, time } = this.#o;
    while (!stopped.aborted) {
      try {
        return await restorer.refresh();
      } catch (error) {
        log.warn("what waits to be restored can't be read", { error: asError(error) });
        await time.sleep(50, stopped);
      }
    }
  }
}
