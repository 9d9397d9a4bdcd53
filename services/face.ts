import { createHash } from "node:crypto";
import { Problem } from "../infra/errors.js";
import type { EventLoop } from "../infra/event-loop.js";
import type { JsonObject } from "../replication/entities.js";
import type { LoadRow } from "../replication/load.js";
import { shardOf, type Epoch, type Position, type ShardId } from "../shards/ids.js";
import { automaticTakeover, datacentersOf } from "../shards/site-set.js";
import type { ClusterQuotas } from "./access/quotas.js";
import type {
  ClusterQuery,
  Command,
  Datacenter,
  DcEvent,
  JobQuery,
  Listed,
  Page,
  Place,
  Reply,
  RequestContext,
  TakeRequest,
  VerifyLine,
} from "./api.js";
import { clusterView } from "./clusters/operations.js";
import { cursorParts, decodeCursor, encodeCursor } from "./clusters/queries.js";
import type { DatacenterParts } from "./datacenter.js";
import { fingerprint, isRepeatable, shardOfCommand, type CommandContext } from "./executor.js";
import { jobView } from "./jobs/operations.js";
import { parseJobId } from "./jobs/ids.js";
import { SeenKeys } from "./seen-keys.js";
import { isOwnerless, keepsItsMeaning, type FinishCommand, type FinishStore } from "./jobs/finish-store.js";
import type { Verifier } from "./verify.js";

/** How long the answer to a worker's registration waits for it to arrive here, milliseconds. */
const arrivalMs = 1_000;

/** What HTTP stands on, in front of a datacenter's process. */
export class Face implements Datacenter {
  readonly name: string;
  readonly node: string;
  readonly #p: DatacenterParts;
  readonly #verifier: Verifier;
  readonly #quotas: ClusterQuotas;
  readonly #loop: EventLoop;
  readonly #keys: SeenKeys;
  readonly #finishes: FinishStore;
  readonly #listeners = new Set<(event: DcEvent) => void>();

