import { pack } from "msgpackr";
import type { Service } from "../../infra/service.js";
import { Applier } from "../../replication/applier.js";
import { GiveAway } from "../../replication/give-away.js";
import { LogOwnership } from "../../replication/ownership.js";
import { Progress } from "../../replication/progress.js";
import { Publisher } from "../../replication/publisher.js";
import { lastOf } from "../../replication/record.js";
import { ReplicatorLock } from "../../replication/replicator-lock.js";
import { Restorer } from "../../replication/restore.js";
import { Resume } from "../../replication/resume.js";
import { ShardLog } from "../../replication/shard-log.js";
import { Writer, type WriterEvents } from "../../replication/writer.js";
import { Changes } from "../../routing/changes.js";
import {
  partitionOf,
  position as toPosition,
  type Epoch,
  type Partition,
  type Position,
  type ShardId,
} from "../../shards/ids.js";
import { FollowedOpens } from "../../shards/followed-opens.js";
import { Hearing } from "../../shards/coordinator.js";
import { LeaderKeeper } from "../../shards/leader-keeper.js";
import { LeaseKeeper } from "../../shards/lease-keeper.js";
import { ShardMap } from "../../shards/map.js";
import { datacentersOf } from "../../shards/site-set.js";
import { successionOrder } from "../../shards/successor.js";
import { Switchover } from "../../shards/switchover.js";
import { TakeoverWatch } from "../../shards/takeover.js";
import { Hints, InsideBus, type Inside } from "../inside.js";
import { OwnerGate } from "./gate.js";
import { goneMs, type Ground } from "./ground.js";
import { Housekeeping, holdSubject } from "./housekeeping.js";
import { Readiness } from "./readiness.js";
import { traceApplied, tracePublished } from "./traces.js";
import { View } from "./view.js";
import type { WordParts } from "./word.js";

/**
 * Ownership and replication of one process of a datacenter, wired by hand: the same classes in the same order on real
 * servers (services/datacenter.ts) and in the simulation (test/simulation). Nothing in it does IO but through its ground.
 */
