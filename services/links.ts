import type { Config } from "../infra/config.js";
import type { Logger } from "../infra/logger.js";
import { BackgroundLink } from "../infra/nats/background-link.js";
import { type Link } from "../infra/nats/messaging.js";
import { NatsLink } from "../infra/nats/nats-link.js";

/** A process's connections to the group's NATS servers. */
export interface Links {
  /** The own site's server, or another one while that is down. */
  readonly main: NatsLink;
  /** Heartbeats and votes, in an account with a route of its own, so that bulk data can't delay them. */
  readonly heartbeats: NatsLink;
  /** `main`, then one connection to each other site's server. */
  readonly routes: readonly Link[];
  close(): Promise<void>;
}

/** A silent server is left well within a lease. */
const heartbeatPingMs = 300;
const firstConnectionMs = 30_000;

/** @throws FatalError nats_unreachable, nats_refused */
export async function openLinks(config: Config, log: Logger): Promise<Links> {
  const name = `${config.site}/${config.node}`;
  const options = { servers: config.natsUrls, waitMs: firstConnectionMs, log: log.with({ component: "nats" }) };
  const main = await NatsLink.open({ ...options, name });
  const heartbeats = await NatsLink.open({
    ...options,
    name: `${name} heartbeats`,
    pingMs: heartbeatPingMs,
    ...(config.natsHeartbeatUser === undefined ? {} : { user: config.natsHeartbeatUser }),
  });
  const others = config.natsUrls
    .slice(1)
    .map((server) => new BackgroundLink({ servers: [server], name: `${name} relay`, log: options.log }));
  const all = [main, heartbeats, ...others];
  return {
    main,
    heartbeats,
    routes: [main, ...others],
    close: async () => {
      await Promise.all(all.map((link) => link.close()));
    },
  };
}
