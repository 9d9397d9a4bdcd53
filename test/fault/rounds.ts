import type { Random } from "../../infra/random.js";
import { Client } from "../../services/demo/client.js";
import { ended } from "../../services/demo/effects.js";
import { Group, until } from "../../services/demo/group.js";
import { readInventory, type InventoryCluster } from "../../services/demo/inventory.js";
import { Journal, type History } from "../../services/demo/journal.js";
import { Load } from "../../services/demo/load.js";
import { Probe, spread } from "../../services/demo/probe.js";
import { Sender } from "../../services/demo/sender.js";
import { checkHistory, type Violation } from "../harness/history.js";
import type { Fault, HurtableStack } from "./faults.js";
import { Reader } from "./reader.js";
import { LateWorker } from "./worker.js";

export interface RoundsOptions {
  readonly fault: Fault;
  readonly rounds: number;
  readonly random: Random;
  readonly tell: (line: string) => void;
  readonly writesPerSecond?: number;
}

export interface Round {
  readonly dc: string;
  readonly shards: number;
  /** From the harm to the first write of each shard that a survivor got accepted. */
  readonly firstWriteMs: { readonly worst: number; readonly median: number } | null;
  readonly convergeMs: number;
}

export interface RoundsResult {
  readonly rounds: readonly Round[];
  readonly history: History;
  readonly violations: readonly Violation[];
}

/** Hurts one datacenter after the other under writes, reads and jobs, lets each return, and checks the whole history. */
export async function runRounds(stack: HurtableStack, options: RoundsOptions): Promise<RoundsResult> {
  const client = new Client(Object.fromEntries(stack.dcs.map((dc) => [dc, stack.url(dc)])));
  try {
    return await new Rounds(stack, client, options).run();
  } finally {
    client.close();
  }
}

class Rounds {
  readonly #stack: HurtableStack;
  readonly #options: RoundsOptions;
  readonly #group: Group;
  readonly #journal = new Journal();
  readonly #sender: Sender;
  readonly #reader: Reader;
  readonly #worker: LateWorker;
  readonly #written: readonly InventoryCluster[];
  readonly #working: readonly InventoryCluster[];
  readonly #found: Violation[] = [];

