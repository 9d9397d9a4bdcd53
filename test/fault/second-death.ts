import { closeSync, openSync, readSync } from "node:fs";
import path from "node:path";
import type { Random } from "../../infra/random.js";
import { Client } from "../../services/demo/client.js";
import { Group, until } from "../../services/demo/group.js";
import { readInventory, type InventoryCluster } from "../../services/demo/inventory.js";
import { Journal, type History } from "../../services/demo/journal.js";
import { Load } from "../../services/demo/load.js";
import { Probe, spread } from "../../services/demo/probe.js";
import { Sender } from "../../services/demo/sender.js";
import { checkHistory, type Violation } from "../harness/history.js";
import type { TestStack } from "../harness/stack.js";

/** When the second datacenter dies, by what it has done of the takeover of the first. */
export const moments = ["opened", "asked"] as const;
export type Moment = (typeof moments)[number];

export interface SecondDeathOptions {
  readonly rounds: number;
  readonly random: Random;
  readonly tell: (line: string) => void;
  readonly writesPerSecond?: number;
}

export interface SecondDeath {
  readonly moment: Moment;
  readonly first: string;
  readonly second: string;
  /** Shards of the first that the second had opened when it died, of all that the first owned. */
  readonly opened: { readonly bySecond: number; readonly of: number };
  /** From the second death to the first accepted write of each shard of both; null without a majority. */
  readonly firstWriteMs: { readonly worst: number; readonly median: number } | null;
  /** The last to die, after which there was no majority. */
  readonly last: string;
  /** Writes refused without a majority, by code. */
  readonly refused: Readonly<Record<string, number>>;
  readonly convergeMs: number;
}

export interface SecondDeathResult {
  readonly rounds: readonly SecondDeath[];
  readonly history: History;
  readonly violations: readonly Violation[];
}

/** The stack's default; a lease is granted for no longer. */
const leaseMs = 1_500;
/** How long a group without a majority is watched after the last lease has ended. */
const watchMs = 5_000;
/** Nobody can own or write a shard then, and these say so. */
const clear = new Set(["no_lease", "owner_unreachable", "no_majority"]);

/**
 * Kills a datacenter, and a second one while it takes part in the takeover of the first. With a majority of sites left the
 * others own everything; without one, there or after one more death, writes stop and no epoch moves. Then all return.
 */
export async function runSecondDeaths(stack: TestStack, options: SecondDeathOptions): Promise<SecondDeathResult> {
  const client = new Client(Object.fromEntries(stack.dcs.map((dc) => [dc, stack.url(dc)])));
  try {
    return await new SecondDeaths(stack, client, options).run();
  } finally {
    client.close();
  }
}

class SecondDeaths {
  readonly #stack: TestStack;
  readonly #client: Client;
  readonly #options: SecondDeathOptions;
  readonly #group: Group;
  readonly #journal = new Journal();
  readonly #sender: Sender;
  // Others than those of the rounds: one history may follow another on a stack.
  readonly #written: readonly InventoryCluster[] = readInventory()
    .filter((_, index) => index % 3 === 1)
    .slice(0, 60);
  readonly #found: Violation[] = [];

  constructor(stack: TestStack, client: Client, options: SecondDeathOptions) {
    this.#stack = stack;
    this.#client = client;
    this.#options = options;
    this.#group = new Group(client);
    this.#sender = new Sender(client, this.#journal);
  }

