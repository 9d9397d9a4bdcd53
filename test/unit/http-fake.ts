import { Problem } from "../../infra/errors.js";
import { epoch, position, shardId, shardOf } from "../../shards/ids.js";
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
} from "../../services/api.js";
import type { JsonObject } from "../../replication/entities.js";

const at = "2030-01-01T00:00:00.000Z";
const servedBy = "east/n1";

/** A datacenter in memory: enough of the contract that every route has something true to answer, and a record of what it was asked. */
export class FakeDatacenter implements Datacenter {
  readonly name = "east";
  readonly node = "n1";
  readonly clusters = new Map<string, JsonObject & { readonly version: number }>();
  readonly asked: { readonly context: RequestContext; readonly what: unknown }[] = [];
  readonly listeners = new Set<(event: DcEvent) => void>();
  /** Runs before each command; may throw or wait. */
  before: (command: Command, context: RequestContext) => void | Promise<void> = () => {};
  ready: { ready: boolean; reason: string | null; lagMs: number } = { ready: true, reason: null, lagMs: 3 };
  /** Asked in the turn in which an answer is sent; may throw. */
  confirm: (() => void) | undefined;
  takeAborted = false;
  verifyFails = false;
  verifyLines = 64;
  #keys = new Map<string, Reply>();
  #position = 0;

  get last(): { readonly context: RequestContext; readonly what: unknown } | undefined {
    return this.asked.at(-1);
  }

  async execute(context: RequestContext, command: Command): Promise<Reply> {
    this.asked.push({ context, what: command });
    await this.before(command, context);
    const key = context.idempotencyKey;
    const first = key === undefined ? undefined : this.#keys.get(key);
    if (first !== undefined) return { ...first, replayed: true };
    const reply = this.#decide(command);
    if (key !== undefined) this.#keys.set(key, reply);
    return reply;
  }

