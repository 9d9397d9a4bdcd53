import { existsSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";
import { createLog } from "./create-log.js";
import { requireMainProgram } from "./hothot-node.js";
import { Links, type LinkState } from "./links.js";
import { holdPort, PortPlan, requireFree } from "./ports.js";
import { forgetServer } from "./nats-members.js";
import {
  addedSite,
  changedStack,
  entryFor,
  newStack,
  readStackFile,
  regenerated,
  requireRoom,
  writeStackFile,
  type SiteEntry,
  type StackFile,
  type StackOptions,
} from "./stack-file.js";
import { allOf, StackSite, type SitePids } from "./stack-site.js";
import { until } from "./wait.js";

export type Say = (text: string) => void;

/** Milliseconds that a command waits for another one on the same stack. */
const commandWaitMs = 120_000;
/** Milliseconds that a start may take until every datacenter serves. */
const readyMs = 90_000;

/** A whole group on this machine: every site with its servers and hothot processes, in one folder. Processes outlive the command. */
export class LocalStack {
  readonly dir: string;
  #file: StackFile;

  private constructor(dir: string, file: StackFile) {
    this.dir = dir;
    this.#file = file;
  }

  /** The stack in `dir`, running or not. @throws FatalError no_stack */
  static open(dir: string): LocalStack {
    const stack = LocalStack.find(dir);
    if (stack === undefined)
      throw new FatalError(
        "no_stack",
        `There is no stack in ${dir}.`,
        "Start one with `hothot up`, or name its folder with --dir.",
      );
    return stack;
  }

  static find(dir: string): LocalStack | undefined {
    const full = path.resolve(dir);
    const file = readStackFile(full);
    return file === undefined ? undefined : new LocalStack(full, file);
  }

  /**
   * Starts what does not run of the stack in `dir`, which is made when there is none, and waits until every datacenter serves.
   * @throws FatalError with the way out
   */
  static async up(dir: string, options: StackOptions, say: Say = () => undefined): Promise<LocalStack> {
    const full = path.resolve(dir);
    const before = readStackFile(full);
    const wanted = before === undefined ? newStack(options) : changedStack(full, before, options);
    requireRoom(full);
    const stack = new LocalStack(full, before ?? wanted);
    await stack.#exclusively(say, async () => {
      const wasRunning = before !== undefined && stack.isRunning();
      if (wasRunning && !same(before, wanted)) {
        throw new FatalError(
          "stack_running",
          `The stack in ${full} runs with other options.`,
          "Stop it first (`hothot down`), or leave the options out.",
        );
      }
      stack.#file = wanted;
      try {
        await stack.#startAll(say);
      } catch (error) {
        // Half a stack is of no use, but what ran before stays.
        if (!wasRunning) await stack.stopNow();
        throw error;
      }
    });
    return stack;
  }

  get file(): StackFile {
    return this.#file;
  }

  get sites(): StackSite[] {
    const links = this.links;
    return this.#file.sites.map((entry) => new StackSite(this.dir, this.#file, entry, links));
  }

  get datacenters(): StackSite[] {
    return this.sites.filter((site) => site.entry.kind === "datacenter");
  }

  /** @throws FatalError no_such_site */
  site(name: string): StackSite {
    const found = this.sites.find((site) => site.name === name);
    if (found !== undefined) return found;
    throw new FatalError(
      "no_such_site",
      `There is no site ${name}.`,
      `The sites are ${this.#file.sites.map((site) => site.name).join(", ")}.`,
    );
  }

  /** The proxies between the sites, of a stack that has them. */
  get links(): Links | undefined {
    const { rttMs, portBase, password, sites } = this.#file;
    return rttMs === null
      ? undefined
      : new Links({ dir: this.dir, ports: new PortPlan(portBase), rttMs, token: password, sites });
  }

  /** HTTP of a datacenter's first node. */
  url(datacenter: string): string {
    return this.site(datacenter).nodes[0]?.url ?? "";
  }

  pids(site: string): SitePids {
    return this.site(site).pids();
  }

  /** Whether any of its processes lives. */
  isRunning(): boolean {
    return this.links?.process() !== undefined || this.sites.some((site) => site.processes().length > 0);
  }

  /** Whether all of its processes live. */
  isWhole(): boolean {
    return (
      this.sites.every((site) => site.portsToTake().length === 0) &&
      (this.#file.rttMs === null || this.links?.process() !== undefined)
    );
  }

  /** Not stopped by `down`: what is dead crashed. */
  isUp(): boolean {
    return existsSync(this.#upMark);
  }

  /** Stops everything in order: nodes, then servers, then the links. */
  async down(say: Say = () => undefined): Promise<void> {
    await this.#exclusively(say, async () => {
      await this.stopNow();
    });
  }

  /** As `down`, but also while another command is under way: that one then fails. */
  async stopNow(): Promise<void> {
    rmSync(this.#upMark, { force: true });
    const sites = this.sites;
    // A stopped process can't end.
    for (const site of sites) site.signal("SIGCONT");
    await allOf(sites.map((site) => site.stopNodes()));
    await allOf(sites.map((site) => site.stopServers()));
    await this.links?.stop();
  }

  /** SIGKILL to everything of the site at once. */
  async crash(site: string): Promise<void> {
    await this.site(site).crash();
  }

  /** SIGSTOP to everything of the site. */
  pause(site: string): void {
    this.site(site).signal("SIGSTOP");
  }

  resume(site: string): void {
    this.site(site).signal("SIGCONT");
  }

  /** Kills a datacenter's PostgreSQL, and its standby takes its place. @throws FatalError no_standby */
  async promote(name: string): Promise<void> {
    const { pair } = this.site(name);
    if (pair === undefined)
      throw new FatalError(
        "no_standby",
        `The PostgreSQL of ${name} has no standby.`,
        "Start the stack with `--standby` (after `hothot down`).",
      );
    await this.#exclusively(
      () => undefined,
      () => pair.promote(),
    );
  }

  /** Starts what is dead of the site, and waits until its processes answer (not until the site has caught up). */
  async restart(name: string, say: Say = () => undefined): Promise<void> {
    const site = this.site(name);
    await this.#exclusively(say, async () => {
      site.signal("SIGCONT");
      await requireFree(site.portsToTake());
      await this.links?.start();
      await site.startServers();
      await site.startNodes();
      await allOf(site.nodes.map((node) => node.wait("livez", 30_000)));
    });
  }

  /** The entry that a datacenter of this name would get. @throws FatalError bad_option */
  nextSite(name: string): SiteEntry {
    return entryFor(this.#file, name);
  }

  /**
   * Begins the log anew with the copy of `primary`, and with these sites: those of the stack that stay, and perhaps one more
   * datacenter. All of them stop for some seconds. `up` goes on where this was interrupted.
   * @throws FatalError still_running when a site that is left has a process
   */
  async beginGeneration(primary: string, names: readonly string[], say: Say = () => undefined): Promise<void> {
    await this.#exclusively(say, async () => {
      const known = new Map(this.#file.sites.map((entry) => [entry.name, entry]));
      const entries = names.map((name) => known.get(name) ?? entryFor(this.#file, name));
      const leaves = this.sites.filter((site) => !names.includes(site.name));
      const running = leaves.filter((site) => site.processes().length > 0);
      if (running.length > 0)
        throw new FatalError(
          "still_running",
          `${running.map((site) => site.name).join(", ")} has processes, so it is not off.`,
          "Whoever is left behind must not serve: end it first (`hothot simulate crash`).",
        );
      say("stopping the sites that stay ...");
      for (const site of this.sites) site.signal("SIGCONT");
      await allOf(this.sites.map((site) => site.stopNodes()));
      await allOf(this.sites.map((site) => site.nats.stop()));
      await this.links?.stop();
      this.#file = regenerated(this.#file, primary, entries);
      await this.#startAll(say);
    });
  }

  /**
   * Starts PostgreSQL and NATS of one more datacenter, which join the running ones; its nodes start once it is a member.
   * One that was begun before goes on. @throws FatalError
   */
  async startSite(name: string, say: Say = () => undefined): Promise<void> {
    await this.#exclusively(say, async () => {
      if (!this.isUp())
        throw new FatalError("not_running", "The stack does not run.", "Start it with `hothot up`, then add to it.");
      if (!this.#file.sites.some((site) => site.name === name)) {
        const grown = addedSite(this.#file, name);
        const site = new StackSite(this.dir, grown, grown.sites.at(-1) as SiteEntry, undefined);
        await requireFree(site.portsToTake());
        this.#file = grown;
        writeStackFile(this.dir, grown);
      }
      say(`starting PostgreSQL and NATS of ${name} ...`);
      await this.site(name).startServers();
    });
  }

  /** Starts the nodes of a datacenter and waits until they serve. */
  async startSiteNodes(name: string, ms: number): Promise<void> {
    const site = this.site(name);
    await site.startNodes();
    await allOf(site.nodes.map((node) => node.wait("readyz", ms)));
  }

  /** Ends a datacenter that has left the group, and forgets it; its folder stays. */
  async endSite(name: string): Promise<void> {
    await this.#exclusively(
      () => undefined,
      async () => {
        const site = this.site(name);
        site.signal("SIGCONT");
        await site.stopNodes();
        await site.stopServers();
        const rest = this.sites.filter((each) => each.name !== name);
        await forgetServer(
          rest.map((each) => each.nats.url("sys")),
          name,
        );
        this.#file = { ...this.#file, sites: this.#file.sites.filter((each) => each.name !== name) };
        writeStackFile(this.dir, this.#file);
      },
    );
  }

  /** Cuts all links of `a`, or the one between `a` and `b`. @throws FatalError no_links */
  cut(a: string, b?: string, oneWay = false): Promise<LinkState[]> {
    return this.#requireLinks().cut(a, b, oneWay);
  }

  heal(a: string, b?: string): Promise<LinkState[]> {
    return this.#requireLinks().heal(a, b);
  }

  get #upMark(): string {
    return path.join(this.dir, "up");
  }

  async #startAll(say: Say): Promise<void> {
    requireMainProgram();
    const sites = this.sites;
    const links = this.links;
    for (const site of sites) site.signal("SIGCONT");
    await requireFree([
      ...(links !== undefined && links.process() === undefined ? links.portsUsed() : []),
      ...sites.flatMap((site) => site.portsToTake()),
    ]);
    writeStackFile(this.dir, this.#file);
    writeFileSync(this.#upMark, "");
    say("starting PostgreSQL and NATS ...");
    await links?.start();
    await allOf(sites.map((site) => site.startServers()));
    if (!this.#file.initialised) {
      say("creating the group's log ...");
      await createLog(this.#file, this.datacenters, this.dir);
      this.#file = { ...this.#file, initialised: true };
      writeStackFile(this.dir, this.#file);
    }
    say("starting hothot ...");
    await allOf(sites.map((site) => site.startNodes()));
    await allOf(this.datacenters.flatMap((site) => site.nodes.map((node) => node.wait("readyz", readyMs))));
    // A witness serves nobody, so all that shows is that it goes on.
    for (const node of sites.flatMap((site) => site.nodes))
      if (node.process() === undefined) throw node.failure("ended");
  }

  /** One command at a time starts or stops parts of a stack; a bound port says so, which no crash leaves behind. */
  async #exclusively(say: Say, action: () => Promise<void>): Promise<void> {
    const port = new PortPlan(this.#file.portBase).command;
    let told = false;
    const held = await until(
      async () => {
        const server = await holdPort(port);
        if (server === undefined && !told)
          say(`another command on this stack is under way (port ${port} is taken); waiting for it ...`);
        told = true;
        return server;
      },
      commandWaitMs,
      100,
    );
    if (held === undefined) {
      throw new FatalError(
        "port_in_use",
        `Port ${port} stays in use: by another command on this stack, or by another program.`,
        "End it, or start with another --port-base.",
      );
    }
    try {
      await action();
    } finally {
      await new Promise((resolve) => held.close(resolve));
    }
  }

  #requireLinks(): Links {
    const links = this.links;
    if (links === undefined)
      throw new FatalError(
        "no_links",
        "This stack has no proxies on its links, so they can't be cut.",
        "Start it with `--rtt 0` (after `hothot down`).",
      );
    return links;
  }
}

function same(a: StackFile, b: StackFile): boolean {
  const known = (file: StackFile): string => JSON.stringify(Object.entries(file).sort(([x], [y]) => (x < y ? -1 : 1)));
  return known(a) === known(b);
}
