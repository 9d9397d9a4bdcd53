import type { Fields, Logger } from "../../infra/logger.js";
import { silentLogger } from "../../infra/logger.js";
import { encodeBatch } from "../../replication/record.js";
import { epoch, partition, partitionOf, position, shardId } from "../../shards/ids.js";
import type { SiteSet } from "../../shards/site-set.js";
import { firstOwner } from "../../shards/successor.js";
import type { Vote } from "../../shards/store.js";
import type { Bias } from "./bias.js";
import { Checker, Violation } from "./checker.js";
import { runClients } from "./clients.js";
import { MemoryDatabase } from "./database.js";
import { Faults } from "./faults.js";
import { MemoryLog } from "./memory-log.js";
import { Network } from "./network.js";
import { startNode, type SimNode } from "./node.js";
import { remove, type Off } from "./rules.js";
import { Process, Scheduler } from "./scheduler.js";
import { shapeOf, type Shape } from "./shape.js";
import { startWitness } from "./witness.js";

export interface RunOptions {
  readonly off?: Off;
  /** For a rule that is left out. */
  readonly bias?: Bias;
  /** Faults go on for longer; so they do where rules are left out. */
  readonly long?: boolean;
  /** Lines of the run's history are pushed here. */
  readonly story?: string[];
}

export interface RunResult {
  readonly seed: number;
  readonly violation: Violation | null;
  readonly events: number;
  readonly counts: Checker["counts"];
  /** What went wrong, and how often. */
  readonly happened: ReadonlyMap<string, number>;
  /** Virtual milliseconds from the end of the faults until all was well. */
  readonly healedMs: number;
}

const healWithinMs = 20_000;

/** Runs one seed: start, faults, healing, the final comparison. The same seed gives the same run, event by event. */
export async function run(seed: number, options: RunOptions = {}): Promise<RunResult> {
  const restore = remove(options.off ?? new Set(), { ...shapeOf(seed), ...options.bias?.shape }.settings);
  try {
    return await new World(seed, options).run();
  } finally {
    restore();
  }
}

export class World {
  readonly shape: Shape;
  readonly s: Scheduler;
  readonly checker: Checker;
  readonly network: Network;
  readonly log: MemoryLog;
  readonly databases = new Map<string, MemoryDatabase>();
  readonly nodes = new Map<string, SimNode>();
  /** Present life of each process by its name. */
  readonly processes = new Map<string, Process>();
  readonly siteSet: SiteSet;
  readonly faults: Faults;
  healing = false;
  readonly #off: Off;
  readonly #story: string[] | undefined;
  readonly #long: boolean;
  readonly #files = new Map<string, Map<string, Vote>>();
  #violation: Violation | null = null;

