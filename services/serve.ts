import type { Time } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import { EventLoop } from "../infra/event-loop.js";
import type { Logger } from "../infra/logger.js";
import type { Random } from "../infra/random.js";
import type { Tracing } from "../infra/tracing.js";
import { ServiceGroup, type Service } from "../infra/service.js";
import { KeyExpiry } from "../replication/key-expiry.js";
import { SnapshotStore } from "../replication/snapshot-store.js";
import { datacentersOf } from "../shards/site-set.js";
import { createAccess, TenantWorkers } from "./access/index.js";
import type { Command, Reply, RequestContext } from "./api.js";
import { createCoopr } from "./coopr/index.js";
import { Bulk } from "./bulk.js";
import { createDatacenter } from "./datacenter.js";
import { Membership } from "./membership.js";
import { keyed } from "./operator-keys.js";
import { StreamKeeper } from "./stream-keeper.js";
import { DivergentOperations } from "./divergent.js";
import { Face } from "./face.js";
import { createHttpServer } from "./http/index.js";
import { FinishStore } from "./jobs/finish-store.js";
import { BuiltInWorker } from "./jobs/builtin-worker.js";
import { createUpkeep } from "./jobs/upkeep.js";
import { Repairer } from "./repair.js";
import { Verifier } from "./verify.js";
import { serveWitness } from "./witness.js";

/** Runs one process of a datacenter (or a witness) until it is told to stop (SIGINT, SIGTERM). */
export async function serve(config: Config, log: Logger, time: Time, random: Random, tracing?: Tracing): Promise<void> {
  const stopped = new Promise<string>((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => resolve(signal));
  });
  process.on("unhandledRejection", (error) => log.error("unhandled rejection", { error }));
  if (!config.datacenter) return serveWitness(config, log, time, random, stopped);
  const parts = await createDatacenter(config, log, time, random, tracing);
  const verifier = new Verifier({
    group: config.group,
    site: config.site,
    shards: parts.shards,
    database: parts.data,
    messenger: parts.links.main,
    time,
    log,
    datacenters: () => datacentersOf(parts.siteSets.set),
    owner: (shard) => parts.map.get(shard as never)?.owner ?? null,
    onMismatch: () => parts.metrics.digestMismatches.inc(),
    tell: (shards) => parts.digests.tell(shards),
  });
  const repairer = new Repairer({
    group: config.group,
    site: config.site,
    shards: parts.shards,
    database: parts.data,
    messenger: parts.links.main,
    time,
    log,
    owner: (shard) => parts.map.get(shard as never)?.owner ?? null,
    copies: new SnapshotStore(parts.data, config.site),
    digests: (shard) => verifier.digests(shard),
    tell: async (shard) => (await verifier.tell([shard])).get(shard),
  });
  const guard = createAccess(parts);
  parts.moves.onEnd = guard.ended;
  const keyExpiry = new KeyExpiry({
    database: parts.data,
    time,
    log,
    retentionMs: config.idempotencyRetentionMs,
    active: () => parts.replicator.holding,
  });
  const loop = new EventLoop(time);
  const finishes = new FinishStore(parts.data);
  const face = new Face(parts, verifier, guard.quotas, guard.writes, loop, finishes);
  // For callers in this process: what they do next (a stored finish goes, a provisioner is answered) stands on the answer.
  const execute = async (context: RequestContext, command: Command): Promise<Reply> => {
    const reply = await face.execute(context, command);
    reply.confirm?.();
    return reply;
  };
  const divergent = new DivergentOperations(parts, face);
  const bulk = new Bulk({
    shards: parts.shards,
    time,
    load: (context, shard, rows) => face.load(context, shard, rows),
    newId: (tenant, key) => face.newId(tenant, key),
    token: () => random.token(16),
  });
  const membership = new Membership(parts);
  const streamKeeper = new StreamKeeper({
    site: config.site,
    partitions: parts.partitions,
    streams: parts.streams,
    map: parts.map,
    siteSet: () => parts.siteSets.set,
    time,
    log,
    active: () => parts.replicator.holding && parts.leases.valid,
  });
  const http = createHttpServer({
    datacenter: face,
    config,
    time,
    random,
    log,
    tracing,
    admit: (request, need) => guard.access.admit(request, need),
    extensions: guard.extend(
      keyed(
        {
          repair: async (_context, what) => ({
            status: 200,
            body: await repairer.repair(what),
            servedBy: parts.servedBy,
          }),
          bulk: (context, rows, signal) => bulk.run(context, rows, signal),
          startMove: (context, kind, request) => parts.moves.startMove(context, kind, request),
          getMove: (context, kind, id) => parts.moves.getMove(context, kind, id),
          cancelMove: (context, kind, id) => parts.moves.cancelMove(context, kind, id),
          replayDivergent: (context, id) => divergent.replay(context, id),
          discardDivergent: (context, id) => divergent.discard(context, id),
          addDatacenter: (context, name) => membership.add(context, name),
          removeDatacenter: (context, name) => membership.remove(context, name),
          setFailover: (context, paused) => parts.moves.setFailover(context, paused),
        },
        parts.operatorKeys,
      ),
    ),
    observe: (method, route, status) => parts.metrics.httpRequests.inc({ method, route, status: String(status) }),
  });
  const api: Service = {
    name: "http",
    start: async () => {
      await http.start();
    },
    drain: () => http.drain(),
    stop: () => http.stop(),
  };
  const builtIn = (tenant: string): BuiltInWorker =>
    new BuiltInWorker({
      url: parts.url,
      token: guard.access.innerToken(tenant),
      id: `built-in-${config.site}-${config.node}`,
      concurrency: config.workerConcurrency,
      taskMs: config.simulatedTaskMs,
      failurePercent: config.simulatedFailurePercent,
      time,
      random,
      log,
    });
  const worker = new TenantWorkers(() => guard.access.tenants(), builtIn, time);
  const group = new ServiceGroup([
    loop,
    ...parts.services,
    ...guard.services,
    ...(config.roles.includes("coordinator") ? [membership] : []),
    ...(config.roles.includes("replicator") ? [repairer, verifier, keyExpiry, streamKeeper] : []),
    ...createUpkeep(parts, execute, finishes),
    ...createCoopr(parts, execute, finishes),
    ...(config.roles.includes("api") ? [api] : []),
    ...(config.roles.includes("api") && config.roles.includes("worker") ? [worker] : []),
  ]);
  try {
    await group.start();
    guard.access.announce();
    log.info("serves", { url: parts.url, shards: parts.shards });
    const left = parts.siteSets.gone(config.site).then(() => "removed from the group");
    log.info("stops", { signal: await Promise.race([stopped, left]) });
    // Before all else, so that nobody is sent here while the others stop.
    http.leave();
    await group.drain();
  } finally {
    await group.stop();
    await parts.close();
  }
}