  async run(): Promise<SecondDeathResult> {
    await this.#require(60_000, "all datacenters serve", () => this.#group.whyNotConverged());
    const rounds: SecondDeath[] = [];
    for (let number = 0; number < this.#options.rounds; number++)
      rounds.push(await this.#round(number, moments[number % moments.length] ?? "opened"));
    this.#options.tell("reading everything back in every datacenter, and checking the history");
    const mine = new Set(this.#journal.writes.map(({ clusterId }) => clusterId));
    const views = (await this.#group.views()).map((view) => ({
      ...view,
      clusters: new Map([...view.clusters].filter(([id]) => mine.has(id))),
      jobs: new Map<string, never>(),
    }));
    const history = this.#journal.closed(views, await this.#group.divergent());
    return { rounds, history, violations: [...this.#found, ...checkHistory(history)] };
  }

  async #round(number: number, moment: Moment): Promise<SecondDeath> {
    const { random, tell, writesPerSecond = 60 } = this.#options;
    const sites = this.#stack.stack.sites.length;
    const before = await this.#owners(this.#stack.dcs[0] ?? "");
    const owned = (dc: string): number[] => [...before].filter(([, owner]) => owner === dc).map(([shard]) => shard);
    const first = [...this.#stack.dcs].sort((a, b) => owned(b).length - owned(a).length)[0] ?? "";
    const load = new Load({
      sender: this.#sender,
      dcs: this.#stack.dcs,
      clusters: this.#written,
      name: `D${number}`,
      random,
      perSecond: writesPerSecond,
    });
    load.start();
    try {
      await pause(1000);
      const others = this.#stack.dcs.filter((dc) => dc !== first);
      const watch = new TakeoverSight(this.#stack, others, first);
      await this.#stack.simulate("crash", first);
      const second = await watch.until(moment, 20_000);
      await this.#stack.simulate("crash", second);
      const diedAt = performance.now();
      const left = others.filter((dc) => dc !== second);
      const bySecond = watch.openedBy(second);
      watch.close();
      let firstWriteMs: SecondDeath["firstWriteMs"] = null;
      let last = second;
      let survivors = left;
      let deadAt = diedAt;
      if (sites - 2 > sites / 2) {
        const probe = new Probe({
          sender: this.#sender,
          shards: [...owned(first), ...owned(second)],
          total: before.size,
          survivors: left,
          name: `Q${number}`,
        });
        const found = await probe.run(30_000);
        const inVain = [...found].filter(([, at]) => at === null).map(([shard]) => shard);
        if (inVain.length > 0)
          this.#violation(`round ${number}: no write of shards ${inVain.join(", ")} within 30 s after ${second} died`);
        firstWriteMs = spread([...found.values()].flatMap((at) => (at === null ? [] : [at - diedAt])));
        for (const dc of left) {
          const foreign = [...(await this.#owners(dc))].filter(([, owner]) => !left.includes(owner));
          if (foreign.length > 0) this.#violation(`round ${number}: ${dc} sees ${foreign.length} shards with the dead`);
        }
        last = left[0] ?? "";
        survivors = left.slice(1);
        await this.#stack.simulate("crash", last);
        deadAt = performance.now();
      }
      const refused = await this.#watchStop(number, survivors[0] ?? "", deadAt);
      const healAt = performance.now();
      for (const dc of this.#stack.dcs) if (!survivors.includes(dc)) await this.#stack.simulate("restart", dc);
      await this.#require(90_000, "all copies are equal", () => this.#group.whyNotConverged());
      await load.stop();
      await this.#require(60_000, "all copies are equal", () => this.#group.whyNotConverged());
      const convergeMs = Math.round(performance.now() - healAt);
      const of = owned(first).length;
      tell(
        `round ${number + 1}: ${first} died, then ${second}, which had ${moment === "asked" ? "asked for votes" : "opened shards"} (${bySecond} of ${of} opened): ` +
          (firstWriteMs === null
            ? "no majority"
            : `first writes worst ${firstWriteMs.worst} ms, median ${firstWriteMs.median} ms; then ${last} died`) +
          `; refused since: ${Object.entries(refused)
            .map(([code, count]) => `${count} ${code}`)
            .join(", ")}; converged ${convergeMs} ms after the return`,
      );
      return { moment, first, second, opened: { bySecond, of }, firstWriteMs, last, refused, convergeMs };
    } finally {
      await load.stop();
    }
  }

  /** Without a majority: writes are refused once the last lease has ended, no epoch moves, reads go on and say that they are stale. */
  async #watchStop(number: number, dc: string, deadAt: number): Promise<Record<string, number>> {
    const endedAt = deadAt + leaseMs;
    await pause(Math.max(0, endedAt - performance.now()));
    const before = await this.#epochs(dc);
    const [cluster] = this.#written;
    for (const end = endedAt + watchMs; performance.now() < end; await pause(250)) {
      const read = await this.#client.request(dc, "GET", `/v1/clusters/${cluster?.id ?? ""}`);
      if (![200, 404].includes(read.status) || (read.status === 200 && read.headers["hothot-stale"] !== "true"))
        this.#violation(
          `round ${number}: a read answered ${read.status}, stale: ${String(read.headers["hothot-stale"])}`,
        );
    }
    const after = await this.#epochs(dc);
    if (after !== before) this.#violation(`round ${number}: an epoch moved without a majority of sites`);
    const seenUntil = performance.now();
    const refused: Record<string, number> = {};
    for (const { mark, attempts } of this.#journal.writes)
      for (const { dc: through, startedAt, endedAt: answeredAt, status, code } of attempts) {
        if (through !== dc || startedAt < endedAt || startedAt > seenUntil || answeredAt > seenUntil) continue;
        if (status >= 200 && status < 300)
          this.#violation(
            `round ${number}: ${mark} was acknowledged ${Math.round(startedAt - deadAt)} ms after the majority had gone`,
          );
        else if (status !== 503 || !clear.has(code ?? ""))
          this.#violation(`round ${number}: ${mark} was refused by ${status} ${code ?? ""}`);
        else refused[code ?? ""] = (refused[code ?? ""] ?? 0) + 1;
      }
    if (Object.keys(refused).length === 0) this.#violation(`round ${number}: no write was refused without a majority`);
    return refused;
  }

  async #epochs(dc: string): Promise<string> {
    const shards = await this.#group.shards(dc);
    return (shards ?? []).map(({ shard, owner, epoch }) => `${shard} ${owner ?? ""} ${epoch}`).join("\n");
  }

  async #owners(dc: string): Promise<ReadonlyMap<number, string>> {
    let owners: ReadonlyMap<number, string> | null = null;
    await this.#require(20_000, "every shard has an owner", async () => {
      owners = await this.#group.owners(dc);
      return owners === null ? "some shards have none" : null;
    });
    return owners ?? new Map<number, string>();
  }

  #violation(what: string): void {
    this.#found.push({ invariant: 0, what });
  }

