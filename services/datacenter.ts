import PQueue from "p-queue";
import { systemTime, type Time } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import { FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { createMetrics, type Metrics } from "../infra/metrics/index.js";
import { LogStreams } from "../infra/nats/log-streams.js";
import { Database } from "../infra/postgres/database.js";
import { systemRandom, type Random } from "../infra/random.js";
import type { Tracing } from "../infra/tracing.js";
import type { Service } from "../infra/service.js";
import { Backlog } from "../replication/backlog.js";
import { progressIn, type CarriedPart } from "../replication/carried.js";
import { DigestKeeper } from "../replication/digest-keeper.js";
import { LoadWriter } from "../replication/load-writer.js";
import { PostgresOutbox } from "../replication/outbox.js";
import { epochEndsIn } from "../replication/epoch-ends.js";
import { ownerIn } from "../replication/history.js";
import { Payloads } from "../replication/payloads.js";
import { Pace } from "../replication/pace.js";
import { PostgresReplicaStore } from "../replication/replica-store.js";
import { PostgresOwnerStore } from "../replication/owner-store.js";
import { PostgresRestoreStore } from "../replication/restore-store.js";
import { Router } from "../routing/router.js";
import { epoch as toEpoch, nextEpoch, position as toPosition } from "../shards/ids.js";
import { meetAgain, meetDatabase } from "../shards/incarnation.js";
import { PostgresShardStore } from "../shards/postgres-store.js";
import { datacentersOf } from "../shards/site-set.js";
import type { Command, Reply } from "./api.js";
import { CallClient, CallServer, type Calls } from "./calls.js";
import { Queries } from "./clusters/queries.js";
import { databaseReady } from "./database-ready.js";
import { createEngine } from "./engine/engine.js";
import { closingNumber, goneMs, type EngineEvents, type WordGround } from "./engine/ground.js";
import { createWord } from "./engine/word.js";
import { CommandExecutor } from "./executor.js";
import { Failback } from "./failback.js";
import { callsOf } from "./group-calls.js";
import { HistoryFacts } from "./history-facts.js";
import { CatalogFile } from "./jobs/catalog.js";
import { Dispatcher } from "./jobs/dispatcher.js";
import { PostgresJobSource } from "./jobs/job-source.js";
import { defaultJobSettings, JobEvents, JobOperations, TaskOperations, type JobContext } from "./jobs/operations.js";
import { openLinks } from "./links.js";
import { createRetention } from "./log-retention.js";
import { createSnapshots } from "./log-snapshots.js";
import { logLeaders } from "./log-leaders.js";
import { MovePlanner } from "./move-planner.js";
import { Moves } from "./moves.js";
import { OperatorKeys } from "./operator-keys.js";
import { SiteSetWatch } from "./site-set-watch.js";

const siteSetWaitMs = 60_000;

/**
 * One process of a datacenter, wired by hand: who knows whom is in this file alone. What users see of it is face.ts.
 */
export async function createDatacenter(
  config: Config,
  log: Logger,
  time: Time = systemTime,
  random: Random = systemRandom,
  tracing?: Tracing,
) {
  const { site, node, group, logGeneration: generation } = config;
  const holder = `${node}-${random.token(8)}`;
  const catalog = new CatalogFile(config.catalog);
  const links = await openLinks(config, log);
  const metrics: Metrics = createMetrics();
  const streams = new LogStreams(group, generation, links.routes);
  const siteSets = new SiteSetWatch(streams, time, log);
  // Databases: user writes have a pool of their own, so that they can't starve the lease.
  const databaseOptions = { url: config.databaseUrl ?? "", log };
  const control = new Database({ ...databaseOptions, connections: 5, name: `hothot ${node} control` });
  const data = new Database({ ...databaseOptions, connections: config.databaseConnections, name: `hothot ${node}` });
  const writes = new Database({ ...databaseOptions, connections: 4, name: `hothot ${node} writes`, pipeline: true });
  await databaseReady(control, time, log);
  await control.migrate();
  const progress = progressIn(data, time);
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
  const base: WordGround = {
    group,
    site,
    holder,
    settings: config,
    time,
    log,
    heartbeats: links.heartbeats,
    store,
    votes: store,
    setNumber: () => siteSets.known?.number ?? -1,
    onNewerSet: () => void siteSets.refresh(),
    incarnation: () => control.incarnation,
  };
  const spoken = createWord(base);
  const { coordinator, peers, word } = spoken;
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

  const url = `http://${config.host}:${config.port}`;
  const servedBy = `${site}/${node}`;
  const events: EngineEvents = {
    owned: (shard, at, tenure) => dispatcher.onOwned(shard, at, tenure),
    lost: (shard) => dispatcher.onLost(shard),
    uncertain: (list) => dispatcher.onUncertain(list),
    applied: ({ committedAt, adoptions, differs = [] }, messages) => {
      retention.observe(messages);
      for (const { head, divergent } of adoptions)
        if (divergent > 0) facts.add({ shard: head.shard, epoch: head.epoch, divergent });
      for (const differing of differs) damaged(differing.shard, [], differing);
      for (const [shard, at] of committedAt) {
        const owner = engine.map.get(shard)?.owner;
        if (owner == null) continue;
        const seconds = Math.max(0, time.wall() - at) / 1000;
        metrics.applySeconds.observe({ shard_owner: owner }, seconds);
      }
    },
    tookOver: (count, ms) => {
      metrics.takeovers.inc(count);
      metrics.takeoverSeconds.observe(ms / 1000);
    },
    followed: (shard, at, phasesMs) => facts.add({ shard, epoch: at, phasesMs }),
    inside: (message) => {
      if (message.offered !== undefined) dispatcher.offer(message.offered);
    },
  };
  const pace = new Pace(time, config.backlogBytesPerSecond);
  const callClient = new CallClient({
    group,
    site,
    messengers: links.routes,
    local: () => calls,
    active: () => engine.replicator.holding,
  });
  const facts = new HistoryFacts({
    database: data,
    calls: callClient,
    others: () => datacentersOf(siteSets.set).filter((dc) => dc !== site && peers.state(dc) !== "dead"),
    time,
    log: log.with({ component: "history" }),
  });
  const engine = await createEngine(
    {
      ...base,
      node,
      generation,
      shards,
      partitions,
      url,
      random,
      main: links.main,
      transport: streams,
      leaders: logLeaders(streams),
      restores: new PostgresRestoreStore(data),
      owner: new PostgresOwnerStore(writes),
      replica: new PostgresReplicaStore(data, writes, site, log),
      outbox: new PostgresOutbox(data),
      payloads: new Payloads(streams.objects, time, random),
      siteSet: () => siteSets.set,
      mayAppend: (partition) => !retention.full(partition),
      backlogWaitMs: (bytes) => pace.reserve(bytes),
      room: (shard, durability, deadline) => backlog.room(shard, durability, deadline),
      epochEnds: epochEndsIn(control, time),
      meetAgain: async () => {
        const found = await meetAgain(
          meet({ shards, partitions }),
          () => time.sleep(100),
          log,
          () => stopped.signal.aborted,
        );
        if (found !== undefined) for (const database of [data, writes]) database.adopt(found);
        return found !== undefined;
      },
      carry: async (head, to, timeoutMs) => {
        const deadline = time.monotonic() + timeoutMs;
        const send = async (part: CarriedPart): Promise<number> =>
          (await callClient.call(to, "carry", part, Math.max(1, deadline - time.monotonic()))) ?? 0;
        const [first, ...rest] = await progress(head.shard, nextEpoch(head.epoch), head.tenure);
        const closing = first === undefined ? 0 : await send(first);
        // The first one replaces what was there before; the others come in any order.
        const parts = new PQueue({ concurrency: 8 });
        await parts.addAll(rest.map((part) => () => send(part)));
        return closing;
      },
      opened: (to, shard, at, timeoutMs) =>
        callClient.call(to, "opened", { shard, epoch: at, timeoutMs }, timeoutMs).catch(() => false),
      events,
      tracing,
    },
    spoken,
  );
  for (const database of [control, data, writes]) database.onIncarnation(engine.onIncarnation);
  const { map, leases, publisher, writer, replicator, inside } = engine;
  const damaged = (shard: number, clusters: readonly string[], where: object): void => {
    metrics.digestMismatches.inc();
    log.error("a copy is not what it should be: see `hothot verify`, then `hothot repair`", {
      component: "digest",
      shard,
      clusters,
      ...where,
    });
  };
  const digests = new DigestKeeper({
    site,
    database: data,
    map,
    gate: engine.gate,
    events: engine.written,
    place: (shard) => engine.progress.place(shard),
    time,
    log,
    everyMs: config.digestMs,
    scrubMs: config.scrubMs,
    active: () => replicator.holding,
    onDamage: (shard, clusters) => damaged(shard, clusters, { found: "by the scrub" }),
  });
  const { retention, outboxTrim, payloadSweep } = createRetention({
    config,
    partitions,
    streams,
    data,
    peers,
    engine,
    metrics,
    siteSet: () => siteSets.set,
    time,
    log,
  });
  const snapshots = createSnapshots({
    config,
    partitions,
    links,
    streams,
    data,
    peers,
    engine,
    metrics,
    siteSet: () => siteSets.set,
    time,
    random,
    log,
  });
  const backlog = new Backlog({
    site,
    database: control,
    map,
    time,
    log,
    maxMs: config.maxUnpublishedMs,
    maxBytes: config.maxUnpublishedBytes,
    place: (shard) => engine.progress.place(shard),
    mark: (shard) => publisher.mark(shard),
    unpublishedMs: (shard) => publisher.unpublishedMs(shard),
  });
  const calls: Calls = callsOf({
    site,
    engine,
    data,
    metrics,
    time,
    facts,
    operation: ({ id, cancel }) => moves.local(id, cancel),
    begun: ({ id }) => moves.begun(id),
  });
  const callServer = new CallServer({
    group,
    site,
    messenger: links.main,
    calls,
    log,
    active: () => replicator.holding,
  });

  // Jobs.
  const queries = new Queries(data.db);
  const jobEvents = new JobEvents();
  const settings = { ...defaultJobSettings, leaseMs: config.taskLeaseMs };
  const jobContext: JobContext = { catalog: () => catalog.current, events: jobEvents, settings };
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
  const router: Router<Command, Reply> = new Router<Command, Reply>({
    group,
    site,
    node,
    time,
    log,
    messengers: links.routes,
    map,
    peers,
    changes: engine.changes,
    leaseValid: () => leases.valid,
    tracing,
    executor: new CommandExecutor({
      site,
      servedBy,
      shards,
      writer,
      loads: new LoadWriter({ database: data, gate: engine.gate, events: engine.written, site, time, log }),
      queries,
      jobs,
      tasks,
      keyRetentionMs: config.idempotencyRetentionMs,
      gate: engine.gate,
      ownerIn: (shard, at) => ownerIn(data, shard, at),
      published: (shard, position, at, deadline) =>
        map.get(shard)?.epoch === at
          ? publisher.published(shard, toEpoch(at), toPosition(position), deadline)
          : Promise.resolve(),
      onStaleFinish: () => metrics.staleFinishes.inc(),
    }),
  });

  const has = (role: Config["roles"][number]): boolean => config.roles.includes(role);
  const operations: Service = {
    name: "moves",
    start: () => moves.start(),
    stop: async () => {
      stopped.abort();
      moves.stop();
    },
  };
  const services: Service[] = [
    siteSets,
    operations,
    backlog,
    ...engine.services({ coordinator: has("coordinator"), replicator: has("replicator") }),
    ...(has("replicator") ? [digests, retention, outboxTrim, payloadSweep, ...snapshots, callServer] : []),
    router,
    ...(has("api") ? [dispatcher] : []),
  ];

  const parts = {
    ...engine,
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
    backlog,
    peers,
    word,
    coordinator,
    router,
    queries,
    digests,
    catalog,
    dispatcher,
    jobEvents,
    callClient,
    operatorKeys: new OperatorKeys({
      router,
      map,
      datacenters: () => datacentersOf(siteSets.set),
      queries,
      site,
      servedBy,
      time,
      log,
      retentionMs: config.idempotencyRetentionMs,
    }),
    facts,
    services,
    state: () => engine.readiness.state(),
    worstLag: () => engine.readiness.worstLag(),
    caughtUp: () => engine.readiness.caughtUp(),
    /** After the services have stopped. */
    close: async () => {
      stopped.abort();
      engine.abandon();
      await store.removeNode(node).catch(() => undefined);
      await Promise.allSettled([writes.close(), data.close(), control.close()]);
      await links.close();
    },
  };
  const planner = new MovePlanner(parts, callClient);
  const moves: Moves = new Moves(parts, callClient, planner);
  const failback = new Failback(parts, planner);
  if (has("replicator")) services.push(failback);
  return { ...parts, moves };
}

/** What a process is made of, for the parts of services that stand on all of it. */
export type DatacenterParts = Omit<Awaited<ReturnType<typeof createDatacenter>>, "moves">;
