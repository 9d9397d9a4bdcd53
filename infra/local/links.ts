import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";
import { lastLines } from "./logs.js";
import type { PortPlan } from "./ports.js";
import { endProcess, isAlive, launch, running, type ProcessId } from "./processes.js";
import { until } from "./wait.js";

/** What the process of the proxies is told. */
export interface LinkPlan {
  readonly rttMs: number;
  readonly controlPort: number;
  readonly token: string;
  readonly links: readonly {
    readonly a: string;
    readonly b: string;
    readonly ports: readonly {
      readonly listen: number;
      readonly target: number;
      /** Which end connects. */
      readonly dialer: "a" | "b";
    }[];
  }[];
}

export interface LinkState {
  readonly a: string;
  readonly b: string;
  readonly cut: boolean;
}

export interface LinkOptions {
  readonly dir: string;
  readonly ports: PortPlan;
  readonly rttMs: number;
  readonly token: string;
  /** In the order in which they joined. */
  readonly sites: readonly { readonly name: string; readonly slot: number }[];
}

/** The links between a stack's sites, carried by one process that can delay and cut them. */
export class Links {
  readonly #options: LinkOptions;
  readonly #pidFile: string;
  readonly #logFile: string;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#pidFile = path.join(options.dir, "links.pid");
    this.#logFile = path.join(options.dir, "links.log");
  }

  process(): ProcessId | undefined {
    return running(this.#pidFile);
  }

  portsUsed(): { port: number; what: string }[] {
    const listens = this.#plan().links.flatMap((link) =>
      link.ports.map(({ listen }) => ({ port: listen, what: `the link ${link.a}:${link.b}` })),
    );
    return [{ port: this.#options.ports.control, what: "the links' control" }, ...listens];
  }

  /** Where a client at `from` reaches the NATS server of `to`. */
  clientPort(from: string, to: string): number {
    const [a, b] = [this.#place(from), this.#place(to)];
    const link = this.#options.ports.link(Math.min(a, b), Math.max(a, b));
    return a < b ? link.aToB : link.bToA;
  }

  /** The ports by which the server of `name` dials those before it; those after it dial it, so that each pair has one route. */
  routePorts(name: string): number[] {
    const b = this.#place(name);
    return this.#options.sites.slice(0, b).map((_, a) => this.#options.ports.link(a, b).route);
  }

  async start(): Promise<void> {
    if (this.process() !== undefined) return;
    const planFile = path.join(this.#options.dir, "links.json");
    mkdirSync(this.#options.dir, { recursive: true });
    writeFileSync(planFile, `${JSON.stringify(this.#plan(), undefined, 2)}\n`, { mode: 0o600 });
    const started = await launch({
      command: process.execPath,
      args: ["--enable-source-maps", path.join(import.meta.dirname, "link-proxy-main.js"), planFile],
      logFile: this.#logFile,
      pidFile: this.#pidFile,
    });
    const ready = await until(
      async () => !isAlive(started) || (await this.#ask("GET", "/").catch(() => undefined)) !== undefined,
      15_000,
    );
    if (ready && isAlive(started)) return;
    throw new FatalError(
      "links_failed",
      `The links' process does not start:\n${lastLines(this.#logFile, 5)}`,
      `See ${this.#logFile}; another port: --port-base.`,
    );
  }

  async stop(): Promise<void> {
    const process_ = this.process();
    if (process_ !== undefined) await endProcess(process_, "SIGKILL", 5000);
  }

  /** Cuts the link between two sites, or all links of `a`; one way: only what `a` sends is lost. Gives the state of all links. */
  cut(a: string, b?: string, oneWay = false): Promise<LinkState[]> {
    return this.#change("cut", a, b, oneWay);
  }

  heal(a: string, b?: string): Promise<LinkState[]> {
    return this.#change("heal", a, b);
  }

  state(): Promise<LinkState[]> {
    return this.#ask("GET", "/");
  }

  async #change(verb: "cut" | "heal", a: string, b?: string, oneWay = false): Promise<LinkState[]> {
    this.#place(a);
    if (b !== undefined) this.#place(b);
    if (this.process() === undefined)
      throw new FatalError("links_failed", "The links' process is dead.", "Start it with `hothot up`.");
    const query = new URLSearchParams({ a, ...(b === undefined ? {} : { b }), ...(oneWay ? { oneWay: "true" } : {}) });
    return this.#ask("POST", `/${verb}?${query.toString()}`);
  }

  async #ask(method: string, where: string): Promise<LinkState[]> {
    const url = `http://127.0.0.1:${this.#options.ports.control}${where}`;
    const answer = await fetch(url, {
      method,
      headers: { authorization: `Bearer ${this.#options.token}` },
      signal: AbortSignal.timeout(5000),
    });
    if (!answer.ok)
      throw new FatalError(
        "links_failed",
        `The links' process answers ${answer.status}.`,
        "Is it that of another stack? Use another --port-base.",
      );
    return (await answer.json()) as LinkState[];
  }

  #plan(): LinkPlan {
    const { ports, rttMs, token, sites } = this.#options;
    const links = sites.flatMap((siteB, b) =>
      sites.slice(0, b).map((siteA, a) => {
        const link = ports.link(a, b);
        return {
          a: siteA.name,
          b: siteB.name,
          ports: [
            { listen: link.route, target: ports.natsCluster(siteA.slot), dialer: "b" as const },
            { listen: link.aToB, target: ports.natsClient(siteB.slot), dialer: "a" as const },
            { listen: link.bToA, target: ports.natsClient(siteA.slot), dialer: "b" as const },
          ],
        };
      }),
    );
    return { rttMs, controlPort: ports.control, token, links };
  }

  #place(name: string): number {
    const place = this.#options.sites.findIndex((site) => site.name === name);
    if (place < 0)
      throw new FatalError(
        "no_such_site",
        `There is no site ${name}.`,
        `The sites are ${this.#options.sites.map((site) => site.name).join(", ")}.`,
      );
    return place;
  }
}