  constructor(
    parts: DatacenterParts,
    verifier: Verifier,
    quotas: ClusterQuotas,
    loop: EventLoop,
    finishes: FinishStore,
  ) {
    this.#p = parts;
    this.#quotas = quotas;
    this.#loop = loop;
    this.#verifier = verifier;
    this.#finishes = finishes;
    this.name = parts.site;
    this.node = parts.node;
    this.#keys = new SeenKeys(Math.min(600_000, parts.config.idempotencyRetentionMs));
    parts.map.onChange((head, before) => {
      if (before === undefined || before.epoch !== head.epoch || before.state !== head.state)
        this.#emit({
          type: "ownership",
          data: {
            shard: head.shard,
            owner: head.owner,
            epoch: head.epoch,
            state: shownState(head.state),
            reason: head.reason,
          },
        });
    });
    parts.leases.onChange((valid) =>
      this.#emit({ type: "health", data: { dc: this.name, node: this.node, state: parts.state(), lease: valid } }),
    );
    parts.jobEvents.on({ jobChanged: (job, tenant) => this.#emit({ type: "job", tenant, data: job }) });
    const { metrics } = parts;
    metrics.beforeScrape(async () => {
      metrics.ownedShards.set(parts.map.ownedBy(this.name).length);
      metrics.stoppedShards.set(parts.map.all().filter((head) => head.stopped !== null).length);
      for (const [owner, ms] of parts.readiness.lagByOwner())
        metrics.replicationLagSeconds.set({ shard_owner: owner }, ms / 1000);
      metrics.unpublishedBytes.set(Math.round(parts.backlog.bytes));
      const { medianMs, p99Ms, maxMs } = loop.lag;
      metrics.eventLoopLag.set({ quantile: "0.5" }, medianMs / 1000);
      metrics.eventLoopLag.set({ quantile: "0.99" }, p99Ms / 1000);
      metrics.eventLoopLag.set({ quantile: "1" }, maxMs / 1000);
      metrics.leaseSecondsLeft.set(parts.leases.msLeft / 1000);
      const { rows } = await parts.control.pool.query<{ unpublished: number; divergent: number }>(
        "SELECT (SELECT coalesce(sum(position - published), 0)::int FROM shard_head WHERE owner = $1) AS unpublished, (SELECT count(*)::int FROM divergent_operations WHERE status = 'open') AS divergent",
        [this.name],
      );
      metrics.unpublishedRecords.set(rows[0]?.unpublished ?? 0);
      metrics.divergentOperations.set(rows[0]?.divergent ?? 0);
    });
  }

  async execute(context: RequestContext, command: Command): Promise<Reply> {
    const began = this.#p.time.monotonic();
    const key = context.idempotencyKey ?? null;
    const placed =
      command.type === "cluster.create" && command.id === undefined
        ? { ...command, id: this.newId(context.caller.tenant, key) }
        : command;
    const labels = { durability: context.durability };
    let giveBack: () => void = () => undefined;
    const isWrite = placed.type !== "cluster.get" && placed.type !== "job.get" && placed.type !== "job.tasks";
    try {
      const { tenant, principal } = context.caller;
      const print = key === null ? "" : fingerprint(placed);
      if (key !== null) this.#keys.check(tenant, key, print, began);
      if (placed.type === "cluster.create" || placed.type === "cluster.put")
        giveBack = await this.#quotas.reserve(tenant, placed.id ?? "");
      if (context.minPosition !== undefined) await this.#reach(context.minPosition, context.deadline);
      const { result, route } = await this.#p.router.execute({
        shard: shardOfCommand(placed, this.#p.shards),
        command: placed,
        context: {
          caller: { tenant, principal },
          durability: context.durability,
          requestId: context.requestId,
          traceparent: context.traceparent ?? null,
          key,
        } satisfies CommandContext,
        deadline: context.deadline,
        repeatable: isRepeatable(placed, key),
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
    } catch (error) {
      if (!(error instanceof Problem && error.code === "outcome_unknown")) giveBack();
      if (isWrite)
        this.#p.metrics.writes.inc({
          ...labels,
          outcome: error instanceof Problem ? error.code : "internal",
          route: "local",
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

  /** Rows of one shard, of a bulk request, by way of their owner. */
  async load(context: RequestContext, shard: ShardId, rows: readonly LoadRow[]): Promise<Reply> {
    const labels = { durability: context.durability };
    const { tenant, principal } = context.caller;
    const rooms: (() => void)[] = [];
    try {
      for (const row of rows) rooms.push(await this.#quotas.reserve(tenant, row.id));
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
      });
      result.confirm?.();
      this.#p.metrics.writes.inc({ ...labels, outcome: "ok", route }, rows.length);
      return result;
    } catch (error) {
      const outcome = error instanceof Problem ? error.code : "internal";
      if (outcome !== "outcome_unknown") for (const back of rooms) back();
      this.#p.metrics.writes.inc({ ...labels, outcome, route: "local" }, rows.length);
      throw error;
    }
  }

  async getCluster(context: RequestContext, id: string): Promise<Reply> {
    const shard = shardOf(id, this.#p.shards);
    const waits = this.#p.restorer.isWaiting(shard, context.caller.tenant, id);
    if (context.consistency === "owner" || waits) return this.execute(context, { type: "cluster.get", id });
    if (context.minPosition !== undefined) await this.#reach(context.minPosition, context.deadline);
    const row = await this.#p.queries.cluster(context.caller.tenant, id);
    const owner = this.#p.map.get(shard)?.owner ?? null;
    if (row === undefined || row.deleted)
      throw new Problem("not_found", `There is no cluster ${id}.`, owner === null ? {} : { owner });
    return { status: 200, body: clusterView(row, owner), version: row.version, ...this.#localRead(shard) };
  }

  async listClusters(context: RequestContext, query: ClusterQuery): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#reach(context.minPosition, context.deadline);
    const shards = query.owner === undefined ? null : this.#p.map.ownedBy(query.owner).map((head) => head.shard);
    const { rows, next } = await this.#p.queries.clusters(context.caller.tenant, query, shards);
    const items = rows.map((row) => clusterView(row, this.#p.map.get(row.shard)?.owner ?? null));
    return { status: 200, body: { items, nextCursor: next }, ...this.#localRead(null) };
  }

  async getJob(context: RequestContext, id: string): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#reach(context.minPosition, context.deadline);
    const shard = parseJobId(id);
    if (shard === undefined || shard >= this.#p.shards) throw new Problem("not_found", `There is no job ${id}.`);
    // Rows that are being restored are read where they are whole.
    if (context.consistency === "owner" || this.#p.restorer.shardWaits(shard))
      return this.execute(context, { type: "job.get", jobId: id });
    const job = await this.#p.queries.job(context.caller.tenant, id);
    if (job === undefined) throw new Problem("not_found", `There is no job ${id}.`);
    return { status: 200, body: jobView(job), ...this.#localRead(job.shard) };
  }

  async listJobs(context: RequestContext, query: JobQuery): Promise<Reply> {
    if (context.minPosition !== undefined) await this.#reach(context.minPosition, context.deadline);
    const { rows, next } = await this.#p.queries.jobs(context.caller.tenant, query);
    return {
      status: 200,
      body: { items: rows.map((row) => jobView(row)), nextCursor: next },
      ...this.#localRead(null),
    };
  }

  async takeTasks(context: RequestContext, request: TakeRequest, signal: AbortSignal): Promise<Reply> {
    const tasks = await this.#p.dispatcher.take({ ...request, tenant: context.caller.tenant }, signal);
    return { status: 200, body: { tasks }, servedBy: this.#p.servedBy };
  }

  async workerHeartbeat(context: RequestContext, workerId: string): Promise<Reply> {
    const found = await this.#p.data.db
      .selectFrom("workers")
      .select("id")
      .where("tenant", "=", context.caller.tenant)
      .where("id", "=", workerId)
      .where("deleted", "=", false)
      .executeTakeFirst();
    if (found === undefined) throw new Problem("not_found", `Worker ${workerId} is not registered.`);
    return { status: 200, body: {}, servedBy: this.#p.servedBy };
  }

  async topology(): Promise<JsonObject> {
    const { map, peers, siteSets, leases } = this.#p;
    const set = siteSets.set;
    const datacenters = datacentersOf(set).map((name) => {
      const shardsOwned = map.ownedBy(name).length;
      if (name === this.name) {
        const lag = this.#p.worstLag();
        return {
          name,
          url: this.#p.url,
          state: this.#p.state(),
          leaseMsLeft: Math.round(leases.msLeft),
          shardsOwned,
          lag,
          stopped: map.all().filter((head) => head.stopped !== null).length,
        };
      }
      const report = peers.lastReport(name);
      const state = peers.state(name);
      const gone = state === "dead";
      return {
        name,
        url: report?.url ?? null,
        state,
        leaseMsLeft: gone ? 0 : Math.round(report?.leaseMsLeft ?? 0),
        shardsOwned,
        lag: { positions: gone ? null : (report?.lagPositions ?? null), ms: gone ? null : (report?.lagMs ?? null) },
      };
    });
    const hears = leases.hears;
    const witnesses = set.sites
      .filter((site) => site.witness)
      .map((site) => ({ name: site.name, state: hears.includes(site.name) ? "serving" : "dead" }));
    return {
      datacenters,
      witnesses,
      shards: set.shards,
      partitions: set.partitions,
      failoverPaused: set.failoverPaused,
      automaticTakeover: automaticTakeover(set),
      seenFrom: this.name,
    };
  }

  async shards(): Promise<Listed> {
    const items = this.#p.map.all().map((head) => ({
      shard: head.shard,
      partition: head.partition,
      owner: head.owner,
      epoch: head.epoch,
      state: shownState(head.owner === null ? "none" : head.state),
      position: this.#p.progress.place(head.shard).position,
      since: head.since,
      reason: head.reason === "" ? head.kind : `${head.kind}: ${head.reason}`,
      ...(head.stopped === null ? {} : { stopped: head.stopped }),
    }));
    return { items, nextCursor: null };
  }

  async history(page: Page): Promise<Listed> {
    const after = page.cursor === undefined ? null : cursorParts(page.cursor, ["time", "shard", "epoch"]);
    const { rows } = await this.#p.control.pool.query<{
      shard: number;
      epoch: number;
      at: string;
      from_dc: string | null;
      to_dc: string;
      kind: string;
      reason: string;
      by: string;
      phases_ms: object;
      drained: number;
      divergent: number;
    }>(
      `SELECT * FROM history WHERE $1::timestamptz IS NULL OR (at, shard, epoch) > ($1::timestamptz, $2::int, $3::bigint) ORDER BY at, shard, epoch LIMIT $4`,
      [after?.[0] ?? null, after?.[1] ?? 0, after?.[2] ?? 0, page.limit + 1],
    );
    const items = rows.slice(0, page.limit).map((row) => ({
      id: `${row.shard}-${row.epoch}`,
      at: row.at,
      shard: row.shard,
      epoch: row.epoch,
      from: row.from_dc,
      to: row.to_dc,
      kind: row.kind,
      reason: row.reason,
      by: row.by,
      phasesMs: row.phases_ms,
      drained: row.drained,
      divergent: row.divergent,
    }));
    const last = items.at(-1);
    return {
      items,
      nextCursor:
        rows.length > page.limit && last !== undefined
          ? encodeCursor(JSON.stringify([last.at, last.shard, last.epoch]))
          : null,
    };
  }

  async lag(): Promise<Listed> {
    const items = this.#p.map.all().map((head) => ({
      shard: head.shard,
      owner: head.owner,
      ...(head.owner === this.name ? { positions: 0, ms: 0 } : this.#p.progress.lag(head.shard)),
      // Rows are missing whatever the position says: a snapshot, or rows that were undone.
      ...(this.#p.restorer.shardWaits(head.shard) ? { loading: true } : {}),
      ...(head.stopped === null ? {} : { stopped: head.stopped }),
    }));
    return { items, nextCursor: null };
  }

  async divergent(query: Page & { readonly status?: string }): Promise<Listed> {
    let select = this.#p.data.db.selectFrom("divergentOperations").selectAll();
    if (query.status !== undefined) select = select.where("status", "=", query.status);
    if (query.cursor !== undefined) select = select.where("id", ">", decodeCursor(query.cursor));
    const rows = await select
      .orderBy("id")
      .limit(query.limit + 1)
      .execute();
    const items = rows.slice(0, query.limit).map(divergentView);
    return { items, nextCursor: rows.length > query.limit ? encodeCursor(rows[query.limit - 1]?.id ?? "") : null };
  }

  async divergentById(id: string): Promise<JsonObject> {
    const row = await this.#p.data.db
      .selectFrom("divergentOperations")
      .selectAll()
      .where("id", "=", id)
      .executeTakeFirst();
    if (row === undefined) throw new Problem("not_found", `There is no divergent operation ${id} here.`);
    const current = await this.#p.queries.cluster(row.tenant, row.clusterId);
    const shown =
      current === undefined || current.deleted
        ? null
        : clusterView(current, this.#p.map.get(current.shard)?.owner ?? null);
    const value = (row.value as { cluster?: Parameters<typeof clusterView>[0] }).cluster;
    const { compare } = await import("fast-json-patch").then((module) => module.default);
    const diff =
      value === undefined ? [] : compare(shown ?? {}, clusterView(value, this.#p.map.get(value.shard)?.owner ?? null));
    return { ...divergentView(row), current: shown, diff };
  }

  verify(signal: AbortSignal): AsyncIterable<VerifyLine> {
    return this.#verifier.run(signal);
  }

  readiness(): { ready: boolean; reason: string | null; lagMs: number } {
    const state = this.#p.state();
    const lagMs = this.#p.worstLag().ms;
    const reasons = {
      serving: null,
      fenced: "no lease: too few sites promise it one, or the database takes no writes",
      catching_up: "catching up with the other datacenters",
    } as const;
    const { medianMs } = this.#loop.lag;
    const late =
      medianMs > this.#p.config.maxEventLoopLagMs
        ? `the process is too busy: its event loop is late by ${Math.round(medianMs)} ms`
        : null;
    const reason = reasons[state] ?? late;
    return { ready: reason === null, reason, lagMs };
  }

  onEvent(listener: (event: DcEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  metrics(): Promise<{ readonly contentType: string; readonly text: string }> {
    return this.#p.metrics.render();
  }

  #emit(event: DcEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  #localRead(shard: ShardId | null): Pick<Reply, "servedBy" | "lagMs" | "stale" | "owner"> {
    const owner = shard === null ? null : (this.#p.map.get(shard)?.owner ?? null);
    const lag = shard === null ? this.#p.worstLag().ms : owner === this.name ? null : this.#p.progress.lag(shard).ms;
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

  /** Waits until this datacenter has applied the place. @throws Problem position_lost, deadline_exceeded */
  async #reach(place: Place, deadline: number): Promise<void> {
    if (place.shard >= this.#p.shards)
      throw new Problem("invalid_request", undefined, {
        errors: [{ path: "header/Hothot-Min-Position", message: `there are ${this.#p.shards} shards` }],
      });
    await this.#p.progress.wait(place.shard, place.epoch, place.position, deadline);
    if (
      this.#p.progress.place(place.shard).epoch > place.epoch &&
      (await this.#lost(place.shard, place.epoch, place.position))
    )
      throw new Problem(
        "position_lost",
        `Epoch ${place.epoch} of shard ${place.shard} ended before position ${place.position}.`,
      );
  }

  async #lost(shard: ShardId, epoch: Epoch, position: Position): Promise<boolean> {
    const { rows } = await this.#p.data.pool.query<{ last_position: number }>(
      "SELECT last_position FROM history WHERE shard = $1 AND epoch > $2 ORDER BY epoch LIMIT 1",
      [shard, epoch],
    );
    const ended = rows[0]?.last_position;
    return ended !== undefined && position > ended;
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

/** `owned`, `moving` or `unowned`, as anybody in the group would say of the shard. */
function shownState(state: string): string {
  return state === "moving" ? "moving" : state === "none" || state === "suspended" ? "unowned" : "owned";
}

function divergentView(row: {
  id: string;
  dc: string;
  shard: number;
  epoch: number;
  position: number;
  clusterId: string;
  type: string;
  version: number | null;
  value: unknown;
  idempotencyKey: string | null;
  committedAt: string;
  status: string;
}): JsonObject {
  const { id, dc, shard, epoch, position, clusterId, type, version, value, idempotencyKey, committedAt, status } = row;
  return { id, dc, shard, epoch, position, clusterId, type, version, value, idempotencyKey, committedAt, status };
}
