import { ambush } from "./ambush.js";
import type { Channel } from "./network.js";
import type { Process } from "./scheduler.js";
import type { World } from "./world.js";

/** What goes wrong in a run, when, and for how long: all from the seed. */
export class Faults {
  #active = false;
  /** The next effect of this kind in this site is followed by a crash. */
  #trap: { readonly site: string; readonly what: string; readonly pauses: boolean } | undefined;
  readonly #w: World;

  constructor(
    world: World,
    /** Played now and then, beside all else. */
    private readonly story?: (w: World, faults: Faults) => void,
  ) {
    this.#w = world;
  }

  begin(): void {
    const { s, shape, network } = this.#w;
    this.#active = true;
    network.loss = s.pick([0, 0.01, 0.05]);
    this.#w.log.slowAppends = s.pick([0.01, 0.02, 0.1]);
    for (const database of this.#w.databases.values()) database.slow = s.pick([0.005, 0.02, 0.05]);
    const gap = this.story !== undefined ? 6_000 : this.#w.seed % 2 === 0 ? 1_800 : 700;
    const next = (first: number): void => {
      s.after(first, null, () => {
        if (!this.#active) return;
        this.#fault();
        next(s.between(100, gap));
      });
    };
    next(s.between(0, 300));
    if (this.story !== undefined) this.#tell(this.story);
    if (shape.goesBack) this.#goBackSometimes();
    if (shape.clockJumps) for (const site of shape.datacenters) this.#jump(site);
  }

  #tell(story: (w: World, faults: Faults) => void): void {
    const { s, shape } = this.#w;
    s.after(shape.settings.leaseMs * s.between(0.2, 1), null, () => {
      if (!this.#active) return;
      story(this.#w, this);
      s.after(shape.settings.leaseMs * s.between(4, 6), null, () => {
        if (this.#active) this.#tell(story);
      });
    });
  }

  /** All heals: links, processes, databases, leaders. */
  end(): void {
    const { s, network, log, databases, processes } = this.#w;
    this.#active = false;
    this.#trap = undefined;
    this.#w.healing = true;
    this.#w.say("world", "all faults end");
    network.heal();
    network.down.clear();
    log.calm = true;
    for (const database of databases.values()) {
      database.up = true;
      database.calm = true;
      database.pausedUntil = 0;
      database.dataPausedUntil = 0;
      database.lateLocks = null;
    }
    for (const process of processes.values()) process.pausedUntil = Math.min(process.pausedUntil, s.now);
    for (const { name, site, dead } of [...processes.values()]) if (dead) this.#w.start(site, name);
    log.review();
  }

  /** A statement or append has just had its effect: a crash may follow before its answer arrives. */
  effect(process: Process, what: string): void {
    const trap = this.#trap;
    if (trap === undefined || trap.site !== process.site || trap.what !== what || process.dead) return;
    this.#trap = undefined;
    const { s } = this.#w;
    if (s.chance(0.5) && !trap.pauses) {
      this.crash([process], s.between(1, 1_500), `right after its ${what}`);
      return;
    }
    s.after(s.between(0, 20), null, () => {
      if (process.dead || !this.#active) return;
      if (trap.pauses) this.pause([process], s.between(200, 3_000));
      else this.crash([process], s.between(1, 1_500), `soon after its ${what}`);
    });
  }

  get active(): boolean {
    return this.#active;
  }

  /** The next effect of this kind in this site is followed by a crash or a pause. */
  trap(site: string, what: string, pauses: boolean): void {
    this.#trap = { site, what, pauses };
  }

  #fault(): void {
    const { s, shape } = this.#w;
    const sites = this.#w.siteSet.sites.map((site) => site.name);
    const site = s.pick(sites);
    const all = [...this.#w.processes.values()].filter((process) => process.site === site && !process.dead);
    const some = s.chance(0.6) ? all : all.slice(0, 1);
    const kind = s.random.next();
    if (kind < 0.15) this.pause(some, s.between(50, 3_000));
    else if (kind < 0.28) this.crash(some, s.chance(0.5) ? s.between(1, 200) : s.between(200, 2_500), "");
    else if (kind < 0.36) this.#crashSite(site, s.between(300, 3_000));
    else if (kind < 0.54) this.#cut(site, sites);
    else if (kind < 0.6) this.#stepDown();
    else if (kind < 0.66) this.#slowDatabase(site);
    else if (kind < 0.74)
      this.trap(site, s.pick(["fence", "vote", "append", "apply", "write", "lock", "confirm", "heads"]), s.chance(0.3));
    else if (kind < 0.92) ambush(this.#w, this);
    else if (shape.suspends) this.#suspend(all, s.between(200, 3_000));
    else this.pause(all, s.between(600, 1_500));
  }

  pause(processes: readonly Process[], ms: number): void {
    this.#w.s.count("pauses");
    const until = this.#w.s.now + ms;
    for (const process of processes) {
      process.pausedUntil = Math.max(process.pausedUntil, until);
      this.#w.say(process.name, `is paused until ${process.pausedUntil.toFixed(1)}`);
    }
  }

  #suspend(processes: readonly Process[], ms: number): void {
    this.#w.s.count("suspended machines");
    for (const process of processes) {
      if (process.pausedUntil > this.#w.s.now) continue;
      this.#w.s.shiftTimers(process, ms);
      process.suspended += ms;
      process.pausedUntil = this.#w.s.now + ms;
      this.#w.say(process.name, `its machine is suspended until ${process.pausedUntil.toFixed(1)}`);
    }
  }

  crash(processes: readonly Process[], downMs: number, why: string): void {
    this.#w.s.count(why.startsWith("right after") || why.startsWith("soon after") ? "crashes at an await" : "crashes");
    for (const process of processes) {
      process.dead = true;
      this.#w.nodes.delete(process.name);
      this.#w.say(process.name, `crashes ${why}`);
      this.#w.s.after(downMs, null, () => this.#restart(process));
    }
  }

  #restart(process: Process): void {
    const { processes, network, s } = this.#w;
    if (processes.get(process.name) !== process || !process.dead) return;
    if (network.down.has(process.site)) s.after(50, null, () => this.#restart(process));
    else this.#w.start(process.site, process.name);
  }

  /** Processes, database and log server of a site at once. */
  #crashSite(site: string, downMs: number): void {
    const { network, databases, processes, log, s } = this.#w;
    if (network.down.size > 0) return;
    this.#w.say(site, `is off until ${(s.now + downMs).toFixed(1)}`);
    network.down.add(site);
    const database = databases.get(site);
    if (database !== undefined) database.up = false;
    this.crash(
      [...processes.values()].filter((process) => process.site === site && !process.dead),
      downMs,
      "with its site",
    );
    log.review();
    s.after(downMs - 1, null, () => {
      network.down.delete(site);
      if (database !== undefined) database.up = true;
    });
  }

  #cut(site: string, sites: readonly string[]): void {
    const { s, network, log, shape } = this.#w;
    const others = sites.filter((other) => other !== site);
    const from = s.chance(0.5) ? [s.pick(others)] : others;
    const oneWay = s.chance(0.2);
    s.count(oneWay ? "one-way cuts" : "cuts");
    const channels = s.pick<readonly Channel[]>([["word", "bulk"], ["word", "bulk"], ["bulk"], ["word"]]);
    const long = shape.goesBack && s.chance(0.3) ? 3_000 : 0;
    for (const other of from) {
      const until = s.now + long + s.between(200, 2_500);
      network.cut(site, other, until, channels);
      if (!oneWay) network.cut(other, site, until, channels);
      this.#w.say(
        "link",
        `${site} ${oneWay ? "to" : "and"} ${other} cut until ${until.toFixed(1)} for ${channels.join(" and ")}`,
      );
    }
    s.after(s.between(50, 400), null, () => log.review());
  }

  #stepDown(): void {
    const { s, log, shape, siteSet } = this.#w;
    const partition = Math.floor(s.random.next() * shape.partitions);
    const to = s.chance(0.6) ? s.pick(siteSet.sites).name : null;
    this.#w.say("log", `partition ${partition} changes its leader`);
    log.elect(partition, to, s.pick([0, 0.5, 1]));
  }

  #slowDatabase(site: string): void {
    const { s } = this.#w;
    const database = this.#w.databases.get(site);
    if (database === undefined) return;
    database.pausedUntil = s.now + s.between(50, 2_000);
    this.#w.say(site, `its database stands still until ${database.pausedUntil.toFixed(1)}`);
  }

  #goBackSometimes(): void {
    const { s, databases, shape } = this.#w;
    const snapshots = (): void => {
      if (!this.#active) return;
      for (const database of databases.values()) database.snapshot();
      s.after(100, null, snapshots);
    };
    snapshots();
    const back = (): void => {
      if (!this.#active) return;
      this.goBack(s.pick(shape.datacenters));
      s.after(s.between(1_000, 5_000), null, back);
    };
    s.after(s.between(500, 3_000), null, back);
  }

  /** @param by about how many milliseconds; at random when left out */
  goBack(site: string, by?: number): void {
    const database = this.#w.databases.get(site);
    const to = this.#active ? database?.goBack(by) : undefined;
    if (to === undefined) return;
    this.#w.checker.wentBack(site, to);
    this.#w.s.count("databases going back");
    this.#w.say(site, `its database goes back to ${to.toFixed(1)}, incarnation ${database?.incarnation}`);
  }

  #jump(site: string): void {
    const { s, databases } = this.#w;
    const database = databases.get(site);
    if (database === undefined || !this.#active) return;
    const termMs = this.#w.shape.settings.coordinatorTermMs;
    s.count("jumps of a database's clock");
    database.ahead = database.ahead === 0 ? s.between(0.6, 1) * termMs : 0;
    this.#w.say(site, `its database's clock is ${database.ahead.toFixed(0)} ms ahead`);
    s.after(s.between(300, 3_000), null, () => this.#jump(site));
  }
}
