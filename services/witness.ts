import { createServer, type Server } from "node:http";
import type { Time } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import { FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { LogStreams } from "../infra/nats/log-streams.js";
import type { Random } from "../infra/random.js";
import { ServiceGroup } from "../infra/service.js";
import { Coordinator } from "../shards/coordinator.js";
import { FileVotes } from "../shards/file-votes.js";
import { Peers } from "../shards/peers.js";
import { SiteWord } from "../shards/site-word.js";
import { openLinks } from "./links.js";
import { SiteSetWatch } from "./site-set-watch.js";

const siteSetWaitMs = 60_000;

/** `/livez`, and `/readyz` once the witness gives its word. */
async function listen(config: Config, ready: () => boolean): Promise<Server> {
  const server = createServer((request, response) => {
    const known = request.url === "/livez" || request.url === "/readyz";
    const status = !known ? 404 : request.url === "/readyz" && !ready() ? 503 : 200;
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify({ ready: ready() }));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) =>
      reject(
        new FatalError(
          "port_in_use",
          `the witness can't listen on ${config.host}:${config.port}: ${error.message}`,
          "Set another HOTHOT_PORT.",
          error,
        ),
      ),
    );
    server.listen(config.port, config.host, resolve);
  });
  return server;
}

/** A site without data: hears heartbeats, promises, and votes; its NATS server holds and can lead the log. */
export async function serveWitness(
  config: Config,
  log: Logger,
  time: Time,
  random: Random,
  stopped: Promise<string>,
): Promise<void> {
  const { site, group } = config;
  const votes = new FileVotes(config.dataDir ?? "", group, site);
  const links = await openLinks(config, log);
  try {
    const siteSets = new SiteSetWatch(new LogStreams(group, config.logGeneration, links.routes), time, log);
    const first = await siteSets.first(siteSetWaitMs);
    if (!first.sites.some((each) => each.name === site && each.witness))
      throw new FatalError("unknown_witness", `the group has no witness '${site}'`, "Mend HOTHOT_WITNESS.");
    const setNumber = (): number => siteSets.set.number;
    const word = new SiteWord({
      site,
      leaseMs: config.leaseMs,
      termMs: config.coordinatorTermMs,
      marginMs: config.marginMs,
      clock: time,
      votes,
      setNumber,
      incarnation: () => votes.incarnation,
    });
    const coordinator = new Coordinator({
      group,
      site,
      holder: `${config.node}-${random.token(8)}`,
      termMs: config.coordinatorTermMs,
      time,
      log,
      messenger: links.heartbeats,
      word,
      peers: new Peers(time, config.heartbeatMs, config.leaseMs),
      locks: null,
      setNumber,
      onNewerSet: () => void siteSets.refresh(),
    });
    const services = new ServiceGroup([siteSets, coordinator]);
    await services.start();
    const probes = await listen(config, () => word.speaks);
    log.info("witnesses", { group, incarnation: votes.incarnation });
    log.info("stops", { signal: await stopped });
    probes.close();
    probes.closeAllConnections();
    await services.stop();
  } finally {
    votes.release();
    await links.close();
  }
}
