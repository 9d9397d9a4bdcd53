import { pack, unpack } from "msgpackr";
import { systemTime, type Time } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import { asError, FatalError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { createMetrics, type Metrics } from "../infra/metrics/index.js";
import { LogStreams } from "../infra/nats/log-streams.js";
import { Database } from "../infra/postgres/database.js";
import { systemRandom, type Random } from "../infra/random.js";
import type { Service } from "../infra/service.js";
import { Applier } from "../replication/applier.js";
import { readProgress, storeProgress } from "../replication/carried.js";
import { PostgresOutbox } from "../replication/outbox.js";
import { OutboxTrim } from "../replication/outbox-trim.js";
import { LogOwnership } from "../replication/ownership.js";
import { Progress } from "../replication/progress.js";
import { Publisher } from "../replication/publisher.js";
import { lastOf, type EpochEnd } from "../replication/record.js";
import { PostgresReplicaStore, type Applied, type Incoming } from "../replication/replica-store.js";
import { ReplicatorLock } from "../replication/replicator-lock.js";
import { Restorer } from "../replication/restore.js";
import { Resume } from "../replication/resume.js";
import { Retention } from "../replication/retention.js";
import { ShardLog } from "../replication/shard-log.js";
import { Writer } from "../replication/writer.js";
import { Changes } from "../routing/changes.js";
import { route } from "../routing/route.js";
import { Router } from "../routing/router.js";
import { Coordinator } from "../shards/coordinator.js";
import {
  epoch as toEpoch,
  nextEpoch,
  partitionOf,
  position as toPosition,
  type Epoch,
  type Partition,
  type Position,
  type ShardId,
} from "../shards/ids.js";
import { meetAgain, meetDatabase } from "../shards/incarnation.js";
import { LeaderKeeper } from "../shards/leader-keeper.js";
import { LeaseKeeper } from "../shards/lease-keeper.js";
import { ShardMap, type Head } from "../shards/map.js";
import { Peers } from "../shards/peers.js";
import { PostgresShardStore } from "../shards/postgres-store.js";
import { datacentersOf } from "../shards/site-set.js";
import { SiteWord } from "../shards/site-word.js";
import { Switchover } from "../shards/switchover.js";
import { TakeoverWatch } from "../shards/takeover.js";
import type { Command, Reply } from "./api.js";
import { CallClient, CallServer, type Calls } from "./calls.js";
import { Queries } from "./clusters/queries.js";
import { CommandExecutor } from "./executor.js";
import { generation } from "./init.js";
import { Hints, InsideBus } from "./inside.js";
import { CatalogFile } from "./jobs/catalog.js";
import { Dispatcher } from "./jobs/dispatcher.js";
import { PostgresJobSource } from "./jobs/job-source.js";
import { defaultJobSettings, JobEvents, JobOperations, TaskOperations, type JobContext } from "./jobs/operations.js";
import { Failback } from "./failback.js";
import { openLinks } from "./links.js";
import { Moves } from "./moves.js";
import { SiteSetWatch } from "./site-set-watch.js";

/** How old a node's row may be (rule h): its last lease may end a lease after the last heartbeat that its database allowed. */
const goneMs = (config: Config): number => config.dbDeadMs + config.leaseMs + config.marginMs;
const mapTickMs = 250;
const siteSetWaitMs = 60_000;

/** A closing gets a number that was never used before. */
const closingNumber = (random: Random): number => 1 + Math.floor(random.next() * (2 ** 52 - 1));

/**
 * One process of a datacenter, wired by hand: who knows whom is in this file alone. What users see of it is face.ts.
 */
export async function createDatacenter(
  config: Config,
  log: Logger,
  time: Time = systemTime,
  random: Random = systemRandom,
) {
  const { site, node, group } = config;
  const holder = `${node}-${random.token(8)}`;
  const links = await openLinks(config, log);
  const metrics: Metrics = createMetrics();
  const streams = new LogStreams(group, generation, links.routes);
  const siteSets = new SiteSetWatch(streams, time, log);
  // Databases: user writes have a pool of their own, so that they can't starve the lease.
  const databaseOptions = { url: config.databaseUrl ?? "", log };
  const control = new Database({ ...databaseOptions, connections: 5, name: `hothot ${node} control` });
  const data = new Database({ ...databaseOptions, connections: config.databaseConnections, name: `hothot ${node}` });
  const writes = new Database({ ...databaseOptions, connections: 3, name: `hothot ${node} writes`, pipeline: true });
  await waitForDatabase(control, time, log);
  await control.migrate();
  const stopped = new AbortController();
  const meet = (size: { shards: number; partitions: number } | null) => () =>
    meetDatabase(
      control,
      { group, datacenter: site, generation, size },
      { node, goneMs: goneMs(config), closing: closingNumber(random), run: random.token(12), wall: time.wall(), log },
    );
  const met = await meet(null)();

  // The site's word: its silence after a restart begins as early as may be, while the log may still elect its leaders.
  const store = new PostgresShardStore(control);
  const peers = new Peers(time, config.heartbeatMs, config.leaseMs);
  const word = new SiteWord({
    site,
    leaseMs: config.leaseMs,
    termMs: config.coordinatorTermMs,
    marginMs: config.marginMs,
    clock: time,
    votes: store,
    setNumber: () => siteSets.known?.number ?? -1,
    incarnation: () => control.incarnation,
  });
  const coordinator: Coordinator = new Coordinator({
    group,
    site,
    holder,
    termMs: config.coordinatorTermMs,
    time,
    log,
    messenger: links.heartbeats,
    word,
    peers,
    locks: store,
    setNumber: () => siteSets.known?.number ?? -1,
    onNewerSet: () => void siteSets.refresh(),
  });
  if (met !== null && config.roles.includes("coordinator")) await coordinator.start();

  const first = await siteSets.first(siteSetWaitMs).catch(async (error: unknown) => {
    await links.close();
    throw error;
  });
  if (!first.sites.some((s) => s.name === site && !s.witness)) {
    await links.close();
    throw new FatalError(
      first.removed.includes(site) ? "removed_datacenter" : "unknown_datacenter",
      first.removed.includes(site)
        ? `datacenter '${site}' was removed from the group`
        : `the group has no datacenter '${site}'; it has ${first.sites.map((s) => s.name).join(", ")}`,
      "Mend HOTHOT_DC, or add the datacenter with `hothot dc add`.",
    );
  }
  const { shards, partitions } = first;

  const identity = (await meet({ shards, partitions })()) ?? (await control.identity());
  for (const database of [data, writes]) database.adopt(identity);

  // Shards: who owns what.
  const map = new ShardMap(shards);
  for (const head of await store.heads()) map.adopt(head);
  const changes = new Changes(time);
  const progress = new Progress(time, peers);
  for (const head of map.all()) progress.reached(head.shard, head.epoch, head.position);
  const url = `http://${config.host}:${config.port}`;

  const leases: LeaseKeeper = new LeaseKeeper({
    group,
    dc: site,
    node,
    leaseMs: config.leaseMs,
    marginMs: config.marginMs,
    heartbeatMs: config.heartbeatMs,
    dbDeadMs: config.dbDeadMs,
    time,
    random,
    log,
    messenger: links.heartbeats,
    store,
    map,
    peers,
    siteSet: () => siteSets.set,
    incarnation: () => control.incarnation,
    url,
    report: () => ({
      url,
      state: state(),
      blocked: blockedPartitions(),
      heads: coordinator.holding ? ownHeads() : [],
      lagPositions: worstLag().positions,
      lagMs: worstLag().ms,
      applied: applier.applied,
    }),
  });
  // Replication: how state travels.
  const shardLog = new ShardLog({ transport: streams, partitions, time, log });
  const hints = new Hints(group, generation, links.main);
  const publisher: Publisher = new Publisher({
    log: shardLog,
    outbox: new PostgresOutbox(data),
    map,
    site,
    generation,
    time,
    random,
    logger: log,
    events: {
      stored: (shard, sequence, header, bytes) => {
        const partition = partitionOf(shard, partitions);
        applier.ownAppend(partition, shard, sequence, header);
        hints.add(partition, sequence, shard, bytes);
        progress.reached(shard, header.epoch, lastOf(header));
        inside.mark(shard, header.epoch, lastOf(header));
      },
    },
    limits: { mayAppend: (partition) => !retention.full(partition) },
  });
  const mayAcknowledge = (shard: ShardId, at: Epoch): boolean => {
    const head = map.get(shard);
    return leases.valid && head?.owner === site && head.epoch === at && head.state !== "suspended";
  };
  const writer = new Writer({
    database: writes,
    site,
    time,
    random,
    log,
    gate: {
      enter: (shard) => {
        const head = map.get(shard);
        const where = route({ self: site, head, leaseValid: leases.valid, ownerState: "dead" });
        if (where.kind === "here" && head !== undefined) {
          if (restorer.shardWaits(shard))
            throw new Problem("no_lease", "rows of the shard are being restored", { owner: site });
          if (publisher.unpublishedMs(shard) > config.maxUnpublishedMs)
            throw new Problem("unpublished_limit", "the log has not taken what this shard has written for too long", {
              retryAfterSeconds: 1,
              owner: site,
            });
          return head.epoch;
        }
        if (where.kind === "wait" && where.owner === site) throw new Problem(where.code, where.why, { owner: site });
        throw new Problem("not_owner", undefined, head?.owner == null ? {} : { owner: head.owner });
      },
      mayAcknowledge,
    },
    events: {
      committed: (records) => {
        for (const record of records) progress.reached(record.shard, record.epoch, record.position);
        publisher.committed(records);
        if (!replicator.holding) inside.send({ wake: [...new Set(records.map((record) => record.shard))] });
      },
      uncertain: (list) => {
        for (const shard of list) publisher.wake(shard);
        inside.send({ wake: list });
      },
      published: (shard, at, position, deadline) => publisher.published(shard, at, position, deadline),
    },
  });
  const applier: Applier = new Applier({
    transport: streams,
    store: new PostgresReplicaStore(data, site, log),
    partitions,
    time,
    log,
    onApplied: (applied, messages) => onApplied(applied, messages),
  });
  const ownership = new LogOwnership({
    log: shardLog,
    generation,
    time,
    random,
    logger: log,
    opened: (shard, sequence) => {
      const partition = partitionOf(shard, partitions);
      applier.hint(partition, sequence);
      hints.add(partition, sequence, shard);
    },
    epochEnds: (shard) => epochEnds(shard),
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
  const epochEnds = async (shard: ShardId): Promise<EpochEnd[]> =>
    (
      await control.pool.query<{ ends: EpochEnd[] }>("SELECT epoch_ends AS ends FROM shard_head WHERE shard = $1", [
        shard,
      ])
    ).rows[0]?.ends ?? [];
  const resume = new Resume({
    site,
    time,
    log,
    map,
    store,
    publisher,
    ownership,
    restateMs: config.restateMs,
    epochEnds,
    active: () => replicator.holding && leases.valid,
    moving: (shard) => switchover.isMoving(shard),
  });
  const retention: Retention = new Retention({
    site,
    partitions,
    streams,
    map,
    time,
    log,
    retentionMs: config.logRetentionMs,
    maxBytes: config.logMaxBytes,
    members: (partition) =>
      datacentersOf(siteSets.set).map((dc) =>
        dc === site
          ? { dc, live: true, applied: applier.applied[partition] }
          : { dc, live: peers.state(dc) !== "dead", applied: peers.applied(dc, partition) },
      ),
    restate: (list) => resume.restate(list),
    active: () => replicator.holding && leases.valid,
    onEndangered: (dcs) => {
      for (const dc of datacentersOf(siteSets.set)) metrics.endangeredReplicas.set({ dc }, dcs.has(dc) ? 1 : 0);
    },
    onLeftBehind: (dc) => metrics.replicasLeftBehind.inc({ dc }),
  });
  const outboxTrim = new OutboxTrim({
    database: data,
    partitions,
    first: (partition, shard) => streams.readFirst(partition, shard, 3_000),
    time,
    log,
    everyMs: Math.min(60_000, Math.max(1_000, config.logRetentionMs / 10)),
    active: () => replicator.holding,
  });
  const calls: Calls = {
    move: async (request) => {
      const result = await switchover.move(request);
      if (result.kind === "moved") metrics.switchoverHoldSeconds.observe(result.heldMs / 1000);
      return result;
    },
    carry: async (part) => {
      await storeProgress(data, part);
      return null;
    },
    opened: async ({ shard, epoch: at, timeoutMs }) => {
      const deadline = time.monotonic() + timeoutMs;
      const serves = (): boolean => {
        const head = map.get(shard as ShardId);
        return head !== undefined && head.epoch >= at;
      };
      while (!serves() && time.monotonic() < deadline)
        await changes.next(shard as ShardId, Math.min(100, deadline - time.monotonic()));
      return serves();
    },
    positions: async () =>
      map
        .all()
        .map((head) => [head.shard, progress.place(head.shard).epoch, progress.place(head.shard).position] as const),
    takeover: async ({ target, shards: wanted, by, forced }) => {
      const heads = wanted.flatMap((shard) => map.get(shard as ShardId) ?? []).filter((head) => head.owner === target);
      return [
        ...(await takeovers.takeOver(target, heads, {
          by,
          reason: forced ? "forced by an operator" : "asked for by an operator",
          forced,
        })),
      ];
    },
    operation: ({ id, cancel }) => moves.local(id, cancel),
  };
  const callClient = new CallClient(group, site, links.routes, () => calls);
  const holdSubject = (name: string): string => `hothot.${group}.inside.${site}.${name}.hold`;
  const switchover: Switchover = new Switchover({
    site,
    node,
    goneMs: goneMs(config),
    time,
    log,
    map,
    store,
    ownership,
    leaseValid: () => leases.valid,
    canOpen: (target, partition) => peers.canOpen(target, partition),
    hold: async (name, head, timeoutMs) => void (await links.main.request(holdSubject(name), pack(head), timeoutMs)),
    flush: (head, deadline) => publisher.flush(head, deadline),
    carry: async (head, to, timeoutMs) => {
      const deadline = time.monotonic() + timeoutMs;
      for (const part of await readProgress(data, head.shard, nextEpoch(head.epoch), head.tenure))
        await callClient.call(to, "carry", part, Math.max(1, deadline - time.monotonic()));
    },
    opened: (to, shard, at, timeoutMs) =>
      callClient.call(to, "opened", { shard, epoch: at, timeoutMs }, timeoutMs).catch(() => false),
  });
  const callServer = new CallServer({
    group,
    site,
    messenger: links.main,
    calls,
    log,
    active: () => replicator.holding,
  });
  const restorer = new Restorer({
    group,
    site,
    database: data,
    messenger: links.main,
    map,
    time,
    log,
    datacenters: () => datacentersOf(siteSets.set),
    active: () => replicator.holding,
  });
  const takeovers = new TakeoverWatch({
    group,
    site,
    time,
    log,
    messenger: links.heartbeats,
    map,
    peers,
    word,
    ownership,
    siteSet: () => siteSets.set,
    leaseValid: () => leases.valid,
    canOpen: (partition) => !blockedPartitions().includes(partition),
    onTakeover: ({ shards: count, ms }) => {
      metrics.takeovers.inc(count);
      metrics.takeoverSeconds.observe(ms / 1000);
    },
  });
  const leaderKeeper = new LeaderKeeper({
    site,
    time,
    log,
    map,
    peers,
    siteSet: () => siteSets.set,
    active: () => replicator.holding && leases.valid,
    hears: () => leases.hears,
    leaders: {
      leader: async (partition) => {
        const found = await streams.state(partition, 1_000);
        return found === undefined
          ? undefined
          : {
              leader: found.leader,
              replicas: [
                ...(found.leader === undefined ? [] : [found.leader]),
                ...found.replicas.filter((r) => !r.offline && r.current).map((r) => r.name),
              ],
            };
      },
      handOver: (partition, to) => streams.stepDown(partition, to, 2_000),
    },
  });

  // Jobs.
  const queries = new Queries(data.db);
  const jobEvents = new JobEvents();
  const catalog = new CatalogFile(config.catalog);
  const jobContext: JobContext = { catalog: () => catalog.current, events: jobEvents, settings: defaultJobSettings };
  const jobs = new JobOperations(jobContext);
  const tasks = new TaskOperations(jobContext);
  const dispatcher = new Dispatcher({
    source: new PostgresJobSource(data.db),
    writer,
    jobs,
    tasks,
    events: jobEvents,
    time,
    log,
  });
  jobEvents.on({ restarted: () => metrics.jobsRestarted.inc(), offered: (offered) => inside.send({ offered }) });

  // Routing: how a request reaches the owner.
  const servedBy = `${site}/${node}`;
  const router: Router<Command, Reply> = new Router<Command, Reply>({
    group,
    site,
    time,
    log,
    messengers: links.routes,
    map,
    peers,
    changes,
    leaseValid: () => leases.valid,
    executor: new CommandExecutor({
      site,
      servedBy,
      shards,
      map,
      writer,
      queries,
      jobs,
      tasks,
      keyRetentionMs: config.idempotencyRetentionMs,
      leaseValid: () => leases.valid,
      mayAcknowledge,
      published: (shard, position, at, deadline) =>
        map.get(shard)?.epoch === at
          ? publisher.published(shard, toEpoch(at), toPosition(position), deadline)
          : Promise.resolve(),
      onStaleFinish: () => metrics.staleFinishes.inc(),
    }),
  });

  // What follows from a change, in this process.
  const inside = new InsideBus(
    `hothot.${group}.inside.${site}`,
    links.main,
    () => leases.others.length > 0,
    (message) => {
      if (message.heads !== undefined) void refreshMap().catch(() => undefined);
      for (const shard of message.wake ?? []) publisher.wake(shard as ShardId);
      if (message.offered !== undefined) dispatcher.offer(message.offered);
      const marks = message.marks ?? [];
      for (let i = 0; i + 2 < marks.length; i += 3)
        publisher.observeMark(marks[i] as ShardId, marks[i + 1] as Epoch, marks[i + 2] as Position);
    },
  );
  const owned = new Set<ShardId>();
  const judge = (head: Head): void => {
    const serves = head.owner === site && head.state === "owned" && head.confirmed;
    if (serves && !owned.has(head.shard)) {
      owned.add(head.shard);
      dispatcher.onOwned(head.shard, head.epoch, head.tenure);
    } else if (!serves && owned.delete(head.shard)) dispatcher.onLost(head.shard);
  };
  map.onChange((head, before) => {
    if (before !== undefined && before.epoch !== head.epoch && owned.has(head.shard)) {
      owned.delete(head.shard);
      dispatcher.onLost(head.shard);
    }
    judge(head);
    // Without the fold's word on where the old epoch ended, whoever waits for it learns that its outcome is unknown.
    if (before !== undefined && before.epoch < head.epoch && !replicator.holding)
      publisher.ended(head.shard, before.epoch, toPosition(0));
    progress.reached(head.shard, head.epoch, head.position);
    changes.changed(head.shard);
    if (head.owner === site) publisher.wake(head.shard);
  });
  leases.onChange(() => changes.changedAll());

  function onApplied(applied: Applied, messages: readonly Incoming[]): void {
    retention.observe(messages);
    for (const message of messages)
      if (message.header !== null) shardLog.observe(message.shard, message.sequence, message.header);
    const diverged = applied.adoptions.some((adoption) => adoption.divergent > 0);
    const adopt = (): void => {
      for (const { head, before } of applied.adoptions) publisher.ended(head.shard, before.epoch, head.position);
      for (const head of applied.heads) {
        map.adopt(head);
        progress.reached(head.shard, head.epoch, head.position);
        if (head.owner === site) publisher.observeMark(head.shard, head.epoch, head.published);
        else peers.learnHead(head.shard, head.epoch, head.position);
      }
    };
    // Rows that were undone must not be served before the restorer knows of them.
    if (diverged) void refreshRestores().then(adopt);
    else adopt();
    if (applied.adoptions.length + applied.stopped.length > 0)
      inside.send({ heads: applied.adoptions.map((adoption) => adoption.head.shard) });
    for (const [shard, at] of applied.committedAt) {
      const head = map.get(shard);
      if (head?.owner != null)
        metrics.applySeconds.observe({ shard_owner: head.owner }, Math.max(0, time.wall() - at) / 1000);
      if (head?.owner != null && head.owner !== site)
        metrics.replicationLagSeconds.set({ shard_owner: head.owner }, Math.max(0, time.wall() - at) / 1000);
    }
  }

  async function refreshRestores(): Promise<void> {
    while (!stopped.signal.aborted) {
      try {
        return await restorer.refresh();
      } catch (error) {
        log.warn("what waits to be restored can't be read", { error: asError(error) });
        await time.sleep(50, stopped.signal);
      }
    }
  }

  async function refreshMap(): Promise<void> {
    const { incarnation } = control;
    const heads = await store.heads();
    // An answer of a database that is not ours any more says nothing.
    if (control.incarnation !== incarnation) return;
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
      } else if (head.position > (publisher.mark(head.shard) ?? -1)) publisher.wake(head.shard);
    }
  }

  // The own database is another one: nothing that was promised, acknowledged or known counts any more (rule i).
  let meeting: Promise<void> | undefined;
  const onIncarnation = (): void => {
    meeting ??= (async () => {
      leases.drop();
      word.lockLost();
      map.reset();
      log.error(
        "the database's incarnation changed: this datacenter serves nothing until the log opens its shards again",
      );
      const identity = await meetAgain(
        meet({ shards, partitions }),
        () => time.sleep(100),
        log,
        () => stopped.signal.aborted,
      );
      if (identity === undefined) return;
      for (const database of [data, writes]) database.adopt(identity);
      progress.reset();
      await applier.reload();
      await refreshMap();
      for (const head of map.all()) progress.reached(head.shard, head.epoch, head.position);
    })()
      .catch((error: unknown) => log.error("meeting the database failed", { error: asError(error) }))
      .finally(() => (meeting = undefined));
  };
  control.onIncarnation(onIncarnation);
  data.onIncarnation(onIncarnation);
  writes.onIncarnation(onIncarnation);

  // Small views that several parts share.
  function worstLag(): { positions: number; ms: number } {
    let positions = 0;
    let ms = 0;
    for (const head of map.all()) {
      if (head.owner === site) continue;
      const lag = progress.lag(head.shard);
      positions = Math.max(positions, lag.positions);
      ms = Math.max(ms, lag.ms);
    }
    return { positions, ms };
  }
  function caughtUp(): boolean {
    if (applier.active && !applier.caughtUp) return false;
    const lag = worstLag();
    return restorer.count === 0 && (lag.ms < 2_000 || lag.positions < 100);
  }
  function state(): "serving" | "fenced" | "catching_up" {
    if (!leases.valid) return "fenced";
    return caughtUp() &&
      map.ownedBy(site).every((head) => (head.state === "owned" && head.confirmed) || head.state === "moving")
      ? "serving"
      : "catching_up";
  }
  function blockedPartitions(): Partition[] {
    const blocked = new Set<Partition>();
    const initial = applier.active && !applier.caughtUp;
    for (const head of map.all())
      if (
        head.owner !== site &&
        (initial ||
          head.stopped !== null ||
          restorer.shardWaits(head.shard) ||
          progress.lag(head.shard).positions > 50_000)
      )
        blocked.add(head.partition);
    return [...blocked];
  }
  function ownHeads(): number[] {
    return map.ownedBy(site).flatMap((head) => {
      const place = progress.place(head.shard);
      return place.epoch === head.epoch ? [head.shard, place.epoch, place.position] : [];
    });
  }

  const has = (role: Config["roles"][number]): boolean => config.roles.includes(role);
  const housekeeping: Service = {
    name: "housekeeping",
    start: async () => {
      hints.subscribe(({ partition, sequence, shard, data }) => {
        if (data === null || partitionOf(shard as ShardId, partitions) !== partition) applier.hint(partition, sequence);
        else applier.push(partition, { sequence, shard, data });
      });
      inside.start();
      links.main.subscribe(holdSubject(node), (message) => {
        map.adopt(unpack(message.data) as Head);
        message.respond(new Uint8Array(0));
      });
      await moves.start();
      for (const head of map.all()) judge(head);
      void (async () => {
        while (!stopped.signal.aborted) {
          progress.sample(
            map
              .all()
              .filter((head) => head.owner !== site)
              .map((head) => head.shard),
          );
          await refreshMap().catch((error: unknown) => log.debug("reading heads failed", { error: asError(error) }));
          await time.sleep(mapTickMs, stopped.signal);
        }
      })();
    },
    stop: async () => {
      stopped.abort();
      moves.stop();
      await publisher.stop();
      await applier.stop();
    },
  };
  await applier.start();
  const services: Service[] = [
    siteSets,
    housekeeping,
    leases,
    ...(has("coordinator") ? [coordinator] : []),
    ...(has("replicator") ? [replicator, restorer, resume, retention, outboxTrim, callServer] : []),
    ...(has("coordinator") ? [takeovers, leaderKeeper] : []),
    router,
    ...(has("api") ? [dispatcher] : []),
  ];

  const parts = {
    config,
    site,
    node,
    servedBy,
    url,
    shards,
    partitions,
    time,
    random,
    log,
    metrics,
    links,
    streams,
    siteSets,
    control,
    data,
    store,
    map,
    peers,
    word,
    leases,
    coordinator,
    publisher,
    writer,
    applier,
    ownership,
    replicator,
    restorer,
    router,
    progress,
    changes,
    queries,
    dispatcher,
    jobEvents,
    switchover,
    callClient,
    services,
    state,
    worstLag,
    caughtUp,
    /** After the services have stopped. */
    close: async () => {
      stopped.abort();
      await store.removeNode(node).catch(() => undefined);
      await Promise.allSettled([writes.close(), data.close(), control.close()]);
      await links.close();
    },
  };
  const moves: Moves = new Moves(parts, callClient);
  const failback = new Failback(parts, moves);
  if (has("coordinator")) services.push(failback);
  return { ...parts, moves };
}

/** What a process is made of, for the parts of services that stand on all of it. */
export type DatacenterParts = Omit<Awaited<ReturnType<typeof createDatacenter>>, "moves">;

const databaseWaitMs = 30_000;

async function waitForDatabase(database: Database, time: Time, log: Logger): Promise<void> {
  const deadline = time.monotonic() + databaseWaitMs;
  for (;;) {
    try {
      await database.identity();
      return;
    } catch (error) {
      const code = (error as { code?: string }).code ?? "";
      if (["28P01", "28000", "3D000"].includes(code) || time.monotonic() > deadline)
        throw new FatalError(
          "database_unreachable",
          `PostgreSQL can't be used: ${asError(error).message}`,
          "Start it, or mend HOTHOT_DATABASE_URL (user, password, host, database).",
          error,
        );
      log.debug("waits for PostgreSQL", { error: asError(error) });
      await time.sleep(100);
    }
  }
}