  constructor(stack: HurtableStack, client: Client, options: RoundsOptions) {
    this.#stack = stack;
    this.#options = options;
    this.#group = new Group(client);
    this.#sender = new Sender(client, this.#journal);
    // Few clusters, so that each is written often and by several writers at a time.
    const inventory = readInventory().filter((_, index) => index % 3 === 0);
    this.#written = inventory.slice(0, 60);
    this.#working = inventory.slice(60, 90);
    this.#worker = new LateWorker(client, this.#journal, "late-worker");
    this.#reader = new Reader(
      client,
      this.#journal,
      this.#written.map(({ id }) => id),
      options.random,
      40,
    );
  }

  async run(): Promise<RoundsResult> {
    const { tell, rounds: count } = this.#options;
    await this.#prepare();
    const rounds: Round[] = [];
    this.#reader.start();
    try {
      for (let number = 1; number <= count; number++) rounds.push(await this.#round(number, rounds.at(-1)?.dc));
    } finally {
      this.#reader.stop();
    }
    tell("reading everything back in every datacenter, and checking the history");
    const history = this.#journal.closed(await this.#group.views(), await this.#group.divergent());
    return { rounds, history, violations: [...this.#found, ...checkHistory(history)] };
  }

  async #prepare(): Promise<void> {
    await this.#require(60_000, "all datacenters serve", () => this.#group.whyNotConverged());
    await this.#worker.register(this.#stack.dcs[0] ?? "");
    await Promise.all(
      [...this.#written, ...this.#working].map(async (cluster, index) => {
        const put = {
          ...cluster,
          clusterId: cluster.id,
          mark: `IMPORT-${String(index).padStart(4, "0")}`,
          durability: "replicated" as const,
          key: null,
          timeoutMs: 10_000,
        };
        const dc = this.#stack.dcs[index % this.#stack.dcs.length] ?? "";
        const attempt = await this.#sender.put(dc, this.#sender.begin(put), put);
        if (attempt.outcome !== "ok") throw new Error(`${cluster.id}: ${attempt.status} ${attempt.code ?? ""}`);
      }),
    );
  }

  async #round(number: number, last: string | undefined): Promise<Round> {
    const { fault, random, tell, writesPerSecond = 150 } = this.#options;
    const dc = await this.#next(last);
    const survivors = this.#stack.dcs.filter((name) => name !== dc);
    const owners = await this.#owners();
    const shards = [...owners].filter(([, owner]) => owner === dc).map(([shard]) => shard);
    const load = new Load({
      sender: this.#sender,
      dcs: this.#stack.dcs,
      clusters: this.#written,
      name: `R${number}`,
      random,
      perSecond: writesPerSecond,
      replicated: 0.4,
      keyed: 0.4,
    });
    load.start();
    try {
      await pause(1000);
      await this.#startJobs(number);
      await this.#worker.take(dc, 100);
      const hurtAt = performance.now();
      const probe = new Probe({ sender: this.#sender, shards, total: owners.size, survivors, name: `P${number}` });
      const [first] = await Promise.all([probe.run(20_000), fault.hurt(this.#stack, dc)]);
      const inVain = [...first].filter(([, at]) => at === null).map(([shard]) => shard);
      if (inVain.length > 0)
        this.#found.push({
          invariant: 0,
          what: `round ${number}: no write of shards ${inVain.join(", ")} within 20 s after ${fault.name} of ${dc}`,
        });
      const firstWriteMs = spread([...first.values()].flatMap((at) => (at === null ? [] : [at - hurtAt])));
      const late = await this.#worker.finishLate(survivors[0] ?? "");
      await this.#sight(survivors);
      const healAt = performance.now();
      await fault.heal(this.#stack, dc);
      await this.#require(60_000, `${dc} serves again`, () => this.#whyNotBack(dc));
      await load.stop();
      await this.#require(60_000, "every job has ended", () => this.#whyJobsGoOn());
      await this.#require(30_000, "all copies are equal", () => this.#group.whyNotConverged());
      const convergeMs = Math.round(performance.now() - healAt);
      tell(
        `round ${number}: ${fault.name} ${dc} (${shards.length} shards): first writes worst ${firstWriteMs?.worst ?? "-"} ms, median ${firstWriteMs?.median ?? "-"} ms; ${late} late finishes sent; converged ${convergeMs} ms after it was mended`,
      );
      return { dc, shards: shards.length, firstWriteMs, convergeMs };
    } finally {
      await load.stop();
    }
  }

  /** Another datacenter than the last, and of these the one that owns most. */
  async #next(last: string | undefined): Promise<string> {
    const owners = [...(await this.#owners()).values()];
    const owned = (dc: string): number => owners.filter((owner) => owner === dc).length;
    return this.#stack.dcs.filter((dc) => dc !== last).sort((a, b) => owned(b) - owned(a))[0] ?? "";
  }

  async #owners(): Promise<ReadonlyMap<number, string>> {
    let owners: ReadonlyMap<number, string> | null = null;
    await this.#require(10_000, "every shard has an owner", async () => {
      owners = await this.#group.owners(this.#stack.dcs[0] ?? "");
      return owners === null ? "some shards have none" : null;
    });
    return owners ?? new Map<number, string>();
  }

  async #startJobs(round: number): Promise<void> {
    const until10s = performance.now() + 10_000;
    await Promise.all(
      this.#working.slice(0, 15).map((cluster, index) => {
        const mark = `J${round}-${String(index).padStart(2, "0")}`;
        const durability = index % 2 === 0 ? ("replicated" as const) : ("local" as const);
        const key = index % 3 === 0 ? null : `start-${mark}`;
        const job = { clusterId: cluster.id, mark, durability, key, timeoutMs: 3000 };
        return this.#sender.startJob(this.#stack.dcs, index % 2 === 0 ? "create" : "configure", job, {}, until10s);
      }),
    );
  }

  async #sight(dcs: readonly string[]): Promise<string | null> {
    let going: string | null = null;
    for (const dc of dcs) {
      const jobs = await this.#group.jobs(dc);
      if (jobs === null) return `${dc} does not list its jobs`;
      this.#journal.sight(dc, jobs);
      going ??= jobs.find(({ status }) => !ended.has(status))?.id ?? null;
    }
    return going;
  }

  async #whyJobsGoOn(): Promise<string | null> {
    const going = await this.#sight(this.#stack.dcs);
    return going === null ? null : `still: ${going}`;
  }

  async #whyNotBack(dc: string): Promise<string | null> {
    for (const witness of this.#stack.dcs) {
      const state = (await this.#group.topology(witness))?.find(({ name }) => name === dc)?.state;
      if (state !== "serving") return `${witness} sees ${dc} as ${state ?? "nothing"}`;
    }
    return null;
  }

  /** A wait in vain ends the run: nothing after it would mean anything. */
  async #require(ms: number, what: string, condition: () => Promise<string | null>): Promise<void> {
    const { why } = await until(ms, condition);
    if (why !== null) throw new Error(`not within ${ms / 1000} s: ${what}: ${why}`);
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
