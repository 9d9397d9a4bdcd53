export const natsUser = "hothot";
export const natsHeartbeatUser = "hothot-hb";

export interface NatsConfig {
  /** The site's name; also the server's. */
  readonly name: string;
  /** Servers of another cluster's name are refused. */
  readonly cluster: string;
  readonly clientPort: number;
  readonly clusterPort: number;
  readonly monitorPort: number;
  readonly storeDir: string;
  readonly password: string;
  /** host:port of the servers that this one dials. With none it is no cluster: a cluster of one never elects a leader. */
  readonly routes: readonly string[];
  /** What gossip tells about this server's routes. */
  readonly advertise?: string;
}

/** The configuration of one site's nats-server in a cluster that stretches over all sites. */
export function natsConfig(config: NatsConfig): string {
  return `server_name: ${quoted(config.name)}
server_tags: [${quoted(`site:${config.name}`)}]
listen: "127.0.0.1:${config.clientPort}"
http: "127.0.0.1:${config.monitorPort}"
max_payload: 1048576
max_pending: 67108864
write_deadline: "5s"
ping_interval: "5s"
ping_max: 2
lame_duck_duration: "30s"
jetstream {
  store_dir: ${quoted(config.storeDir)}
  max_memory_store: 268435456
  max_file_store: 53687091200
  # The default syncs every two minutes, and an acknowledged append would be lost with the power.
  sync_interval: always
  # Replicas of a stream land in different sites.
  unique_tag: "site:"
}
accounts {
  HOTHOT { jetstream: enabled, users: [{ user: ${quoted(natsUser)}, password: ${quoted(config.password)} }] }
  HB { users: [{ user: ${quoted(natsHeartbeatUser)}, password: ${quoted(config.password)} }] }
  SYS { users: [{ user: "sys", password: ${quoted(config.password)} }] }
}
system_account: SYS
${config.routes.length === 0 ? "" : clusterBlock(config)}`;
}

function clusterBlock(config: NatsConfig): string {
  const routes = config.routes.map((address) => quoted(`nats://route:${config.password}@${address}`));
  return `cluster {
  name: ${quoted(config.cluster)}
  listen: "127.0.0.1:${config.clusterPort}"
  ${config.advertise === undefined ? "" : `advertise: ${quoted(config.advertise)}`}
  # Clients know the sites' addresses; told others, they would go round a proxy between sites.
  no_advertise: true
  authorization { user: "route", password: ${quoted(config.password)}, timeout: 5 }
  # Heartbeats and votes have a route of their own, so that bulk data can't delay them.
  accounts: [HB]
  ping_interval: "2s"
  ping_max: 2
  routes: [${routes.join(", ")}]
}
`;
}

function quoted(text: string): string {
  return JSON.stringify(text);
}
