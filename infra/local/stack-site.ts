import path from "node:path";
import { HothotNode } from "./hothot-node.js";
import type { Links } from "./links.js";
import { natsHeartbeatUser, natsUser } from "./nats-config.js";
import { NatsServer } from "./nats-server.js";
import { PortPlan } from "./ports.js";
import { findPostgres } from "./postgres-binaries.js";
import { PostgresPair } from "./postgres-pair.js";
import { PostgresServer } from "./postgres.js";
import { signalTree, treeOf, waitGone, type ProcessId } from "./processes.js";
import type { SiteEntry, StackFile } from "./stack-file.js";

export interface SitePids {
  readonly node: number[];
  readonly postgres: number[];
  readonly nats: number[];
}

/** One site of a stack: its servers and its hothot processes. */
export class StackSite {
  readonly name: string;
  readonly entry: SiteEntry;
  readonly nats: NatsServer;
  readonly postgres: PostgresServer | undefined;
  /** Of a stack whose databases have standbys: `postgres` and its other half. */
  readonly pair: PostgresPair | undefined;
  readonly nodes: readonly HothotNode[];
  readonly #second: PostgresServer | undefined;
  readonly #stack: StackFile;
  readonly #dir: string;
  readonly #ports: PortPlan;
  readonly #links: Links | undefined;

