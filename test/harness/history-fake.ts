import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { RunningStack } from "../../services/demo/story.js";
import { shardOf } from "../../shards/ids.js";
import { until } from "../../infra/local/wait.js";

/** What the imitation gets wrong on purpose. */
export type FakeFault = "loses" | "hides" | "twice" | "differs" | "forgets-jobs";

interface Doc {
  readonly name: string;
  readonly spec: unknown;
  readonly labels: Record<string, string>;
}

interface Fact {
  readonly clusterId: string;
  readonly version: number;
  readonly doc: Doc;
  readonly epoch: number;
  readonly position: number;
  readonly key: string | null;
  readonly replicated: boolean;
  published: boolean;
}

interface FakeShard {
  owner: string | null;
  epoch: number;
  facts: Fact[];
}

interface FakeJob {
  id: string;
  clusterId: string;
  type: string;
  input: unknown;
  status: string;
  attempt: number;
  startedIn: string;
  runsIn: string;
  finishedAt: string | null;
}

const shardCount = 12;
const publishMs = 25;
const takeoverMs = 250;
const jobMs = 1500;

/** Three datacenters in one process, by a simple model: enough of the contract to try out those who drive and check a group. */
export class FakeGroup implements RunningStack {
  readonly dcs = ["east", "central", "west"];
  readonly #fault: FakeFault | null;
  readonly #servers = new Map<string, { server: Server; port: number }>();
  readonly #up = new Set<string>();
  readonly #shards: FakeShard[];
  readonly #jobs = new Map<string, FakeJob>();
  readonly #keys = new Map<string, { readonly text: string; readonly fact: Fact | null }>();
  readonly #divergent: (Fact & { readonly dc: string; readonly shard: number })[] = [];
  readonly #timers = new Set<NodeJS.Timeout>();
  /** By idempotency key. */
  readonly #started = new Map<string, FakeJob>();
  /** Jobs end only after the first crash, so that it finds some of them running, however slow this process is. */
  #crashed: () => void = () => undefined;
  readonly #afterCrash = new Promise<void>((resolve) => (this.#crashed = resolve));

