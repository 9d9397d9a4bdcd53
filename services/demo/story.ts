import { shardOf } from "../../shards/ids.js";
import type { Random } from "../../infra/random.js";
import { Client } from "./client.js";
import { ended } from "./effects.js";
import { Group, until } from "./group.js";
import { readInventory, type InventoryCluster } from "./inventory.js";
import { Journal } from "./journal.js";
import { Load } from "./load.js";
import { Probe } from "./probe.js";
import { Sender } from "./sender.js";
import { report, type Measured, type Report } from "./report.js";

/** A group that runs, and can be hurt. */
export interface RunningStack {
  readonly dcs: readonly string[];
  url(dc: string): string;
  simulate(action: "crash" | "restart", site: string): Promise<unknown>;
}

export interface StoryOptions {
  readonly random: Random;
  /** One line of progress. */
  readonly tell: (line: string) => void;
  readonly writesPerSecond?: number;
  /** Load before the kill, and after the takeover. Milliseconds. */
  readonly loadMs?: number;
  /** How long jobs are waited for after the takeover. Milliseconds. */
  readonly jobsMs?: number;
  /** Ends the story at its next wait. */
  readonly signal?: AbortSignal;
}

const jobsOfTheDoomed = 8;
const jobsElsewhere = 4;
/** Large enough to be under way when their datacenter dies, small enough to be done again soon. */
const mostNodes = 7;

/** The failover story: load and jobs everywhere, one datacenter is killed, the others go on, it returns, all are equal. */
export async function runStory(
  stack: RunningStack,
  options: StoryOptions,
): Promise<{ report: Report; measured: Measured }> {
  const client = new Client(Object.fromEntries(stack.dcs.map((dc) => [dc, stack.url(dc)])));
  try {
    return await new Story(stack, client, options).run();
  } finally {
    client.close();
  }
}

class Story {
  readonly #stack: RunningStack;
  readonly #group: Group;
  readonly #journal = new Journal();
  readonly #sender: Sender;
  readonly #options: StoryOptions;
  #load: Load | undefined;

  constructor(stack: RunningStack, client: Client, options: StoryOptions) {
    this.#stack = stack;
    this.#group = new Group(client);
    this.#sender = new Sender(client, this.#journal);
    this.#options = options;
  }

  async run(): Promise<{ report: Report; measured: Measured }> {
    try {
      return await this.#run();
    } finally {
      await this.#load?.stop();
    }
  }

  async #run(): Promise<{ report: Report; measured: Measured }> {
    const { tell, loadMs = 4000 } = this.#options;
    await this.#expect(30_000, "all datacenters serve", () => this.#group.whyNotConverged());
    const inventory = readInventory();
    await this.#import(inventory);

    const owners = await this.#owners();
    const doomed = mostOwned(owners, this.#stack.dcs);
    const survivors = this.#stack.dcs.filter((dc) => dc !== doomed);
    const shards = [...owners].filter(([, owner]) => owner === doomed).map(([shard]) => shard);
    const ownerOf = ({ id }: InventoryCluster): string => owners.get(shardOf(id, owners.size)) ?? "";
    const working = this.#stack.dcs.flatMap((dc) =>
      largest(inventory, (cluster) => ownerOf(cluster) === dc, dc === doomed ? jobsOfTheDoomed : jobsElsewhere),
    );
    const written = inventory.filter((cluster) => !working.includes(cluster));

