import type { Random } from "../../infra/random.js";
import type { InventoryCluster } from "./inventory.js";
import { mayRepeat, type Sender, type UnsentPut } from "./sender.js";

export interface LoadOptions {
  readonly sender: Sender;
  readonly dcs: readonly string[];
  readonly clusters: readonly InventoryCluster[];
  /** Prefix of the marks; unique among the loads of one history. */
  readonly name: string;
  readonly random: Random;
  readonly perSecond: number;
  /** Share of `replicated` writes, 0 to 1. */
  readonly replicated?: number;
  /** Share of writes with an idempotency key. Those are repeated until their outcome is known. */
  readonly keyed?: number;
  /** Share of the answered keyed writes that are sent once more, at another datacenter. */
  readonly repeated?: number;
  readonly timeoutMs?: number;
  /** How long a keyed write is repeated at most. */
  readonly repeatMs?: number;
  /** Writes under way at most; what would come on top is left out. */
  readonly inFlight?: number;
}

const tickMs = 10;
/** A datacenter that refused a connection is left alone for a while, as any client would. */
const avoidMs = 500;

/** Writes at an even rate to clusters and datacenters picked at random. */
export class Load {
  readonly #options: LoadOptions;
  readonly #underWay = new Set<Promise<void>>();
  readonly #avoid = new Map<string, number>();
  #timer: NodeJS.Timeout | undefined;
  #launched = 0;
  #startedAt = 0;
  #number = 0;
  #stopped = false;

  constructor(options: LoadOptions) {
    this.#options = options;
  }

  start(): void {
    this.#startedAt = performance.now();
    this.#timer = setInterval(() => this.#tick(), tickMs);
  }

  /** Ends the load, and waits for what is under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    await Promise.all(this.#underWay);
  }

  #tick(): void {
    const { perSecond, inFlight = 256 } = this.#options;
    const due = Math.floor(((performance.now() - this.#startedAt) * perSecond) / 1000);
    // After a stall the missed writes are not made up for at once: that would be another load than the one asked for.
    const count = Math.min(due - this.#launched, Math.ceil((perSecond * tickMs * 5) / 1000));
    this.#launched = due;
    for (let i = 0; i < count && this.#underWay.size < inFlight; i++) {
      const write = this.#write();
      this.#underWay.add(write);
      void write.finally(() => this.#underWay.delete(write));
    }
  }

  async #write(): Promise<void> {
    const { sender, clusters, random, name, replicated = 0.4, keyed = 0.25, repeated = 0.1 } = this.#options;
    const cluster = clusters[Math.floor(random.next() * clusters.length)];
    if (cluster === undefined) return;
    const mark = `${name}-${String(++this.#number).padStart(6, "0")}`;
    const put: UnsentPut = {
      clusterId: cluster.id,
      mark,
      name: cluster.name,
      spec: cluster.spec,
      labels: cluster.labels,
      durability: random.next() < replicated ? "replicated" : "local",
      key: random.next() < keyed ? `key-${mark}` : null,
      timeoutMs: this.#options.timeoutMs ?? 3000,
    };
    const write = sender.begin(put);
    const until = performance.now() + (this.#options.repeatMs ?? 15_000);
    for (;;) {
      const dc = this.#pick();
      const attempt = await sender.put(dc, write, put);
      if (attempt.status === 0) this.#avoid.set(dc, performance.now() + avoidMs);
      // Without a key a refused write is given up: the load goes on anyway, and refusals are counted.
      if (attempt.outcome === "ok" || put.key === null || !mayRepeat(attempt, put.key)) break;
      if (performance.now() > until) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    if (put.key !== null && !this.#stopped && random.next() < repeated) await sender.put(this.#pick(), write, put);
  }

  #pick(): string {
    const now = performance.now();
    const { dcs, random } = this.#options;
    const open = dcs.filter((dc) => (this.#avoid.get(dc) ?? 0) < now);
    const from = open.length > 0 ? open : dcs;
    return from[Math.floor(random.next() * from.length)] ?? "";
  }
}