  constructor(
    readonly seed: number,
    options: RunOptions,
  ) {
    this.#off = options.off ?? new Set();
    this.#story = options.story;
    this.#long = options.long === true || this.#off.size > 0;
    this.shape = { ...shapeOf(seed), ...options.bias?.shape };
    const { shape } = this;
    this.s = new Scheduler(seed);
    this.siteSet = {
      number: 1,
      sites: [
        ...shape.datacenters.map((name) => ({ name, witness: false })),
        ...(shape.witness === null ? [] : [{ name: shape.witness, witness: true }]),
      ],
      removed: [],
      failoverPaused: false,
      shards: shape.shards,
      partitions: shape.partitions,
    };
    const sites = this.siteSet.sites.map((site) => site.name);
    this.checker = new Checker(this.s, shape.partitions);
    this.network = new Network(this.s);
    this.network.keeps = shape.goesBack;
    this.faults = new Faults(this, options.bias?.story);
    const effect = (process: Process, what: string): void => this.faults.effect(process, what);
    const say = (who: string, text: string): void => this.say(who, text);
    this.log = new MemoryLog(this.s, this.network, sites, shape.partitions, {
      committing: (partition, shard, sequence, data, by) =>
        this.guard(() => {
          this.checker.committing(partition, shard, sequence, data);
          if (this.#story !== undefined) this.#tellAppend(shard, sequence, by);
        }),
      effect,
      say,
    });
    this.log.compareAndSet = !this.#off.has("cas");
    for (const site of shape.datacenters) {
      const database = new MemoryDatabase(this.s, site, { effect, say });
      database.faults.forgetsIncarnation = this.#off.has("i-incarnation");
      this.databases.set(site, database);
    }
    for (let shard = 0; shard < shape.shards; shard++) this.#create(shard);
  }

  say(who: string, text: string): void {
    this.#story?.push(`${this.s.now.toFixed(1).padStart(9)} ${who.padEnd(10)} ${text}`);
  }

  /** A check that fails ends the run. */
  guard(check: () => void): void {
    if (this.#violation !== null) return;
    try {
      check();
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      this.#violation = error;
      this.say("CHECK", error.message);
      this.s.stop();
    }
  }

  async run(): Promise<RunResult> {
    const { s, shape } = this;
    const failed = (error: unknown): void => this.guard(() => this.#unhandled(error));
    process.on("unhandledRejection", failed);
    let healedMs = 0;
    try {
      for (const { name, witness } of this.siteSet.sites)
        for (let n = 1; n <= (witness ? 1 : shape.nodes); n++) this.start(name, `${name}-${n}`);
      const warm = (shape.settings.leaseMs + shape.settings.coordinatorTermMs) * 1.1 + 400;
      await s.run(warm);
      this.faults.begin();
      await s.run(warm + (this.#long ? shape.longMs : shape.faultsMs));
      this.faults.end();
      const healingFrom = s.now;
      for (;;) {
        await s.run(s.now + 100);
        if (this.#violation !== null) break;
        const why = this.#unwell();
        if (why === undefined) break;
        if (s.now - healingFrom > healWithinMs) {
          this.guard(() => {
            throw new Violation(8, `${healWithinMs} ms after the last fault: ${why}`);
          });
          break;
        }
      }
      healedMs = s.now - healingFrom;
      this.guard(() => this.checker.finish(this.databases));
    } finally {
      process.off("unhandledRejection", failed);
    }
    return {
      seed: this.seed,
      violation: this.#violation,
      events: s.events,
      counts: this.checker.counts,
      happened: s.happened,
      healedMs,
    };
  }

  /** Starts a life of a process; one that can't start tries again, as a supervisor would. */
  start(site: string, name: string): void {
    const process = new Process(this.s, site, name, this.s.between(0.995, 1.005));
    this.processes.set(name, process);
    this.nodes.delete(name);
    this.say(name, "starts");
    const logger = this.#logger(name);
    if (site === this.shape.witness) {
      let file = this.#files.get(site);
      if (file === undefined) this.#files.set(site, (file = new Map<string, Vote>()));
      void startWitness({ ...this.#common, process, logger, file, scheduler: this.s });
      return;
    }
    const database = this.databases.get(site);
    if (database === undefined) return;
    const again = (why: unknown): void => {
      if (process.dead) return;
      process.dead = true;
      this.say(name, `can't start: ${String(why)}`);
      this.s.after(300, null, () => {
        if (this.processes.get(name) === process) this.start(site, name);
      });
    };
    process.onIncarnation = () => again("the database's incarnation changed");
    startNode({
      ...this.#common,
      process,
      database,
      logger,
      log: this.log,
      random: this.s.random,
      hooks: this.#hooks,
    }).then((node) => {
      if (process.dead) return;
      this.nodes.set(name, node);
      runClients(this, node);
    }, again);
  }

  get #common() {
    return { network: this.network, siteSet: this.siteSet, settings: this.shape.settings, off: this.#off };
  }

  readonly #hooks = {
    applied: (...args: Parameters<Checker["applied"]>): void => {
      const [site, , before, step] = args;
      if (step.kind === "adopt")
        this.say(
          site,
          `its database adopts epoch ${step.head.epoch} of shard ${before.shard}, ${step.head.state}${step.divergentAbove === null ? "" : `; what it has above ${step.divergentAbove}, up to ${before.position}, is set aside`}`,
        );
      this.guard(() => this.checker.applied(...args));
    },
  };

  #create(shard: number): void {
    const id = shardId(shard);
    const { datacenters, partitions } = this.shape;
    const at = partitionOf(id, partitions);
    const owner = firstOwner(partition((at + this.seed) % datacenters.length), datacenters);
    const data = encodeBatch({
      header: {
        kind: "open",
        generation: 1,
        shard: id,
        epoch: epoch(1),
        owner,
        batchId: "00000000000000aa",
        first: position(1),
        count: 0,
        committedAt: 0,
      },
      records: [],
      open: {
        from: null,
        kind: "initial",
        reason: "the group was created",
        by: "init",
        sameTenure: false,
        closing: 0,
        phasesMs: {},
        drained: 0,
        epochEnds: [],
      },
    });
    this.log.seed(at, shard, data);
    for (const { tables } of this.databases.values()) {
      tables.progress.set(at, 0);
      tables.heads.set(shard, {
        shard: id,
        partition: at,
        owner: null,
        epoch: epoch(0),
        state: "replica",
        position: position(0),
        published: position(0),
        tenure: epoch(0),
        fencedThrough: epoch(0),
        closing: 0,
        confirmed: false,
        since: "",
        kind: "initial",
        reason: "",
        epochEnds: [],
        stopped: null,
        revision: 0,
      });
    }
  }

  /** What is not well yet after the faults: copies that differ, or a shard that its owner does not serve. */
  #unwell(): string | undefined {
    for (let shard = 0; shard < this.shape.shards; shard++) {
      const owner = this.checker.owner(shard);
      const nodes = [...this.nodes.values()].filter((node) => node.process.site === owner && !node.process.dead);
      if (nodes.length < this.shape.nodes) return `${owner} has ${nodes.length} processes`;
      if (nodes.some((node) => node.held(shardId(shard), true) === undefined))
        return `shard ${shard} is not served by ${owner}: ${nodes.map((node) => `${node.process.name} lease ${node.leases.valid}, ${node.map.get(shardId(shard))?.state}`).join("; ")}`;
    }
    return this.checker.unequal(this.databases);
  }

  #unhandled(error: unknown): void {
    throw new Violation(
      0,
      `an error that nobody handles: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
    );
  }

  #tellAppend(shard: number, sequence: number, by: string): void {
    this.say("log", `shard ${shard} has a message at ${sequence}, through ${by}; owner ${this.checker.owner(shard)}`);
  }

  #logger(who: string, component = ""): Logger {
    if (this.#story === undefined) return silentLogger;
    const tell = (event: string, fields: Fields = {}): void => {
      const rest = Object.entries(fields).map(
        ([key, value]) => `${key}=${value instanceof Error ? value.message : JSON.stringify(value)}`,
      );
      this.say(
        who,
        `${component === "" ? "" : `${component}: `}${event}${rest.length === 0 ? "" : ` (${rest.join(", ")})`}`,
      );
    };
    return {
      debug: () => undefined,
      info: tell,
      warn: tell,
      error: tell,
      with: (fields) => this.#logger(who, typeof fields["component"] === "string" ? fields["component"] : component),
    };
  }
}