    this.#load = new Load({
      sender: this.#sender,
      dcs: this.#stack.dcs,
      clusters: written,
      name: "CHG",
      random: this.#options.random,
      perSecond: this.#options.writesPerSecond ?? 300,
    });
    this.#load.start();
    tell(`${this.#options.writesPerSecond ?? 300} writes/s run over all datacenters, local and replicated`);
    await this.#pause(loadMs);
    await this.#startJobs(working, doomed, survivors);

    tell(
      `kill -9 ${doomed}: its PostgreSQL, NATS and node processes together; it owns ${shards.length} of ${owners.size} shards`,
    );
    const killedAt = performance.now();
    const crash = this.#stack.simulate("crash", doomed);
    const probe = new Probe({ sender: this.#sender, shards, total: owners.size, survivors, name: "CANARY" });
    const [first] = await Promise.all([probe.run(20_000), crash]);
    const firstWriteMs = [...first.values()].map((at) => (at === null ? null : at - killedAt));
    const worst = Math.max(...firstWriteMs.map((ms) => ms ?? Infinity));
    tell(
      `${survivors.join(" and ")} accept writes of every shard of ${doomed} again: worst shard ${Math.round(worst)} ms after the kill`,
    );
    await this.#jobsEnd(survivors);
    await this.#pause(loadMs);

    tell(`${doomed} is started again, under load`);
    const restartedAt = performance.now();
    await this.#stack.simulate("restart", doomed);
    await this.#wait(
      40_000,
      () => this.#whyNotBack(doomed),
      (why) => tell(`  ${why}`),
    );
    await this.#load.stop();
    const converged = await this.#wait(
      30_000,
      () => this.#group.whyNotConverged(),
      (why) => tell(`  ${why}`),
    );
    const convergeMs = converged.why === null ? performance.now() - restartedAt : null;
    tell(converged.why === null ? `${doomed} has converged` : `not converged: ${converged.why}`);

    tell("every acknowledged write is read back in every datacenter");
    const history = this.#journal.closed(await this.#group.views(), await this.#group.divergent());
    const jobs = history.finals[0]?.jobs ?? new Map<string, never>();
    const restartedJobs = [...jobs].filter(([, job]) => job.attempt > 1).map(([id]) => id);
    const measured: Measured = {
      dc: doomed,
      shards: shards.length,
      survivors,
      firstWriteMs,
      restartedJobs,
      convergeMs,
      notConverged: converged.why,
    };
    return { report: report(history, measured), measured };
  }

  async #import(inventory: readonly InventoryCluster[]): Promise<void> {
    const { tell } = this.#options;
    const startedAt = performance.now();
    let next = 0;
    const writers = Array.from({ length: 12 }, async () => {
      for (let index = next++; index < inventory.length; index = next++) {
        const cluster = inventory[index];
        if (cluster === undefined) return;
        const put = {
          ...cluster,
          clusterId: cluster.id,
          mark: `IMPORT-${String(index).padStart(4, "0")}`,
          durability: "replicated" as const,
          key: null,
          timeoutMs: 10_000,
        };
        const write = this.#sender.begin(put);
        const attempt = await this.#sender.put(this.#stack.dcs[index % this.#stack.dcs.length] ?? "", write, put);
        if (attempt.outcome !== "ok")
          throw new Error(`${cluster.id} could not be imported: ${attempt.status} ${attempt.code ?? ""}`);
      }
    });
    await Promise.all(writers);
    tell(
      `${inventory.length} clusters imported through ${this.#stack.dcs.join(", ")} in ${seconds(performance.now() - startedAt)}`,
    );
  }

  /** Starts the jobs, those of the doomed datacenter last, and returns once the survivors know of most of these. */
  async #startJobs(working: readonly InventoryCluster[], doomed: string, survivors: readonly string[]): Promise<void> {
    const { tell } = this.#options;
    const until20s = performance.now() + 20_000;
    const start = async (cluster: InventoryCluster, index: number): Promise<void> => {
      const mark = `JOB-${String(index).padStart(3, "0")}`;
      const job = {
        clusterId: cluster.id,
        mark,
        durability: "replicated" as const,
        key: `start-${mark}`,
        timeoutMs: 5000,
      };
      const type = index % 3 === 2 ? "configure" : "create";
      const started = await this.#sender.startJob(rotated(this.#stack.dcs, index), type, job, {}, until20s);
      if (started.jobId === null) throw new Error(`no job could be started on ${cluster.id}`);
    };
    await Promise.all(working.map(start));
    const [survivor = ""] = survivors;
    await this.#expect(10_000, "jobs run in every datacenter", async () => {
      const jobs = (await this.#group.jobs(survivor)) ?? [];
      const running = jobs.filter(({ runsIn, status }) => runsIn === doomed && !ended.has(status)).length;
      return running > 0 ? null : `no job is seen to run in ${doomed}`;
    });
    tell(
      `${working.length} jobs started (create, configure), ${working.length - jobsElsewhere * survivors.length} of them run in ${doomed}`,
    );
  }

  async #jobsEnd(survivors: readonly string[]): Promise<void> {
    await this.#expect(this.#options.jobsMs ?? 45_000, "every job has ended", async () => {
      for (const dc of survivors) {
        const jobs = await this.#group.jobs(dc);
        if (jobs === null) return `${dc} does not list its jobs`;
        this.#journal.sight(dc, jobs);
        const going = jobs.filter(({ status }) => !ended.has(status));
        const [one] = going;
        if (one !== undefined) {
          return `${dc} shows ${going.length} unfinished jobs, as ${one.id} (${one.status}, attempt ${one.attempt} in ${one.runsIn})`;
        }
      }
      return null;
    });
  }

  async #owners(): Promise<ReadonlyMap<number, string>> {
    const owners = await this.#group.owners(this.#stack.dcs[0] ?? "");
    if (owners === null) throw new Error("not every shard has an owner");
    return owners;
  }

  async #whyNotBack(dc: string): Promise<string | null> {
    for (const witness of this.#stack.dcs) {
      const state = (await this.#group.topology(witness))?.find(({ name }) => name === dc)?.state;
      if (state !== "serving") return `${dc} is ${state ?? "not heard of"}`;
    }
    return null;
  }

  #wait(ms: number, condition: () => Promise<string | null>, onWait?: (why: string) => void): ReturnType<typeof until> {
    const checked = (): Promise<string | null> => {
      this.#options.signal?.throwIfAborted();
      return condition();
    };
    return until(ms, checked, onWait);
  }

  async #pause(ms: number): Promise<void> {
    await this.#wait(ms, () => Promise.resolve("the load runs"));
  }

  /** Waits, and goes on with a message when it is in vain: what it means for the promises is found in the end. */
  async #expect(ms: number, what: string, condition: () => Promise<string | null>): Promise<void> {
    const { tell } = this.#options;
    const { why, tookMs } = await this.#wait(ms, condition);
    tell(why === null ? `${what} (${seconds(tookMs)})` : `NOT within ${seconds(ms)}: ${what}: ${why}`);
  }
}

function mostOwned(owners: ReadonlyMap<number, string>, dcs: readonly string[]): string {
  const owned = (dc: string): number => [...owners.values()].filter((owner) => owner === dc).length;
  return [...dcs].sort((a, b) => owned(b) - owned(a))[0] ?? "";
}

function largest(
  inventory: readonly InventoryCluster[],
  of: (cluster: InventoryCluster) => boolean,
  count: number,
): InventoryCluster[] {
  return inventory
    .filter((cluster) => of(cluster) && cluster.spec.nodes.length <= mostNodes)
    .sort((a, b) => b.spec.nodes.length - a.spec.nodes.length)
    .slice(0, count);
}

const rotated = (dcs: readonly string[], by: number): string[] =>
  dcs.map((_, index) => dcs[(index + by) % dcs.length] ?? "");
const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;