  constructor(fault: FakeFault | null = null) {
    this.#fault = fault;
    this.#shards = Array.from({ length: shardCount }, (_, i) => ({
      owner: this.dcs[i % 3] ?? "",
      epoch: 1,
      facts: [],
    }));
  }

  async start(): Promise<this> {
    for (const dc of this.dcs) await this.#listen(dc, 0);
    return this;
  }

  url(dc: string): string {
    return `http://127.0.0.1:${this.#servers.get(dc)?.port ?? 0}`;
  }

  async simulate(action: "crash" | "restart", dc: string): Promise<void> {
    if (action === "restart") return this.#listen(dc, this.#servers.get(dc)?.port ?? 0);
    // Something must be there that was acknowledged and has not left the datacenter.
    const unpublished = (): boolean =>
      this.#shards.some((shard) => shard.owner === dc && shard.facts.at(-1)?.replicated === false);
    await until(unpublished, 10_000, 2);
    this.#up.delete(dc);
    this.#crashed();
    const server = this.#servers.get(dc)?.server;
    const closed = new Promise((resolve) => server?.close(resolve));
    server?.closeAllConnections();
    this.#shards.forEach((shard, number) => {
      if (shard.owner !== dc) return;
      shard.owner = null;
      // What was acknowledged locally last had not left the datacenter yet, however slow this process is.
      const last = shard.facts.at(-1);
      if (last !== undefined && !last.replicated) last.published = false;
      const lost = this.#fault === "loses" ? Math.ceil(shard.facts.length / 2) : 0;
      const from = shard.facts.findIndex((fact, index) => !fact.published || index >= shard.facts.length - lost);
      const dropped = from < 0 ? [] : shard.facts.splice(from);
      for (const fact of dropped) if (fact.key !== null) this.#keys.delete(fact.key);
      this.#divergent.push(
        ...dropped.filter(({ published }) => !published).map((fact) => ({ ...fact, dc, shard: number })),
      );
      this.#after(takeoverMs + number, () => this.#open(shard, number));
    });
    await closed;
  }

  async stop(): Promise<void> {
    for (const timer of this.#timers) clearTimeout(timer);
    for (const { server } of this.#servers.values()) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  #open(shard: FakeShard, number: number): void {
    const survivors = this.dcs.filter((dc) => this.#up.has(dc));
    shard.owner = survivors[number % survivors.length] ?? null;
    shard.epoch++;
    for (const job of this.#jobs.values()) {
      if (job.status !== "running" || shardOf(job.clusterId, shardCount) !== number) continue;
      if (this.#fault === "forgets-jobs") continue;
      job.attempt++;
      job.runsIn = shard.owner ?? "";
      this.#work(job);
    }
  }

  #work(job: FakeJob): void {
    const { attempt } = job;
    this.#after(jobMs, async () => {
      await this.#afterCrash;
      if (job.attempt !== attempt || !this.#up.has(job.runsIn)) return;
      job.status = "complete";
      job.finishedAt = new Date().toISOString();
    });
  }

  async #listen(dc: string, port: number): Promise<void> {
    const server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on("data", (chunk: Buffer) => chunks.push(chunk));
      request.on("end", () => this.#answer(dc, request, Buffer.concat(chunks).toString(), response));
    });
    await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
    this.#servers.set(dc, { server, port: (server.address() as AddressInfo).port });
    this.#up.add(dc);
  }

  #answer(dc: string, request: IncomingMessage, body: string, response: ServerResponse): void {
    const send = (status: number, value: unknown, headers: Record<string, string> = {}): void => {
      response.writeHead(status, headers);
      response.end(typeof value === "string" ? value : JSON.stringify(value));
    };
    const url = new URL(request.url ?? "/", "http://fake");
    const [, , what, id = "", more] = url.pathname.split("/");
    if (request.method === "PUT") this.#put(id, JSON.parse(body) as Doc, request, send);
    else if (request.method === "POST" && more === "operations")
      this.#startJob(id, JSON.parse(body) as FakeJob, request, send);
    else if (what === "clusters") send(200, { items: this.#clusters(dc), nextCursor: null });
    else if (what === "jobs") send(200, { items: [...this.#jobs.values()], nextCursor: null });
    else if (what === "shards")
      send(200, {
        items: this.#shards.map(({ owner, epoch }, shard) => ({
          shard,
          owner,
          epoch,
          state: owner === null ? "unowned" : "owned",
        })),
        nextCursor: null,
      });
    else if (what === "topology")
      send(200, {
        datacenters: this.dcs.map((name) => ({
          name,
          state: this.#up.has(name) ? "serving" : "dead",
          shardsOwned: 0,
          lag: { positions: 0, ms: 0 },
        })),
      });
    else if (what === "verify")
      send(
        200,
        this.#shards
          .flatMap((_, shard) =>
            this.dcs.map((name) => `${JSON.stringify({ shard, dc: name, equal: true, clusters: [] })}\n`),
          )
          .join(""),
      );
    else if (what === "divergent-operations") send(200, { items: this.#listed(dc), nextCursor: null });
    else send(404, { code: "not_found" });
  }

  #put(
    id: string,
    doc: Doc,
    request: IncomingMessage,
    send: (status: number, value: unknown, headers?: Record<string, string>) => void,
  ): void {
    const number = shardOf(id, shardCount);
    const shard = this.#shards[number];
    if (shard === undefined || shard.owner === null) return send(503, { code: "owner_unreachable" });
    const key = (request.headers["idempotency-key"] as string | undefined) ?? null;
    const before = key === null ? undefined : this.#keys.get(key);
    const place = (fact: Fact): Record<string, string> => ({
      "hothot-position": `${number}:${fact.epoch}:${fact.position}`,
      "hothot-owner": shard.owner ?? "",
      "hothot-served-by": `${shard.owner ?? ""}/n1`,
      etag: `"${fact.version}"`,
    });
    if (before?.fact && this.#fault !== "twice")
      return send(200, before.text, { ...place(before.fact), "idempotency-replayed": "true" });
    const version = (shard.facts.findLast(({ clusterId }) => clusterId === id)?.version ?? 0) + 1;
    const fact: Fact = {
      clusterId: id,
      version,
      doc,
      epoch: shard.epoch,
      position: (shard.facts.at(-1)?.position ?? 0) + 1,
      key,
      replicated: request.headers["hothot-durability"] === "replicated",
      published: false,
    };
    shard.facts.push(fact);
    const text = JSON.stringify({ id, version, ...doc });
    if (key !== null) this.#keys.set(key, { text, fact });
    const acknowledge = (): void => send(version === 1 ? 201 : 200, text, place(fact));
    this.#after(publishMs, () => {
      if (!shard.facts.includes(fact)) return;
      fact.published = true;
      if (fact.replicated) acknowledge();
    });
    if (!fact.replicated) acknowledge();
  }

  #startJob(
    clusterId: string,
    { type, input }: FakeJob,
    request: IncomingMessage,
    send: (status: number, value: unknown, headers?: Record<string, string>) => void,
  ): void {
    const number = shardOf(clusterId, shardCount);
    const owner = this.#shards[number]?.owner ?? null;
    if (owner === null) return send(503, { code: "owner_unreachable" });
    const key = (request.headers["idempotency-key"] as string | undefined) ?? "";
    const before = this.#started.get(key);
    const job: FakeJob = before ?? {
      id: `j${number}-${this.#jobs.size}`,
      clusterId,
      type,
      input,
      status: "running",
      attempt: 1,
      startedIn: owner,
      runsIn: owner,
      finishedAt: null,
    };
    if (before === undefined) {
      this.#jobs.set(job.id, job);
      if (key !== "") this.#started.set(key, job);
      this.#work(job);
    }
    // A position of its own kind: jobs are not among this imitation's facts.
    send(202, job, {
      "hothot-position": `${1000 + number}:1:${this.#jobs.size}`,
      "hothot-owner": owner,
      "hothot-served-by": `${owner}/n1`,
    });
  }

  #clusters(dc: string): unknown[] {
    const latest = new Map<string, Fact>();
    for (const { facts } of this.#shards) for (const fact of facts) latest.set(fact.clusterId, fact);
    const all = [...latest.values()].map(({ clusterId, version, doc }) => ({ id: clusterId, version, ...doc }));
    return this.#fault === "differs" && dc === "west" ? all.slice(1) : all;
  }

  #listed(dc: string): unknown[] {
    if (this.#fault === "hides") return [];
    return this.#divergent
      .filter((item) => item.dc === dc)
      .map(({ shard, epoch, position, clusterId, key, doc }) => {
        const again = key !== null && this.#keys.has(key);
        return {
          dc,
          shard,
          epoch,
          position,
          clusterId,
          type: "cluster.put",
          idempotencyKey: key,
          value: doc,
          status: again ? "superseded" : "open",
        };
      });
  }

  #after(ms: number, action: () => void | Promise<void>): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      void action();
    }, ms);
    this.#timers.add(timer);
  }
}
