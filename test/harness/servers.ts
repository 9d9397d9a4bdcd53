import { randomBytes } from "node:crypto";
import path from "node:path";
import { createDatabase } from "../../infra/local/database.js";
import { NatsServer } from "../../infra/local/nats-server.js";
import { PortPlan } from "../../infra/local/ports.js";
import { findPostgres } from "../../infra/local/postgres-binaries.js";
import { PostgresServer } from "../../infra/local/postgres.js";
import { signalTree, waitGone, type ProcessId } from "../../infra/local/processes.js";
import { until } from "../../infra/local/wait.js";
import { endFolder, freshFolder } from "./folder.js";
import { claimPorts } from "./ports.js";

/** Acts on one server's processes, all at once. */
export interface TestServer {
  /** SIGKILL. */
  kill(): Promise<void>;
  /** SIGSTOP, until `resume`. */
  pause(): void;
  resume(): void;
  /** Starts it again on its data when it is dead. */
  restart(): Promise<void>;
}

export interface TestPostgres extends TestServer {
  /** Of the database `hothot`. */
  readonly url: string;
  readonly data: string;
  stop(): Promise<void>;
}

/** A throw-away PostgreSQL server with an empty database `hothot`. Takes about a second. */
export async function startPostgres(settings: Readonly<Record<string, string>> = {}): Promise<TestPostgres> {
  const ports = await claimPorts();
  const dir = freshFolder("postgres");
  const folder = process.env["HOTHOT_POSTGRES"];
  const server = new PostgresServer({
    binaries: () => findPostgres(folder === "" ? undefined : folder),
    dir,
    port: new PortPlan(ports.base).postgres(1),
    password: randomBytes(12).toString("hex"),
    logFile: path.join(dir, "postgres.log"),
    pidFile: path.join(dir, "postgres.pid"),
    settings,
  });
  await server.initialise();
  await server.start();
  return {
    url: server.url(),
    data: path.join(dir, "data"),
    ...actions(
      () => server.process(),
      () => server.start(),
    ),
    async stop() {
      await endFolder(dir);
      await ports.release();
    },
  };
}

let databases = 0;

/** A new, empty database in a running server; gives its URL. */
export function freshDatabase(server: { readonly url: string }): Promise<string> {
  return createDatabase(server.url, `test_${process.pid}_${++databases}`);
}

export interface TestNats {
  /** Site names, in order. */
  readonly names: readonly string[];
  /** URLs for a node of `site`: its own server first, then the others. */
  urls(site: string): string[];
  /** One server's own URL; `sys` for the system account. */
  url(site: string, user?: "hothot" | "hothot-hb" | "sys"): string;
  /** The server's monitoring, such as `${monitor(site)}/jsz`. */
  monitor(site: string): string;
  site(site: string): TestServer;
  stop(): Promise<void>;
}

/** A cluster of `n` nats-servers with JetStream, one a site; resolves once it has a JetStream leader and all its members. */
export async function startNats(
  n: number,
  names: readonly string[] = ["east", "central", "west", "north", "south"].slice(0, n),
): Promise<TestNats> {
  const ports = await claimPorts();
  const plan = new PortPlan(ports.base);
  const dir = freshFolder("nats");
  const password = randomBytes(12).toString("hex");
  const servers = new Map(
    names.map((name, i) => {
      const server = new NatsServer({
        name,
        cluster: "hothot",
        clientPort: plan.natsClient(i + 1),
        clusterPort: plan.natsCluster(i + 1),
        monitorPort: plan.natsMonitor(i + 1),
        password,
        routes: names.flatMap((_, j) => (j === i ? [] : [`127.0.0.1:${plan.natsCluster(j + 1)}`])),
        dir: path.join(dir, name),
        logFile: path.join(dir, `${name}.log`),
        pidFile: path.join(dir, `${name}.pid`),
      });
      return [name, server];
    }),
  );
  const get = (site: string): NatsServer => {
    const server = servers.get(site);
    if (server === undefined) throw new Error(`no site ${site}`);
    return server;
  };
  await Promise.all([...servers.values()].map((server) => server.start()));
  await waitForJetStream([...servers.values()], 60_000);
  return {
    names,
    urls: (site) =>
      [get(site), ...[...servers.values()].filter((server) => server.name !== site)].map((server) => server.url()),
    url: (site, user = "hothot") => get(site).url(user),
    monitor: (site) => get(site).monitorUrl,
    site: (site) =>
      actions(
        () => get(site).process(),
        () => get(site).start(),
      ),
    async stop() {
      await endFolder(dir);
      await ports.release();
    },
  };
}

/** Waits until the servers have elected a JetStream leader that knows all of them. */
export async function waitForJetStream(servers: readonly { readonly monitorUrl: string }[], ms: number): Promise<void> {
  const done = await until(
    async () =>
      (await Promise.all(servers.map((server) => knowsAll(server.monitorUrl, servers.length)))).every(Boolean),
    ms,
    50,
  );
  if (done === undefined) throw new Error(`the NATS cluster has no JetStream leader with all members after ${ms} ms`);
}

async function knowsAll(monitorUrl: string, size: number): Promise<boolean> {
  try {
    const answer = await fetch(`${monitorUrl}/jsz`, { signal: AbortSignal.timeout(1000) });
    const { meta_cluster: meta } = (await answer.json()) as {
      meta_cluster?: { leader?: string; cluster_size?: number };
    };
    return size === 1 || (meta?.leader !== undefined && meta.leader !== "" && meta.cluster_size === size);
  } catch {
    return false;
  }
}

function actions(process_: () => ProcessId | undefined, start: () => Promise<unknown>): TestServer {
  const signal = (name: "SIGSTOP" | "SIGCONT"): void => {
    const found = process_();
    if (found !== undefined) signalTree(found, name);
  };
  return {
    async kill() {
      const found = process_();
      if (found === undefined) return;
      signalTree(found, "SIGKILL");
      await waitGone(found, 5000);
    },
    pause: () => signal("SIGSTOP"),
    resume: () => signal("SIGCONT"),
    async restart() {
      await start();
    },
  };
}
