import { pack, unpack } from "msgpackr";
import { Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import { Applier } from "../../replication/applier.js";
import { LogOwnership } from "../../replication/ownership.js";
import { Progress } from "../../replication/progress.js";
import { Publisher } from "../../replication/publisher.js";
import { lastOf } from "../../replication/record.js";
import type { Applied, Incoming } from "../../replication/replica-store.js";
import { ReplicatorLock } from "../../replication/replicator-lock.js";
import { Resume } from "../../replication/resume.js";
import { ShardLog } from "../../replication/shard-log.js";
import { route } from "../../routing/route.js";
import { Coordinator } from "../../shards/coordinator.js";
import {
  partitionOf,
  position as toPosition,
  type Epoch,
  type Partition,
  type Position,
  type ShardId,
} from "../../shards/ids.js";
import { LeaderKeeper } from "../../shards/leader-keeper.js";
import { LeaseKeeper } from "../../shards/lease-keeper.js";
import { ShardMap, type Head } from "../../shards/map.js";
import { Peers } from "../../shards/peers.js";
import { datacentersOf, type SiteSet } from "../../shards/site-set.js";
import type { ShardStore } from "../../shards/store.js";
import { Switchover } from "../../shards/switchover.js";
import { TakeoverWatch } from "../../shards/takeover.js";
import type { MemoryDatabase, Waiting } from "./database.js";
import type { MemoryLog } from "./memory-log.js";
import type { Network } from "./network.js";
import { RereadingLog, type Mend } from "./mends.js";
import { MemoryRestorer } from "./restorer.js";
import {
  BelievingMap,
  loneSet,
  TamperedWord,
  tamperedMessenger,
  tamperedOwnership,
  tamperedStore,
  tamperedVotes,
  type Off,
} from "./rules.js";
import type { Process } from "./scheduler.js";
import { MemoryReplicaStore, type ReplicaHooks } from "./replica.js";
import { MemoryOutbox, MemoryShardStore } from "./stores.js";
import { MemoryWriter } from "./writer.js";

export interface Settings {
  readonly leaseMs: number;
  readonly marginMs: number;
  readonly heartbeatMs: number;
  readonly dbDeadMs: number;
  readonly termMs: number;
  readonly restateMs: number;
}

export interface NodeParts {
  readonly process: Process;
  readonly database: MemoryDatabase;
  readonly network: Network;
  readonly log: MemoryLog;
  readonly siteSet: SiteSet;
  readonly settings: Settings;
  readonly random: Random;
  readonly logger: Logger;
  readonly hooks: ReplicaHooks;
  readonly say: (text: string) => void;
  readonly off: Off;
  /** Whether a mend is in force. */
  readonly mended: (mend: Mend) => boolean;
}

const group = "sim";
const mapTickMs = 250;

/** One process of a datacenter: the real classes, wired as services/datacenter.ts wires them, on the simulation's world. */
export async function startNode(o: NodeParts) {
  const { process, database, settings, random, logger: log, siteSet, off } = o;
  const { site, time, name: node } = process;
  const { shards, partitions } = siteSet;
  const holder = `${node}-${random.token(8)}`;
  const messenger = o.network.messenger(process);
  const closing = (): number => 1 + Math.floor(random.next() * (2 ** 52 - 1));
  const goneMs = settings.leaseMs + settings.marginMs;
  const meet = async (): Promise<void> => {
    process.knows = await database.meet(process, {
      node,
      goneMs: off.has("g-confirm") ? Infinity : goneMs,
      closing: closing(),
    });
  };
  await meet();

  let hearsWaiting: (waiting: Waiting) => void = () => undefined;
  const plain = new MemoryShardStore(database, process, (waiting) => {
    hearsWaiting(waiting);
  });
  const tampered = tamperedStore(plain, off);
  let listedAt = -Infinity;
  const store: ShardStore = !o.mended("node-returns")
    ? tampered
    : {
        ...tampered,
        refreshNode: async (name, url, ms) => {
          const began = time.monotonic();
          const others = await tampered.refreshNode(name, url, ms);
          if (began - listedAt > settings.leaseMs) for (const head of await tampered.heads()) map.adopt(head);
          listedAt = began;
          return others;
        },
      };
  const map = off.has("h-forward") ? new BelievingMap(shards) : new ShardMap(shards);
  for (const head of await store.heads()) map.adopt(head);
  const peers = new Peers(time, settings.heartbeatMs, settings.leaseMs);
  const word = new TamperedWord(
    {
      site,
      leaseMs: settings.leaseMs,
      termMs: settings.termMs,
      marginMs: settings.marginMs,
      clock: time,
      votes: tamperedVotes(plain, off),
      setNumber: () => siteSet.number,
      incarnation: () => process.knows,
    },
    off,
  );
  const progress = new Progress(time, peers);
  for (const head of map.all()) progress.reached(head.shard, head.epoch, head.position);

  const leases: LeaseKeeper = new LeaseKeeper({
    group,
    dc: site,
    node,
    leaseMs: settings.leaseMs,
    marginMs: settings.marginMs,
    heartbeatMs: settings.heartbeatMs,
    dbDeadMs: settings.dbDeadMs,
    time,
    random,
    log,
    messenger,
    store,
    map,
    peers,
    siteSet: () => loneSet(siteSet, off),
    incarnation: () => process.knows,
    url: "",
    report: () => ({
      url: "",
      state: state(),
      blocked: blockedPartitions(),
      heads: coordinator.holding ? ownHeads() : [],
      lagPositions: 0,
      lagMs: 0,
    }),
  });
  const coordinator: Coordinator = new Coordinator({
    group,
    site,
    holder,
    termMs: settings.termMs,
    time,
    log,
    messenger,
    word,
    peers,
    locks: store,
    setNumber: () => siteSet.number,
    onNewerSet: () => undefined,
  });

  const logOptions = { transport: o.log.transport(process), partitions, time, log };
  const shardLog: ShardLog = !o.mended("mark-goes-back")
    ? new ShardLog(logOptions)
    : new RereadingLog(logOptions, (shard) => publisher.mark(shard));
  const hint = (partition: Partition, sequence: number): void => messenger.publish("tail", pack([partition, sequence]));
  const publisher: Publisher = new Publisher({
    log: shardLog,
    outbox: new MemoryOutbox(database, process),
    map,
    site,
    generation: 1,
    time,
    random,
    logger: log,
    events: {
      stored: (shard, sequence, header) => {
        const partition = partitionOf(shard, partitions);
        applier.ownAppend(partition, shard, sequence, header);
        hint(partition, sequence);
        tellInside({ marks: [shard, header.epoch, lastOf(header)] });
      },
    },
  });
  const writer = new MemoryWriter({
    database,
    process,
    time,
    faults: { checksNothing: off.has("f-statement") },
    gate: {
      enter: (shard) => {
        const head = map.get(shard);
        const leaseValid = off.has("f-lease") || off.has("f-before") || leases.valid;
        if (o.mended("own-restore") && restorer.shardWaits(shard)) throw new Problem("shard_moving");
        const where = route({ self: site, head, leaseValid, ownerState: "dead" });
        if (where.kind === "here" && head !== undefined) return head.epoch;
        throw new Problem("not_owner");
      },
      mayAcknowledge: (shard, at) => {
        if (off.has("f-after") || off.has("f-lease")) return true;
        const head = map.get(shard);
        return leases.valid && head?.owner === site && head.epoch === at && head.state !== "suspended";
      },
    },
    events: {
      committed: (records) => {
        for (const record of records) progress.reached(record.shard, record.epoch, record.position);
        publisher.committed(records);
        if (!replicator.holding) tellInside({ wake: [...new Set(records.map((record) => record.shard))] });
      },
      published: (shard, at, position, deadline) => publisher.published(shard, at, position, deadline),
      uncertain: (list) => {
        for (const shard of list) publisher.wake(shard);
        tellInside({ wake: list });
      },
    },
  });
  const applier: Applier = new Applier({
    transport: o.log.transport(process),
    store: new MemoryReplicaStore(database, process, o.hooks, { ignoresEpochs: off.has("applier-epoch") }),
    partitions,
    time,
    log,
    onApplied: (applied, messages) => onApplied(applied, messages),
  });
  const ownership = new LogOwnership({
    log: shardLog,
    generation: 1,
    time,
    random,
    logger: log,
    opened: (shard, sequence) => {
      const partition = partitionOf(shard, partitions);
      applier.hint(partition, sequence);
      hint(partition, sequence);
    },
  });
  const replicator: ReplicatorLock = new ReplicatorLock({
    store,
    holder,
    time,
    log,
    onChange: async (holding) => {
      if (holding) await refreshMap();
      publisher.setActive(holding);
      await applier.setActive(holding);
    },
  });
  const resume = new Resume({
    site,
    time,
    log,
    map,
    store: !o.mended("foreign-move")
      ? store
      : { ...store, heads: () => plain.claim((shard) => switchover.isMoving(shard)) },
    publisher,
    ownership,
    restateMs: settings.restateMs,
    epochEnds: (shard) => database.run(process, "epoch ends", (tables) => tables.heads.get(shard)?.epochEnds ?? []),
    active: () => replicator.holding && leases.valid,
    moving: (shard) => switchover.isMoving(shard),
  });
  const switchover: Switchover = new Switchover({
    site,
    node,
    goneMs: !o.mended("node-gone") ? goneMs : goneMs + settings.dbDeadMs,
    time,
    log,
    map,
    store,
    ownership,
    leaseValid: () => leases.valid,
    canOpen: (target, partition) => peers.canOpen(target, partition),
    hold: async (name, head, timeoutMs) => void (await messenger.request(`hold.${name}`, pack(head), timeoutMs)),
    flush: (head, deadline) => publisher.flush(head, deadline),
    carry: () => time.sleep(2),
    opened: async () => true,
  });
  const restorer = new MemoryRestorer({
    site,
    database,
    process,
    messenger,
    map,
    active: () => replicator.holding,
    say: o.say,
    askAll: !o.mended("own-restore") ? [] : datacentersOf(siteSet),
    inOrder: o.mended("late-waiting"),
  });
  if (o.mended("late-waiting")) hearsWaiting = (waiting) => restorer.take(waiting);
  const takeovers = new TakeoverWatch({
    group,
    site,
    time,
    log,
    messenger: tamperedMessenger(messenger, off),
    map,
    peers,
    word,
    ownership: tamperedOwnership(ownership, off),
    siteSet: () => siteSet,
    leaseValid: () => leases.valid,
    canOpen: (partition) => !blockedPartitions().includes(partition),
    preferences: [],
    onTakeover: () => undefined,
  });
  const leaderKeeper = new LeaderKeeper({
    site,
    time,
    log,
    map,
    peers,
    siteSet: () => siteSet,
    active: () => replicator.holding && leases.valid,
    hears: () => leases.hears,
    leaders: {
      leader: async (partition) => {
        await time.sleep(1);
        return { leader: o.log.leader(partition) ?? undefined, replicas: siteSet.sites.map((s) => s.name) };
      },
      handOver: async (partition, to) => {
        await time.sleep(1);
        o.log.elect(partition, to, 0.1);
      },
    },
  });

  interface Inside {
    readonly heads?: readonly number[];
    readonly wake?: readonly number[];
    readonly marks?: readonly [number, number, number];
  }
  function tellInside(message: Inside): void {
    if (leases.others.length > 0) messenger.publish(`inside.${site}`, pack(message));
  }
  map.onChange((head, before) => {
    if (before !== undefined && before.epoch < head.epoch && !replicator.holding)
      publisher.ended(head.shard, before.epoch, toPosition(0));
    progress.reached(head.shard, head.epoch, head.position);
    if (head.owner === site) publisher.wake(head.shard);
  });

  function onApplied(applied: Applied, messages: readonly Incoming[]): void {
    for (const message of messages)
      if (message.header !== null) shardLog.observe(message.shard, message.sequence, message.header);
    const adopt = (): void => {
      for (const { head, before } of applied.adoptions) publisher.ended(head.shard, before.epoch, head.position);
      for (const head of applied.heads) {
        map.adopt(head);
        progress.reached(head.shard, head.epoch, head.position);
        if (head.owner === site) publisher.observeMark(head.shard, head.epoch, head.published);
        else peers.learnHead(head.shard, head.epoch, head.position);
      }
    };
    if (applied.adoptions.some((adoption) => adoption.divergent > 0)) void refreshRestores().then(adopt);
    else adopt();
    if (applied.adoptions.length + applied.stopped.length > 0)
      tellInside({ heads: applied.adoptions.map((adoption) => adoption.head.shard) });
  }

  async function refreshRestores(): Promise<void> {
    for (;;) {
      try {
        return await restorer.refresh();
      } catch {
        await time.sleep(50);
      }
    }
  }

  async function refreshMap(): Promise<void> {
    const { knows } = process;
    const heads = await store.heads();
    if (process.knows !== knows) return;
    for (const head of heads) {
      map.adopt(head);
      if (!replicator.holding) progress.reached(head.shard, head.epoch, head.position);
      if (head.owner !== site) continue;
      if (!replicator.holding) {
        publisher.observeMark(head.shard, head.epoch, head.published);
      } else if (head.position > (publisher.mark(head.shard) ?? -1)) publisher.wake(head.shard);
    }
  }

  let meeting: Promise<void> | undefined;
  process.onIncarnation = () => {
    meeting ??= (async () => {
      leases.drop();
      word.lockLost();
      map.reset();
      for (;;) {
        try {
          await meet();
          break;
        } catch {
          await time.sleep(100);
        }
      }
      progress.reset();
      await applier.reload();
      await refreshMap();
      for (const head of map.all()) progress.reached(head.shard, head.epoch, head.position);
    })()
      .catch(() => undefined)
      .finally(() => (meeting = undefined));
  };

  const caughtUp = (): boolean => (!applier.active || applier.caughtUp) && restorer.count === 0;
  function state(): "serving" | "fenced" | "catching_up" {
    if (!leases.valid) return "fenced";
    const ready = map
      .ownedBy(site)
      .every((head) => (head.state === "owned" && head.confirmed) || head.state === "moving");
    return caughtUp() && ready ? "serving" : "catching_up";
  }
  function blockedPartitions(): Partition[] {
    const blocked = new Set<Partition>();
    const initial = applier.active && !applier.caughtUp;
    for (const head of map.all())
      if (head.owner !== site && (initial || head.stopped !== null || restorer.shardWaits(head.shard)))
        blocked.add(head.partition);
    return [...blocked];
  }
  function ownHeads(): number[] {
    return map.ownedBy(site).flatMap((head) => {
      const place = progress.place(head.shard);
      return place.epoch === head.epoch ? [head.shard, place.epoch, place.position] : [];
    });
  }

  messenger.subscribe(`hold.${node}`, (message) => {
    map.adopt(unpack(message.data) as Head);
    message.respond(new Uint8Array(0));
  });
  messenger.subscribe("tail", (message) => {
    const [partition, sequence] = unpack(message.data) as [Partition, number];
    applier.hint(partition, sequence);
  });
  messenger.subscribe(`inside.${site}`, (message) => {
    const inside = unpack(message.data) as Inside;
    if (inside.heads !== undefined && o.mended("late-waiting"))
      void refreshRestores()
        .then(refreshMap)
        .catch(() => undefined);
    else if (inside.heads !== undefined) void refreshMap().catch(() => undefined);
    for (const shard of inside.wake ?? []) publisher.wake(shard as ShardId);
    if (inside.marks !== undefined) {
      const [shard, epoch, mark] = inside.marks;
      publisher.observeMark(shard as ShardId, epoch as Epoch, mark as Position);
    }
  });
  void (async () => {
    for (;;) {
      progress.sample(map.all().flatMap((head) => (head.owner === site ? [] : [head.shard])));
      await refreshMap().catch(() => undefined);
      await time.sleep(mapTickMs);
    }
  })();
  await applier.start();
  await leases.start();
  await coordinator.start();
  await replicator.start();
  await restorer.start();
  await resume.start();
  await takeovers.start();
  await leaderKeeper.start();

  return {
    process,
    map,
    leases,
    word,
    publisher,
    writer,
    applier,
    replicator,
    switchover,
    /** As services/executor.ts asks before a read and again after it. @returns the epoch, or undefined when it may not be served */
    held(shard: ShardId, after: boolean): number | undefined {
      const head = map.get(shard);
      if (head?.owner !== site || head.state !== "owned" || !head.confirmed) return undefined;
      if (o.mended("own-restore") && restorer.shardWaits(shard)) return undefined;
      const ignored = off.has("f-lease") || off.has(after ? "f-after" : "f-before");
      return ignored || leases.valid ? head.epoch : undefined;
    },
  };
}

export type SimNode = Awaited<ReturnType<typeof startNode>>;
