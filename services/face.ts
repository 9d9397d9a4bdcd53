import { createHash } from "node:crypto";
import { Problem } from "../infra/errors.js";
import type { EventLoop } from "../infra/event-loop.js";
import { readFailure } from "../infra/postgres/faults.js";
import type { JsonObject } from "../replication/entities.js";
import type { LoadRow } from "../replication/load.js";
import type { Route } from "../routing/router.js";
import { shardOf, type ShardId } from "../shards/ids.js";
import type { ClusterQuotas } from "./access/quotas.js";
import type { WriteRates } from "./access/write-rates.js";
import type {
  ClusterQuery,
  Command,
  Datacenter,
  DcEvent,
  JobQuery,
  Listed,
  Page,
  Reply,
  RequestContext,
  TakeRequest,
  VerifyLine,
} from "./api.js";
import { Arrival } from "./arrival.js";
import { clusterView } from "./clusters/operations.js";
import type { DatacenterParts } from "./datacenter.js";
import { DcEvents } from "./dc-events.js";
import { fingerprint, isRepeatable, shardOfCommand, type CommandContext } from "./executor.js";
import { keepGauges } from "./gauges.js";
import { GroupView } from "./group-view.js";
import { jobView } from "./jobs/operations.js";
import { parseJobId } from "./jobs/ids.js";
import { SeenKeys } from "./seen-keys.js";
import { isOwnerless, keepsItsMeaning, type FinishCommand, type FinishStore } from "./jobs/finish-store.js";
import type { Verifier } from "./verify.js";

/** How long the answer to a worker's registration waits for it to arrive here, milliseconds. */
const arrivalMs = 5_000;
/** Of a load's time, what it may wait for the tenant's turn; the rest is for its owner. */
const ownTurn = 0.8;

const unread = (error: unknown): never => {
  throw readFailure(error);
};

/** What HTTP stands on, in front of a datacenter's process. */
export class Face implements Datacenter {
  readonly name: string;
  readonly node: string;
  readonly #p: DatacenterParts;
  readonly #verifier: Verifier;
  readonly #quotas: ClusterQuotas;
  readonly #writes: WriteRates;
  readonly #view: GroupView;
  readonly #arrival: Arrival;
  readonly #events: DcEvents;
  readonly #keys: SeenKeys;
  readonly #finishes: FinishStore;

  constructor(
    parts: DatacenterParts,
    verifier: Verifier,
    quotas: ClusterQuotas,
    writes: WriteRates,
    loop: EventLoop,
    finishes: FinishStore,
  ) {
    this.#p = parts;
    this.#quotas = quotas;
    this.#writes = writes;
    this.#view = new GroupView(parts, loop);
    this.#arrival = new Arrival(parts);
    this.#events = new DcEvents(parts);
    this.#verifier = verifier;
    this.#finishes = finishes;
    this.name = parts.site;
    this.node = parts.node;
    this.#keys = new SeenKeys(Math.min(600_000, parts.config.idempotencyRetentionMs));
    keepGauges(parts, loop);
  }

