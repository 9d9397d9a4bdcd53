import { createServer, type Server } from "node:net";
import { FatalError } from "../errors.js";

/**
 * The plan of a stack's ports, all from its base up to base + 99. `slot` is a site's number: 1 to 8 for datacenters, 9 for the witness.
 *
 * | base + | what |
 * |---|---|
 * | 0 | held by a test run that owns the range |
 * | slot | HTTP of node n1 |
 * | 10 | control of the link proxies |
 * | 10 + slot | PostgreSQL |
 * | 20 | held during a command that starts or stops parts |
 * | 20 + slot | NATS clients |
 * | 30 + slot | NATS routes |
 * | 40 + slot | NATS monitoring |
 * | 50 + slot | PostgreSQL standby |
 * | 60 + slot | HTTP of node n2 |
 * | 70 to 99 | link proxies (three for each pair of sites), from below; HTTP of n3, n4, n5, from above |
 */
export class PortPlan {
  readonly base: number;

  constructor(base: number) {
    this.base = base;
  }

  get range(): number {
    return this.base;
  }
  get control(): number {
    return this.base + 10;
  }
  get command(): number {
    return this.base + 20;
  }
  http(slot: number, node: number): number {
    if (node === 1) return this.base + slot;
    return this.base + (node === 2 ? 60 : 120 - 10 * node) + slot;
  }
  postgres(slot: number): number {
    return this.base + 10 + slot;
  }
  natsClient(slot: number): number {
    return this.base + 20 + slot;
  }
  natsCluster(slot: number): number {
    return this.base + 30 + slot;
  }
  natsMonitor(slot: number): number {
    return this.base + 40 + slot;
  }
  standby(slot: number): number {
    return this.base + 50 + slot;
  }
  /** The proxies of the link between the sites at places `a` < `b` of the stack's list (from 0): routes, clients of a at b, clients of b at a. */
  link(a: number, b: number): { readonly route: number; readonly aToB: number; readonly bToA: number } {
    const first = this.base + 70 + 3 * ((b * (b - 1)) / 2 + a);
    return { route: first, aToB: first + 1, bToA: first + 2 };
  }
}

export const maxSites = 9;
export const maxProxiedSites = 5;
export const maxNodes = 5;

/** Whether so many nodes of a datacenter and so many proxied sites fit into the range together. */
export function fits(nodes: number, proxiedSites: number): boolean {
  const proxies = (3 * proxiedSites * (proxiedSites - 1)) / 2;
  const room = nodes <= 2 ? 30 : 51 - 10 * nodes;
  return proxies <= room;
}

/** Listens on the port, so that nobody else can; undefined when somebody does. The listener does not keep the process alive. */
export function holdPort(port: number): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE" || error.code === "EACCES") resolve(undefined);
      else reject(error);
    });
    server.listen({ port, host: "127.0.0.1", exclusive: true }, () => resolve(server.unref()));
  });
}

export async function isFree(port: number): Promise<boolean> {
  const server = await holdPort(port);
  if (server === undefined) return false;
  await new Promise((resolve) => server.close(resolve));
  return true;
}

/** A process that was just killed holds its ports until the system has cleared it away. */
const releaseMs = 3_000;

/** @throws FatalError port_in_use for the first port that is taken, and stays so */
export async function requireFree(ports: readonly { readonly port: number; readonly what: string }[]): Promise<void> {
  const deadline = performance.now() + releaseMs;
  for (const { port, what } of ports) {
    let free = await isFree(port);
    while (!free && performance.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      free = await isFree(port);
    }
    if (!free) {
      throw new FatalError(
        "port_in_use",
        `Port ${port} (${what}) is in use by another program.`,
        `End it (\`lsof -i :${port}\` or \`ss -ltnp\` shows it), or start with another --port-base.`,
      );
    }
  }
}