export async function createEngine(ground: Ground, { word, peers, coordinator }: WordParts) {
  const { group, site, node, partitions, time, random, log, store, settings, events } = ground;
  const stopped = new AbortController();

  // Shards: who owns what.
  const map = new ShardMap(ground.shards);
  for (const head of await store.heads()) map.adopt(head);
  const changes = new Changes(time);
  const progress = new Progress(time, peers);
  for (const head of map.all()) progress.reached(head.shard, head.epoch, head.position);
  const leases: LeaseKeeper = new LeaseKeeper({
    leaseMs: settings.leaseMs,
    marginMs: settings.marginMs,
    heartbeatMs: settings.heartbeatMs,
    dbDeadMs: settings.dbDeadMs,
    group,
    dc: site,
    node,
    time,
    random,
    log,
    messenger: ground.heartbeats,
    store,
    map,
    peers,
    siteSet: ground.siteSet,
    incarnation: ground.incarnation,
    url: ground.url,
    report: () => {
      const lag = readiness.worstLag();
      return {
        url: ground.url,
        state: readiness.state(),
        blocked: readiness.blockedPartitions(),
        heads: coordinator.holding ? readiness.ownHeads() : [],
        lagPositions: lag.positions,
        lagMs: lag.ms,
        applied: applier.applied,
      };
    },
  });

  // Replication: how state travels.
  const shardLog = new ShardLog({ transport: ground.transport, partitions, time, log });
  const hints = new Hints({
    group,
    generation: ground.generation,
    site,
    link: ground.main,
    time,
    received: ({ partition, sequence, shard, data }) => {
      if (data === null || partitionOf(shard as ShardId, partitions) !== partition) applier.hint(partition, sequence);
      else applier.push(partition, { sequence, shard, data });
    },
  });
  const publisher: Publisher = new Publisher({
    log: shardLog,
    ...(ground.payloads === undefined ? {} : { outgoing: ground.payloads.outgoing }),
    outbox: ground.outbox,
    map,
    site,
    generation: ground.generation,
    time,
    random,
    logger: log,
    events: {
      stored: (shard, sequence, header, bytes) => {
        const partition = partitionOf(shard, partitions);
        applier.ownAppend(partition, sequence, header);
        hints.add(partition, sequence, shard, bytes);
        progress.reached(shard, header.epoch, lastOf(header));
        inside.mark(shard, header.epoch, lastOf(header));
        if (ground.tracing !== undefined) tracePublished(ground.tracing, bytes, time.wall());
      },
    },
    limits: { mayAppend: ground.mayAppend, backlogWaitMs: ground.backlogWaitMs },
  });
  const restorer = new Restorer({
    group,
    site,
    store: ground.restores,
    messenger: ground.main,
    map,
    time,
    log,
    datacenters: () => datacentersOf(ground.siteSet()),
    cleared: (shard) => changes.changed(shard),
    active: () => replicator.holding,
  });
  const gate = new OwnerGate({ site, map, leases, restorer, room: ground.room });
  const written: WriterEvents = {
    committed: (records) => {
      for (const record of records) progress.reached(record.shard, record.epoch, record.position);
      publisher.committed(records);
      if (!replicator.holding) inside.send({ wake: [...new Set(records.map((record) => record.shard))] });
    },
    uncertain: (list) => {
      for (const shard of list) publisher.wake(shard);
      events.uncertain(list);
      inside.send({ wake: list });
    },
    published: (shard, at, position, deadline) => publisher.published(shard, at, position, deadline),
  };
  const writer = new Writer({
    store: ground.owner,
    site,
    time,
    random,
    log,
    gate,
    events: written,
    tracing: ground.tracing,
  });
  const applier: Applier = new Applier({
    transport: ground.transport,
    store: ground.replica,
    partitions,
    time,
    log,
    ...(ground.payloads === undefined ? {} : { whole: ground.payloads.incoming }),
    onApplied: (applied, messages, ms) => {
      view.applied(applied, messages);
      if (ground.tracing !== undefined) traceApplied(ground.tracing, applied, ms);
    },
  });
  const ownership = new LogOwnership({
    log: shardLog,
    generation: ground.generation,
    time,
    random,
    logger: log,
    opened: (shard, sequence, bytes) => {
      const partition = partitionOf(shard, partitions);
      applier.push(partition, { sequence, shard, data: bytes });
      hints.add(partition, sequence, shard, bytes);
      if (!replicator.holding) inside.send({ tail: [partition, sequence] });
    },
    epochEnds: ground.epochEnds,
  });
  const opens = new FollowedOpens({
    ownership,
    time,
    served: async (to, shard, at, timeoutMs) => {
      if (to !== site) return ground.opened(to, shard, at, timeoutMs);
      const deadline = time.monotonic() + timeoutMs;
      for (;;) {
        const head = map.get(shard);
        if (head?.epoch === at && head.state === "owned" && head.confirmed) return true;
        const left = deadline - time.monotonic();
        if (left <= 0 || stopped.signal.aborted || (head?.epoch ?? 0) > at) return false;
        await changes.next(shard, Math.min(left, 1_000));
      }
    },
    followed: (shard, at, phasesMs) => events.followed(shard, at, phasesMs),
  });
  const replicator: ReplicatorLock = new ReplicatorLock({
    store,
    holder: ground.holder,
    time,
    log,
    onChange: async (holding) => {
      if (holding) await view.refresh();
      publisher.setActive(holding);
      await applier.setActive(holding);
    },
  });
  const resume = new Resume({
    site,
    time,
    log,
    map,
    store,
    publisher,
    ownership: {
      open: (request, deadline) => opens.open(request, deadline),
      restate: (request, deadline) => ownership.restate(request, deadline),
    },
    restateMs: settings.restateMs,
    epochEnds: ground.epochEnds,
    active: () => replicator.holding && leases.valid,
    moving: (shard) => switchover.isMoving(shard),
  });
  const switchover: Switchover = new Switchover({
    site,
    node,
    goneMs: goneMs(settings),
    time,
    log,
    map,
    store,
    ownership,
    active: () => replicator.holding,
    leaseValid: () => leases.valid,
    canOpen: (target, partition) => peers.canOpen(target, partition),
    hold: async (name, head, timeoutMs) =>
      void (await ground.main.request(holdSubject(group, site, name), pack(head), timeoutMs)),
    published: (head) => toPosition(Math.max(publisher.mark(head.shard) ?? 0, head.published)),
    flush: (head, deadline) => publisher.flush(head, deadline),
    carry: ground.carry,
    opened: ground.opened,
    followed: (shard, at, phasesMs) => events.followed(shard, at, phasesMs),
  });
  const readiness = new Readiness({ site, map, progress, peers, applier, restorer, leases, clock: time });
  const takeovers = new TakeoverWatch({
    group,
    site,
    time,
    log,
    messenger: ground.heartbeats,
    map,
    peers,
    word,
    ownership: opens,
    siteSet: ground.siteSet,
    leaseValid: () => leases.valid,
    canOpen: (partition) => !readiness.blockedPartitions().includes(partition),
    reached: (shard) => progress.place(shard).position,
    preferences: settings.successors,
    graceMs: 2 * settings.leaseMs,
    onTakeover: ({ shards: count, ms }) => events.tookOver(count, ms),
  });
  const giveAway = new GiveAway({
    site,
    shards: ground.shards,
    time,
    log,
    map,
    store,
    shardLog,
    ownership: opens,
    active: () => replicator.holding && leases.valid,
    moving: (shard) => switchover.isMoving(shard),
    waits: (shard) => restorer.shardWaits(shard),
    successors: (partition) =>
      successionOrder(
        partition,
        datacentersOf(ground.siteSet()).filter((dc) => dc !== site && peers.canOpen(dc, partition)),
        settings.successors,
      ),
  });
  const leaderKeeper = new LeaderKeeper({
    site,
    time,
    log,
    map,
    peers,
    siteSet: ground.siteSet,
    active: () => replicator.holding && leases.valid,
    hears: () => leases.hears,
    leaders: ground.leaders,
  });

  // What follows from a change, in this process.
  const inside = new InsideBus({
    subject: `hothot.${group}.inside.${site}`,
    link: ground.main,
    time,
    wanted: () => leases.others.length > 0,
    received: (message) => heard(message),
  });
  function heard(message: Inside): void {
    if (message.heads !== undefined) void view.refresh().catch(() => undefined);
    for (const shard of message.wake ?? []) publisher.wake(shard as ShardId);
    if (message.tail !== undefined) applier.hint(message.tail[0] as Partition, message.tail[1]);
    const marks = message.marks ?? [];
    for (let i = 0; i + 2 < marks.length; i += 3)
      publisher.observeMark(marks[i] as ShardId, marks[i + 1] as Epoch, marks[i + 2] as Position);
    events.inside(message);
  }
  const view: View = new View({
    site,
    time,
    log,
    map,
    peers,
    store,
    progress,
    changes,
    leases,
    shardLog,
    publisher,
    restorer,
    replicator,
    inside,
    incarnation: ground.incarnation,
    events,
    stopped: stopped.signal,
  });

  const housekeeping = new Housekeeping({
    ground,
    map,
    view,
    hints,
    inside,
    progress,
    applier,
    publisher,
    leases,
    word,
    stopped,
  });

  return {
    map,
    changes,
    progress,
    leases,
    shardLog,
    publisher,
    restorer,
    gate,
    writer,
    /** What follows from a commit of an owner's transaction. */
    written,
    applier,
    ownership,
    replicator,
    resume,
    switchover,
    readiness,
    takeovers,
    inside,
    /** Reads the database's heads now. */
    refresh: () => view.refresh(),
    onIncarnation: () => housekeeping.newIncarnation(),
    /** In the order in which they start. */
    services: (roles: { readonly coordinator: boolean; readonly replicator: boolean }): Service[] => [
      housekeeping,
      restorer,
      leases,
      roles.coordinator ? coordinator : new Hearing({ ...ground, messenger: ground.heartbeats, peers }),
      // What acts for its datacenter holds the replicator's lock.
      ...(roles.replicator ? [replicator, resume, giveAway, leaderKeeper] : []),
      ...(roles.coordinator ? [takeovers] : []),
    ],
    /** For a process that ends before its services have started. */
    abandon: () => stopped.abort(),
  };
}

export type Engine = Awaited<ReturnType<typeof createEngine>>;