  constructor(dir: string, stack: StackFile, entry: SiteEntry, links: Links | undefined) {
    this.name = entry.name;
    this.entry = entry;
    this.#stack = stack;
    this.#dir = path.join(dir, entry.name);
    this.#ports = new PortPlan(stack.portBase);
    this.#links = links;
    this.nats = this.#natsServer();
    this.postgres =
      entry.kind === "witness" ? undefined : this.#postgresServer("postgres", this.#ports.postgres(entry.slot));
    this.#second =
      this.postgres === undefined || stack.standby !== true
        ? undefined
        : this.#postgresServer("standby", this.#ports.standby(entry.slot));
    this.pair =
      this.postgres === undefined || this.#second === undefined
        ? undefined
        : new PostgresPair(this.postgres, this.#second, this.#dir);
    const count = entry.kind === "witness" ? 1 : stack.nodes;
    this.nodes = Array.from({ length: count }, (_, i) => this.#node(i + 1));
  }

  /** PostgreSQL and NATS, side by side, where they don't run. */
  async startServers(): Promise<void> {
    const postgres = async (): Promise<void> => {
      if (this.pair !== undefined) return this.pair.start();
      await this.postgres?.initialise();
      await this.postgres?.start();
    };
    await allOf([postgres(), this.nats.start()]);
  }

  async startNodes(): Promise<void> {
    await allOf(this.nodes.map((node) => node.start()));
  }

  async stopNodes(): Promise<void> {
    await allOf(this.nodes.map((node) => node.stop()));
  }

  async stopServers(): Promise<void> {
    await allOf([this.nats.stop(), (this.pair ?? this.postgres)?.stop() ?? Promise.resolve()]);
  }

  /** SIGKILL to everything of this site at once. */
  async crash(): Promise<void> {
    const processes = this.processes();
    // Stopped first, so that none sees another die.
    for (const process_ of processes) signalTree(process_, "SIGSTOP");
    for (const process_ of processes) signalTree(process_, "SIGKILL");
    await Promise.all(processes.map((process_) => waitGone(process_, 10_000)));
  }

  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    for (const process_ of this.processes()) signalTree(process_, signal);
  }

  /** The processes that were started for this site and live. */
  processes(): ProcessId[] {
    return [
      ...this.nodes.map((node) => node.process()),
      ...this.#databases.map((server) => server.process()),
      this.nats.process(),
    ].filter((found) => found !== undefined);
  }

  /** With PostgreSQL's children: they would outlive a stopped parent. */
  pids(): SitePids {
    const trees = (found: (ProcessId | undefined)[]): number[] =>
      found.flatMap((process_) => (process_ === undefined ? [] : treeOf(process_)));
    return {
      node: trees(this.nodes.map((node) => node.process())),
      postgres: trees(this.#databases.map((server) => server.process())),
      nats: trees([this.nats.process()]),
    };
  }

  /** Ports of the parts that don't run yet. */
  portsToTake(): { port: number; what: string }[] {
    const { slot } = this.entry;
    const ports: { port: number; what: string }[] = [];
    this.nodes.forEach((node, i) => {
      if (node.process() === undefined)
        ports.push({ port: this.#ports.http(slot, i + 1), what: `HTTP of ${node.label}` });
    });
    if (this.postgres !== undefined && this.postgres.process() === undefined)
      ports.push({ port: this.#ports.postgres(slot), what: `PostgreSQL of ${this.name}` });
    if (this.#second !== undefined && this.#second.process() === undefined)
      ports.push({ port: this.#ports.standby(slot), what: `the PostgreSQL standby of ${this.name}` });
    if (this.nats.process() === undefined) {
      ports.push({ port: this.#ports.natsClient(slot), what: `NATS of ${this.name}` });
      ports.push({ port: this.#ports.natsCluster(slot), what: `NATS routes of ${this.name}` });
      ports.push({ port: this.#ports.natsMonitor(slot), what: `NATS monitoring of ${this.name}` });
    }
    return ports;
  }

  /** The HOTHOT_ variables of node `n<number>`. */
  settings(number: number): Record<string, string> {
    const { slot, kind } = this.entry;
    const { worker, cooprPort, env } = this.#stack;
    const [postgres, standby] = this.#databases;
    return {
      ...env,
      HOTHOT_GROUP: "local",
      ...(this.#stack.generation === undefined ? {} : { HOTHOT_LOG_GENERATION: String(this.#stack.generation) }),
      ...(kind === "witness"
        ? { HOTHOT_WITNESS: this.name, HOTHOT_DATA_DIR: path.join(this.#dir, "data") }
        : { HOTHOT_DC: this.name }),
      ...(postgres === undefined
        ? {}
        : { HOTHOT_DATABASE_URL: standby === undefined ? postgres.url() : postgres.urlWith(standby) }),
      HOTHOT_NODE: `n${number}`,
      HOTHOT_NATS_URLS: this.#natsUrls().join(","),
      HOTHOT_NATS_HEARTBEAT_USER: natsHeartbeatUser,
      HOTHOT_PORT: String(this.#ports.http(slot, number)),
      ...(cooprPort === null || number > 1 || kind === "witness"
        ? {}
        : { HOTHOT_COOPR_PORT: String(cooprPort + slot) }),
      ...(worker ? {} : { HOTHOT_ROLES: "api,replicator,coordinator" }),
    };
  }

  /** The own site's server first. */
  #natsUrls(): string[] {
    const others = this.#stack.sites.filter((site) => site.name !== this.name);
    return [
      this.nats.url(natsUser),
      ...others.map((site) =>
        this.nats.url(natsUser, this.#links?.clientPort(this.name, site.name) ?? this.#ports.natsClient(site.slot)),
      ),
    ];
  }

  #natsServer(): NatsServer {
    const { slot } = this.entry;
    const others = this.#stack.sites.filter((site) => site.name !== this.name);
    const routes = this.#links?.routePorts(this.name) ?? others.map((site) => this.#ports.natsCluster(site.slot));
    // A server reckons with as many members as it has routes, so one that is dialled by others lists itself instead; it ignores such a route.
    while (others.length > 0 && routes.length < this.#stack.sites.length) routes.push(this.#ports.natsCluster(slot));
    // A generation has a cluster and a store of its own: a server that was left can't come back with the old log.
    const generation = this.#stack.generation ?? 1;
    const own = generation === 1 ? "" : `-g${generation}`;
    return new NatsServer({
      name: this.name,
      cluster: `hothot${own}`,
      clientPort: this.#ports.natsClient(slot),
      clusterPort: this.#ports.natsCluster(slot),
      monitorPort: this.#ports.natsMonitor(slot),
      password: this.#stack.password,
      routes: routes.map((port) => `127.0.0.1:${port}`),
      // Servers tell each other where others are reached; over proxies that must lead nowhere, or they would go round them.
      ...(this.#links === undefined ? {} : { advertise: "127.0.0.1:1" }),
      dir: path.join(this.#dir, `nats${own}`),
      ...this.#files("nats"),
    });
  }

  get #databases(): PostgresServer[] {
    return [this.postgres, this.#second].filter((server) => server !== undefined);
  }

  #postgresServer(part: "postgres" | "standby", port: number): PostgresServer {
    return new PostgresServer({
      binaries: () => findPostgres(this.#stack.postgres ?? undefined),
      dir: path.join(this.#dir, part),
      port,
      password: this.#stack.password,
      ...this.#files(part),
    });
  }

  #node(number: number): HothotNode {
    return new HothotNode({
      label: `${this.name}/n${number}`,
      port: this.#ports.http(this.entry.slot, number),
      settings: this.settings(number),
      ...this.#files(`n${number}`),
    });
  }

  #files(part: string): { logFile: string; pidFile: string } {
    return { logFile: path.join(this.#dir, `${part}.log`), pidFile: path.join(this.#dir, `${part}.pid`) };
  }
}

/** Like Promise.all, but waits for the others before it fails, so that nothing goes on behind the caller's back. */
export async function allOf(work: readonly Promise<unknown>[]): Promise<void> {
  for (const result of await Promise.allSettled(work)) if (result.status === "rejected") throw result.reason;
}