  #decide(command: Command): Reply {
    const place = { shard: shardId(7), epoch: epoch(2), position: position(++this.#position) };
    const written = { place, owner: "east", servedBy, ...(this.confirm && { confirm: this.confirm }) };
    switch (command.type) {
      case "cluster.create":
      case "cluster.put": {
        const id = command.id ?? "made-1";
        const old = this.clusters.get(id);
        if (command.type === "cluster.create" && old !== undefined) throw new Problem("already_exists");
        if (command.type === "cluster.put") {
          const { version, absent } = command.condition;
          if ((absent === true && old !== undefined) || (version !== undefined && version !== old?.version))
            throw new Problem("version_mismatch");
        }
        const version = (old?.version ?? 0) + 1;
        const row = {
          id,
          shard: shardOf(id, 64),
          owner: "east",
          status: "active",
          state: {},
          labels: {},
          expiresAt: null,
          ...command.fields,
          version,
          createdAt: at,
          updatedAt: at,
        };
        this.clusters.set(id, row);
        return { status: old === undefined ? 201 : 200, body: row, version, ...written };
      }
      case "cluster.patch": {
        const old = this.clusters.get(command.id);
        if (old === undefined) throw new Problem("not_found");
        const version = old.version + 1;
        const row = { ...old, ...command.patch, version };
        this.clusters.set(command.id, row);
        return { status: 200, body: row, version, ...written };
      }
      case "key.put":
        return { ...written, status: command.status, body: command.body };
      case "document.put":
        return { status: 200, body: { updatedAt: at }, ...written };
      case "cluster.load":
        return { ...written, status: 200, body: command.rows.map(() => [201, 1]) };
      case "cluster.delete":
        if (!this.clusters.delete(command.id)) throw new Problem("not_found");
        return { status: 204, ...written };
      case "cluster.get":
        return this.#cluster(command.id);
      case "job.start":
        return {
          status: 202,
          body: this.#job("j7-abc", command.clusterId, command.operation, command.input),
          ...written,
        };
      case "job.retry":
        return { status: 202, body: this.#job(command.jobId, "c1", "create", {}), ...written };
      case "job.get":
      case "job.cancel":
      case "job.pause":
      case "job.resume":
        return { status: 200, body: this.#job(command.jobId, "c1", "create", {}), ...written };
      case "job.tasks":
        return {
          status: 200,
          body: {
            items: [{ id: `${command.jobId}.1.1`, name: "CREATE", stage: "CREATE", status: "ok" }],
            nextCursor: null,
          },
          servedBy,
        };
      case "worker.delete":
        return { ...written, status: 204 };
      case "worker.put":
        return {
          status: 200,
          body: { id: command.workerId, capacity: command.capacity, labels: command.labels },
          ...written,
        };
      case "task.heartbeat":
      case "task.finish":
        if (command.token !== "good") throw new Problem("stale_token");
        return { status: 200, body: { leaseMs: 30000, stop: false }, ...written };
    }
  }

  #cluster(id: string): Reply {
    const row = this.clusters.get(id);
    if (row === undefined) throw new Problem("not_found", `There is no cluster ${id}.`, { owner: "west" });
    return { status: 200, body: row, version: row.version, servedBy, owner: "east", lagMs: 12.4, stale: true };
  }

  #job(id: string, clusterId: string, type: string, input: JsonObject): JsonObject {
    return {
      id,
      clusterId,
      type,
      input,
      status: "running",
      attempt: 1,
      epoch: 2,
      stage: "CREATE",
      stages: ["CREATE"],
      startedIn: "east",
      runsIn: "east",
      createdAt: at,
      finishedAt: null,
      error: null,
    };
  }

  async getCluster(context: RequestContext, id: string): Promise<Reply> {
    this.asked.push({ context, what: id });
    return this.#cluster(id);
  }
  async listClusters(context: RequestContext, query: ClusterQuery): Promise<Reply> {
    this.asked.push({ context, what: query });
    return { status: 200, body: { items: [...this.clusters.values()], nextCursor: null }, servedBy, lagMs: 0 };
  }
  async getJob(context: RequestContext, id: string): Promise<Reply> {
    this.asked.push({ context, what: id });
    if (!id.startsWith("j")) throw new Problem("not_found");
    return { status: 200, body: this.#job(id, "c1", "create", {}), servedBy };
  }
  async listJobs(context: RequestContext, query: JobQuery): Promise<Reply> {
    this.asked.push({ context, what: query });
    return { status: 200, body: { items: [this.#job("j7-abc", "c1", "create", {})], nextCursor: "more" }, servedBy };
  }
  async takeTasks(context: RequestContext, request: TakeRequest, signal: AbortSignal): Promise<Reply> {
    this.asked.push({ context, what: request });
    if (request.workerId === "stranger") throw new Problem("not_found");
    if (request.waitMs > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, request.waitMs);
        signal.addEventListener("abort", () => {
          this.takeAborted = true;
          clearTimeout(timer);
          resolve();
        });
      });
      return { status: 200, body: { tasks: [] }, servedBy };
    }
    const task = {
      id: "j7-abc.1.1",
      jobId: "j7-abc",
      clusterId: "c1",
      name: "CREATE",
      node: null,
      stage: "CREATE",
      attempt: 1,
      token: "7:2:1",
      input: {},
      leaseMs: 30000,
    };
    return { status: 200, body: { tasks: [task] }, servedBy };
  }
  async workerHeartbeat(context: RequestContext, workerId: string): Promise<Reply> {
    this.asked.push({ context, what: workerId });
    return { status: 200, body: { id: workerId }, servedBy };
  }
  async topology(): Promise<JsonObject> {
    return {
      datacenters: [
        {
          name: "east",
          url: "http://127.0.0.1:8101",
          state: "serving",
          leaseMsLeft: 1200,
          shardsOwned: 150,
          lag: { positions: 0, ms: 0 },
        },
      ],
      witnesses: [{ name: "witness", state: "serving" }],
      shards: 150,
      failoverPaused: false,
      automaticTakeover: { possible: true, why: null },
    };
  }
  async shards(): Promise<Listed> {
    return {
      items: Array.from({ length: 150 }, (_, i) => ({
        shard: i,
        partition: i % 12,
        owner: "east",
        epoch: 1,
        state: "owned",
        position: 5,
        since: at,
        reason: "initial",
      })),
      nextCursor: null,
    };
  }
  async history(page: Page): Promise<Listed> {
    this.asked.push({ context: undefined as never, what: page });
    const change = {
      id: "h1",
      at,
      shard: 0,
      epoch: 1,
      from: null,
      to: "east",
      kind: "initial",
      reason: "init",
      by: "hothot",
      phasesMs: {},
      drained: 0,
      divergent: 0,
    };
    return { items: [change], nextCursor: null };
  }
  async lag(): Promise<Listed> {
    return { items: [{ shard: 0, owner: "west", positions: 2, ms: 1.5 }], nextCursor: null };
  }
  async divergent(query: Page & { readonly status?: string }): Promise<Listed> {
    this.asked.push({ context: undefined as never, what: query });
    return { items: [await this.divergentById("d1")], nextCursor: null };
  }
  async divergentById(id: string): Promise<JsonObject> {
    if (id !== "d1") throw new Problem("not_found");
    const place = { shard: 0, epoch: 1, position: 9 };
    const rest = { value: {}, idempotencyKey: null, committedAt: at, status: "open" };
    return { id, dc: "east", ...place, clusterId: "c1", type: "cluster.put", version: 3, ...rest };
  }
  async *verify(signal: AbortSignal): AsyncIterable<VerifyLine> {
    const lines = this.verifyLines;
    for (let shard = 0; shard < lines && !signal.aborted; shard++) {
      if (this.verifyFails && shard === 3) throw new Error("secret detail");
      yield { shard, dc: "east", epoch: 1, position: 5, equal: true, clusters: [] };
    }
  }
  readiness() {
    return this.ready;
  }
  onEvent(listener: (event: DcEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  emit(event: DcEvent): void {
    for (const listener of this.listeners) listener(event);
  }
  async metrics() {
    return { contentType: "text/plain; version=0.0.4; charset=utf-8", text: "hothot_owned_shards 3\n" };
  }
}