  /** A wait in vain ends the run: nothing after it would mean anything. */
  async #require(ms: number, what: string, condition: () => Promise<string | null>): Promise<void> {
    const { why } = await until(ms, condition);
    if (why !== null) throw new Error(`not within ${ms / 1000} s: ${what}: ${why}`);
  }
}

/** What the candidates log of a takeover, read as it is written, so that one can be killed in the midst of it. */
class TakeoverSight {
  readonly #target: string;
  readonly #files: readonly { readonly dc: string; readonly file: number; at: number; rest: string }[];
  readonly #asked = new Set<string>();
  readonly #opened = new Map<string, number>();

  constructor(stack: TestStack, dcs: readonly string[], target: string) {
    this.#target = target;
    this.#files = dcs.map((dc) => ({
      dc,
      file: openSync(path.join(stack.dir, dc, "n1.log"), "r"),
      at: Buffer.byteLength(stack.logs(dc)),
      rest: "",
    }));
  }

  /** The first candidate that has come so far. */
  async until(moment: Moment, ms: number): Promise<string> {
    for (const end = performance.now() + ms; performance.now() < end; await pause(2)) {
      this.#read();
      const [dc] = moment === "asked" ? this.#asked : this.#opened.keys();
      if (dc !== undefined) return dc;
    }
    throw new Error(`nobody has ${moment} within ${ms / 1000} s`);
  }

  /** How many shards the candidate has opened by now. */
  openedBy(dc: string): number {
    this.#read();
    return this.#opened.get(dc) ?? 0;
  }

  close(): void {
    for (const { file } of this.#files) closeSync(file);
  }

  #read(): void {
    const buffer = Buffer.alloc(65_536);
    for (const each of this.#files)
      for (let size = 1; size > 0;) {
        size = readSync(each.file, buffer, 0, buffer.length, each.at);
        each.at += size;
        const lines = (each.rest + buffer.toString("utf8", 0, size)).split("\n");
        each.rest = lines.pop() ?? "";
        for (const line of lines) this.#heard(each.dc, line);
      }
  }

  #heard(dc: string, line: string): void {
    if (line.includes('"asks for votes"') && line.includes(`"${this.#target}"`)) this.#asked.add(dc);
    if (line.includes('"opened in the log"') && line.includes(`"owner":"${dc}"`))
      this.#opened.set(dc, (this.#opened.get(dc) ?? 0) + 1);
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