  /** @param asked fingerprint of the request that this carries out anew, under its key */
  async execute(context: RequestContext, command: Command, asked?: string): Promise<Reply> {
    const began = this.#p.time.monotonic();
    const key = context.idempotencyKey ?? null;
    const placed =
      command.type === "cluster.create" && command.id === undefined
        ? { ...command, id: this.newId(context.caller.tenant, key) }
        : command;
    const labels = { durability: context.durability };
    let giveBack: () => void = () => undefined;
    let tried: Route = "local";
    const isWrite = placed.type !== "cluster.get" && placed.type !== "job.get" && placed.type !== "job.tasks";
    try {
      const { tenant, principal } = context.caller;
      const print = key === null ? "" : (asked ?? fingerprint(placed));
      if (key !== null) this.#keys.check(tenant, key, print, began);
      if (placed.type === "cluster.create" || placed.type === "cluster.put")
        giveBack = await this.#quotas.reserve(tenant, placed.id ?? "");
      if (context.minPosition !== undefined) await this.#arrival.of(context.minPosition, context.deadline);
      const { result, route } = await this.#p.router.execute({
        shard: shardOfCommand(placed, this.#p.shards),
        command: placed,
        context: {
          caller: { tenant, principal },
          durability: context.durability,
          requestId: context.requestId,
          traceparent: context.traceparent ?? null,
          key,
          ...(asked === undefined ? {} : { fingerprint: asked }),
        } satisfies CommandContext,
        deadline: context.deadline,
        repeatable: isRepeatable(placed, key),
        write: isWrite,
        tried: (route) => (tried = route),
      });
      if (key !== null) this.#keys.used(tenant, key, print, began);
      if (isWrite) {
        this.#p.metrics.writes.inc({ ...labels, outcome: "ok", route });
        this.#p.metrics.writeSeconds.observe((this.#p.time.monotonic() - began) / 1000);
      }
      // Who registers here may take here: the registration has arrived before its answer does.
      if (placed.type === "worker.put" && route === "forwarded" && result.place !== undefined) {
        const { shard, epoch, position } = result.place;
        const until = Math.min(context.deadline, this.#p.time.monotonic() + arrivalMs);
        await this.#p.progress.wait(shard, epoch, position, until).catch(() => undefined);
      }
      return result;
    } catch (failure) {
      const error = readFailure(failure);
      if (!(error instanceof Problem && error.code === "outcome_unknown")) giveBack();
      if (isWrite)
        this.#p.metrics.writes.inc({
          ...labels,
          outcome: error instanceof Problem ? error.code : "internal",
          route: tried,
        });
      if (placed.type === "task.finish" && isOwnerless(error)) throw await this.#kept(context, placed, error);
      throw error;
    }
  }

  /** A finish without an owner is stored, and forwarded until it is answered; its worker may still repeat it. */
  async #kept(context: RequestContext, finish: FinishCommand, error: unknown): Promise<unknown> {
    if (!keepsItsMeaning(finish)) return error;
    try {
      const key = await this.#finishes.keep(context.caller, finish, 0);
      if (key === undefined) return error;
    } catch {
      return error;
    }
    return new Problem("outcome_unknown", "No owner can be reached; the finish is stored here, to be forwarded.", {
      cause: error,
    });
  }

  /** Rows of one shard, of a bulk request, by way of their owner: each counts as a write of its tenant. */
  async load(context: RequestContext, shard: ShardId, rows: readonly LoadRow[]): Promise<Reply> {
    const labels = { durability: context.durability };
    const { tenant, principal } = context.caller;
    const rooms: (() => void)[] = [];
    let tried: Route = "local";
    try {
      const now = this.#p.time.monotonic();
      // A repetition writes nothing more, so it waits for no turn of its own.
      if (!(await this.#wasLoaded(tenant, context.idempotencyKey, shard))) {
        rooms.push(await this.#writes.takeRows(tenant, rows.length, now + ownTurn * (context.deadline - now)));
        for (const row of rows) rooms.push(await this.#quotas.reserve(tenant, row.id));
      }
      const { result, route } = await this.#p.router.execute({
        shard,
        command: { type: "cluster.load", shard, rows },
        context: {
          caller: { tenant, principal },
          durability: context.durability,
          requestId: context.requestId,
          traceparent: context.traceparent ?? null,
          key: context.idempotencyKey ?? null,
        } satisfies CommandContext,
        deadline: context.deadline,
        repeatable: true,
        write: true,
        bulk: true,
        tried: (route) => (tried = route),
      });
      result.confirm?.();
      if (result.replayed === true) for (const back of rooms) back();
      this.#p.metrics.writes.inc({ ...labels, outcome: "ok", route }, rows.length);
      return result;
    } catch (failure) {
      const error = readFailure(failure);
      const outcome = error instanceof Problem ? error.code : "internal";
      if (outcome !== "outcome_unknown") for (const back of rooms) back();
      this.#p.metrics.writes.inc({ ...labels, outcome, route: tried }, rows.length);
      throw error;
    }
  }

  /** Whether this key's load has taken effect, as far as this copy is; only of a tenant with limits. */
  async #wasLoaded(tenant: string, key: string | undefined, shard: ShardId): Promise<boolean> {
    if (key === undefined || !this.#writes.limited(tenant)) return false;
    const since = this.#p.time.wall() - this.#p.config.idempotencyRetentionMs;
    return (await this.#p.queries.keys(tenant, key, since)).some((row) => row.shard === shard);
  }

  async getCluster(context: RequestContext, id: string): Promise<Reply> {
    const shard = shardOf(id, this.#p.shards);
    const atOwner = (): Promise<Reply> => this.execute(context, { type: "cluster.get", id });
    // Rows that are being restored are read where they are whole; looked at before and after, as a restore may begin meanwhile.
    const waits = (): boolean => this.#p.restorer.isWaiting(shard, context.caller.tenant, id);
    if (context.consistency === "owner") return atOwner();
    if (context.minPosition !== undefined) await this.#arrival.of(context.minPosition, context.deadline);
    if (waits()) return atOwner();
    const row = await this.#p.queries.cluster(context.caller.tenant, id);
    if (waits()) return atOwner();
    const owner = this.#p.map.get(shard)?.owner ?? null;
    if (row === undefined || row.deleted)
      throw new Problem("not_found", `There is no cluster ${id}.`, this.#localRead(shard));
    return { status: 200, body: clusterView(row, owner), version: row.version, ...this.#localRead(shard) };
  }

  async listClusters(context: RequestContext, query: ClusterQuery): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#arrival.of(context.minPosition, context.deadline);
    const shards = query.owner === undefined ? null : this.#p.map.ownedBy(query.owner).map((head) => head.shard);
    const { rows, next } = await this.#p.queries.clusters(context.caller.tenant, query, shards);
    const items = rows.map((row) => clusterView(row, this.#p.map.get(row.shard)?.owner ?? null));
    return { status: 200, body: { items, nextCursor: next }, ...this.#localRead(null) };
  }

  async getJob(context: RequestContext, id: string): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#arrival.of(context.minPosition, context.deadline);
    const shard = parseJobId(id);
    if (shard === undefined || shard >= this.#p.shards) throw new Problem("not_found", `There is no job ${id}.`);
    const atOwner = (): Promise<Reply> => this.execute(context, { type: "job.get", jobId: id });
    if (context.consistency === "owner" || this.#p.restorer.shardWaits(shard)) return atOwner();
    const job = await this.#p.queries.job(context.caller.tenant, id);
    if (this.#p.restorer.shardWaits(shard)) return atOwner();
    if (job === undefined) throw new Problem("not_found", `There is no job ${id}.`, this.#localRead(shard));
    return { status: 200, body: jobView(job), ...this.#localRead(job.shard) };
  }

  async listJobs(context: RequestContext, query: JobQuery): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#arrival.of(context.minPosition, context.deadline);
    const { rows, next } = await this.#p.queries.jobs(context.caller.tenant, query);
    return {
      status: 200,
      body: { items: rows.map((row) => jobView(row)), nextCursor: next },
      ...this.#localRead(null),
    };
  }

  async takeTasks(context: RequestContext, request: TakeRequest, signal: AbortSignal): Promise<Reply> {
    let { waitMs } = request;
    if (context.minPosition !== undefined) {
      await this.#unlessLeft(this.#arrival.of(context.minPosition, context.deadline, signal), signal);
      waitMs = Math.max(0, Math.min(waitMs, Math.floor(context.deadline - this.#p.time.monotonic())));
    }
    // The database's errors are those of the look for its worker: nothing was taken yet.
    const tasks = await this.#p.dispatcher
      .take({ ...request, waitMs, tenant: context.caller.tenant }, signal)
      .catch(unread);
    return { status: 200, body: { tasks }, servedBy: this.#p.servedBy };
  }

  async workerHeartbeat(context: RequestContext, workerId: string): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#arrival.of(context.minPosition, context.deadline);
    const found = await this.#p.data.db
      .selectFrom("workers")
      .select("id")
      .where("tenant", "=", context.caller.tenant)
      .where("id", "=", workerId)
      .where("deleted", "=", false)
      .executeTakeFirst()
      .catch(unread);
    if (found === undefined) throw new Problem("not_found", `Worker ${workerId} is not registered.`);
    return { status: 200, body: {}, servedBy: this.#p.servedBy };
  }

  topology(): Promise<JsonObject> {
    return this.#view.topology();
  }

  shards(): Promise<Listed> {
    return this.#view.shards();
  }

  history(page: Page): Promise<Listed> {
    return this.#view.history(page);
  }

  lag(): Promise<Listed> {
    return this.#view.lag();
  }

  divergent(query: Page & { readonly status?: string }): Promise<Listed> {
    return this.#view.divergent(query);
  }

  divergentById(id: string): Promise<JsonObject> {
    return this.#view.divergentById(id);
  }

  verify(signal: AbortSignal): AsyncIterable<VerifyLine> {
    return this.#verifier.run(signal);
  }

  readiness(): { ready: boolean; reason: string | null; lagMs: number } {
    return this.#view.readiness();
  }

  onEvent(listener: (event: DcEvent) => void): () => void {
    return this.#events.on(listener);
  }

  metrics(): Promise<{ readonly contentType: string; readonly text: string }> {
    return this.#p.metrics.render();
  }

  /** Ends early when the client hangs up, or the process drains. */
  #unlessLeft(work: Promise<void>, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = (): void => resolve();
      signal.addEventListener("abort", leave, { once: true });
      if (signal.aborted) leave();
      work.then(resolve, reject).finally(() => signal.removeEventListener("abort", leave));
    });
  }

  #localRead(shard: ShardId | null): Pick<Reply, "servedBy" | "lagMs" | "stale" | "owner"> {
    const owner = shard === null ? null : (this.#p.map.get(shard)?.owner ?? null);
    const lag = shard === null ? this.#p.worstLag().ms : owner === this.name ? null : this.#p.readiness.lag(shard).ms;
    return {
      servedBy: this.#p.servedBy,
      ...(owner === null ? {} : { owner }),
      ...(lag === null ? {} : { lagMs: lag }),
      ...(this.#p.leases.valid && !this.#unsettled(shard) && !(shard === null && this.#p.restorer.loads)
        ? {}
        : { stale: true }),
    };
  }

  /** The log gave the shard here (of all shards: any), but has not confirmed it yet: what stands here may be divergent. */
  #unsettled(shard: ShardId | null): boolean {
    const heads = shard === null ? this.#p.map.ownedBy(this.name) : [this.#p.map.get(shard)];
    return heads.some(
      (head) => head?.owner === this.name && head.state !== "moving" && (head.state !== "owned" || !head.confirmed),
    );
  }

  /** With a key the id follows from tenant and key; else it is random, of a shard that this datacenter owns (any, if it owns none). */
  newId(tenant: string, key: string | null): string {
    if (key !== null) return `c-${createHash("sha256").update(`${tenant}\n${key}`).digest("hex").slice(0, 24)}`;
    const owned = new Set(this.#p.map.ownedBy(this.name).map((head) => head.shard));
    let id = `c-${this.#p.random.token(16)}`;
    for (let tries = 0; owned.size > 0 && tries < 10_000 && !owned.has(shardOf(id, this.#p.shards)); tries++)
      id = `c-${this.#p.random.token(16)}`;
    return id;
  }
}
