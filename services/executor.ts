import { createHash } from "node:crypto";
import { Problem } from "../infra/errors.js";
import type { Placed } from "../replication/entities.js";
import type { LoadRow } from "../replication/load.js";
import type { LoadWriter } from "../replication/load-writer.js";
import type { Operation, ShardWriter, Written } from "../replication/work.js";
import type { Executor, Routed } from "../routing/router.js";
import type { Epoch, ShardId, SiteName } from "../shards/ids.js";
import { shardOf } from "../shards/ids.js";
import type { Caller, Command, Reply } from "./api.js";
import type { OwnerGate } from "./engine/gate.js";
import { clusterView, createCluster, deleteCluster, patchCluster, putCluster } from "./clusters/operations.js";
import type { Queries } from "./clusters/queries.js";
import { putDocument } from "./documents.js";
import { keepAnswer } from "./operator-keys.js";
import { parseJobId, parseTaskId } from "./jobs/ids.js";
import { deleteWorker, jobView, putWorker, type JobOperations, type TaskOperations } from "./jobs/operations.js";
import { shortened, type TaskList } from "./jobs/output.js";

/** What goes along with a command to its owner. */
export interface CommandContext {
  readonly caller: Caller;
  readonly durability: "local" | "replicated";
  readonly requestId: string;
  readonly traceparent: string | null;
  readonly key: string | null;
  /** Of the request that had the key first, where this command carries it out in other words. */
  readonly fingerprint?: string;
}

export type RoutedCommand = Routed<Command> & { readonly context: CommandContext };

/** The shard that a command belongs to. @throws Problem not_found for ids that can't exist, stale_token for such a task's */
export function shardOfCommand(command: Command, shards: number): ShardId {
  const known = (shard: ShardId | undefined, what: string): ShardId => {
    if (shard === undefined || shard >= shards) throw new Problem("not_found", `There is no such ${what}.`);
    return shard;
  };
  switch (command.type) {
    case "cluster.create":
      if (command.id === undefined) throw new TypeError("a create is given its id before it is routed");
      return shardOf(command.id, shards);
    case "cluster.put":
    case "cluster.patch":
    case "cluster.delete":
    case "cluster.get":
      return shardOf(command.id, shards);
    case "cluster.load":
    case "key.put":
      return known(command.shard, "shard");
    case "job.start":
      return shardOf(command.clusterId, shards);
    case "job.cancel":
    case "job.retry":
    case "job.pause":
    case "job.resume":
    case "job.tasks":
    case "job.get":
      return known(parseJobId(command.jobId), "job");
    case "worker.put":
    case "worker.delete":
      return shardOf(command.workerId, shards);
    case "document.put":
      return shardOf(command.id, shards);
    case "task.heartbeat":
    case "task.finish": {
      const shard = parseTaskId(command.taskId)?.shard;
      if (shard === undefined || shard >= shards) throw new Problem("stale_token", "There is no such task.");
      return shard;
    }
  }
}

/** Twice does no harm, whoever asks. */
const repeatableTypes = new Set<Command["type"]>([
  "cluster.get",
  "job.get",
  "job.tasks",
  "task.heartbeat",
  "task.finish",
  "worker.put",
  "document.put",
  "worker.delete",
]);
export const isRepeatable = (command: Command, key: string | null): boolean =>
  key !== null || repeatableTypes.has(command.type);

export interface ExecutorOptions {
  readonly site: SiteName;
  readonly servedBy: string;
  readonly shards: number;
  readonly writer: ShardWriter;
  readonly loads: Pick<LoadWriter, "write">;
  readonly queries: Queries;
  readonly jobs: JobOperations;
  readonly tasks: TaskOperations;
  /** How long a key is remembered, milliseconds. */
  readonly keyRetentionMs: number;
  readonly gate: Pick<OwnerGate, "held" | "mayAcknowledge">;
  /** Who owned the shard in an epoch, as far as that is known here. */
  readonly ownerIn: (shard: ShardId, epoch: Epoch) => Promise<SiteName | undefined>;
  readonly published: (shard: ShardId, position: number, epoch: number, deadline: number) => Promise<void>;
  readonly onStaleFinish: () => void;
}

/** Carries commands out where their shard is owned. */
export class CommandExecutor implements Executor<Command, Reply> {
  constructor(private readonly o: ExecutorOptions) {}

  async execute(request: Routed<Command>): Promise<Reply> {
    const context = request.context as CommandContext;
    const { command } = request;
    if (command.type === "cluster.get" || command.type === "job.get")
      try {
        return await (command.type === "cluster.get"
          ? this.#get(request, context, command.id)
          : this.#getJob(request, context, command.jobId));
      } catch (error) {
        throw this.#refused(error);
      }
    if (command.type === "cluster.load") return this.#load(request, context, command.rows);
    const operation = this.#operation(command, request.shard, context);
    const { requestId, traceparent } = context;
    const keyed: Operation = {
      ...operation,
      trace: { requestId, traceparent },
      ...(context.key === null
        ? {}
        : {
            key: {
              tenant: context.caller.tenant,
              key: context.key,
              fingerprint: context.fingerprint ?? fingerprint(command),
              local: command.type === "task.finish" || command.type === "task.heartbeat",
              retentionMs: this.o.keyRetentionMs,
            },
          }),
    };
    try {
      const written = await this.o.writer.write(keyed, { durability: context.durability, deadline: request.deadline });
      return {
        status: written.outcome.status,
        ...(written.outcome.status === 204 ? {} : { body: bodyOf(command, written.outcome.body, request.answerBytes) }),
        ...(written.outcome.version === undefined ? {} : { version: written.outcome.version }),
        ...(command.type === "job.tasks"
          ? {}
          : { place: { shard: request.shard, epoch: written.epoch, position: written.position } }),
        ...(await this.#ownerOf(request.shard, written)),
        servedBy: this.o.servedBy,
        ...(written.replayed ? { replayed: true } : {}),
        ...(command.type === "job.tasks"
          ? { confirm: () => void this.o.gate.held(request.shard) }
          : this.#confirmation(request.shard, context, written)),
      };
    } catch (error) {
      if (command.type === "task.finish" && error instanceof Problem && error.code === "stale_token")
        this.o.onStaleFinish();
      const unread = command.type === "job.tasks" && error instanceof Problem && error.code === "outcome_unknown";
      throw this.#refused(unread ? new Problem("no_lease", error.message, error.extras) : error);
    }
  }

  /** A refusal says who refused. */
  #refused(error: unknown): unknown {
    return error instanceof Problem ? error.by(this.o.site, this.o.servedBy) : error;
  }

  #operation(
    command: Exclude<Command, { type: "cluster.get" | "job.get" | "cluster.load" }>,
    shard: ShardId,
    context: CommandContext,
  ): Operation {
    const { tenant } = context.caller;
    switch (command.type) {
      case "cluster.create":
        return createCluster({ tenant, id: command.id ?? "", shard }, command.fields);
      case "cluster.put":
        return putCluster({ tenant, id: command.id, shard }, command.fields, command.condition);
      case "cluster.patch":
        return patchCluster({ tenant, id: command.id, shard }, command.patch, command.condition);
      case "cluster.delete":
        return deleteCluster({ tenant, id: command.id, shard }, command.condition);
      case "job.start":
        return this.o.jobs.start({
          tenant,
          clusterId: command.clusterId,
          shard,
          type: command.operation,
          input: command.input,
          notBefore: command.notBefore,
        });
      case "job.cancel":
        return this.o.jobs.cancel(tenant, command.jobId);
      case "job.retry":
        return this.o.jobs.retry(tenant, command.jobId);
      case "job.pause":
        return this.o.jobs.pause(tenant, command.jobId);
      case "job.resume":
        return this.o.jobs.resume(tenant, command.jobId);
      case "job.tasks":
        return this.o.tasks.list(tenant, command.jobId);
      case "worker.put":
        return putWorker({ tenant, id: command.workerId, shard, capacity: command.capacity, labels: command.labels });
      case "document.put":
        return putDocument({ kind: command.kind, id: command.id, shard }, command.body);
      case "key.put":
        return keepAnswer(shard, command.status, command.body);
      case "worker.delete":
        return deleteWorker(tenant, command.workerId, shard, command.why);
      case "task.heartbeat":
        return this.o.tasks.heartbeat(tenant, command.taskId, command.token, command.workerId);
      case "task.finish":
        return this.o.tasks.finish({ tenant, ...command });
    }
  }

  async #load(request: Routed<Command>, context: CommandContext, rows: readonly LoadRow[]): Promise<Reply> {
    const { requestId, traceparent } = context;
    try {
      const written = await this.o.loads.write(
        {
          shard: request.shard,
          tenant: context.caller.tenant,
          rows,
          key: { key: context.key ?? requestId, retentionMs: this.o.keyRetentionMs },
          trace: { requestId, traceparent },
        },
        { durability: context.durability, deadline: request.deadline },
      );
      return {
        status: 200,
        body: written.outcome.body,
        place: { shard: request.shard, epoch: written.epoch, position: written.position },
        ...(await this.#ownerOf(request.shard, written)),
        servedBy: this.o.servedBy,
        ...(written.replayed ? { replayed: true } : {}),
        ...this.#confirmation(request.shard, context, written),
      };
    } catch (error) {
      throw this.#refused(error);
    }
  }

  /** The owner in the epoch of the position: a replayed answer may be of a former one's. */
  async #ownerOf(shard: ShardId, { replayed, epoch, openEpoch }: Written): Promise<Pick<Reply, "owner">> {
    if (!replayed || epoch >= openEpoch) return { owner: this.o.site };
    const owner = await this.o.ownerIn(shard, epoch).catch(() => undefined);
    return owner === undefined ? {} : { owner };
  }

  /** A local write is acknowledged only under the lease that it was made under. */
  #confirmation(shard: ShardId, context: CommandContext, written: Written): Pick<Reply, "confirm"> {
    if (context.durability === "replicated") return {};
    return {
      confirm: () => {
        if (!this.o.gate.mayAcknowledge(shard, written.openEpoch))
          throw new Problem("outcome_unknown", "the lease ran out before the answer was sent", { owner: this.o.site });
      },
    };
  }

  /** Linearizable: the lease is checked before and after, and the epoch is the same (rule f). */
  async #get(request: Routed<Command>, context: CommandContext, id: string): Promise<Reply> {
    const before = this.o.gate.held(request.shard);
    const row = await this.o.queries.cluster(context.caller.tenant, id);
    if (row !== undefined && context.durability === "replicated") await this.#inLog(request, row);
    if (this.o.gate.held(request.shard) !== before) throw new Problem("not_owner", "the shard moved during the read");
    if (row === undefined || row.deleted)
      throw new Problem("not_found", `There is no cluster ${id}.`, { owner: this.o.site });
    return {
      status: 200,
      body: clusterView(row, this.o.site),
      version: row.version,
      owner: this.o.site,
      servedBy: this.o.servedBy,
      confirm: () => void this.o.gate.held(request.shard),
    };
  }

  /** Waits until the log holds what a read is about to show. @throws Problem; a read never has an unknown outcome */
  async #inLog({ shard, deadline }: Routed<Command>, { changedPosition, changedEpoch }: Placed): Promise<void> {
    try {
      await this.o.published(shard, changedPosition, changedEpoch, deadline);
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "outcome_unknown") throw error;
      if (this.o.gate.held(shard) !== changedEpoch) throw new Problem("not_owner", "the shard moved during the read");
      throw new Problem("deadline_exceeded", "the log did not take in time what stands here", { cause: error });
    }
  }

  async #getJob(request: Routed<Command>, context: CommandContext, jobId: string): Promise<Reply> {
    const before = this.o.gate.held(request.shard);
    const job = await this.o.queries.job(context.caller.tenant, jobId);
    if (job !== undefined && context.durability === "replicated") await this.#inLog(request, job);
    if (this.o.gate.held(request.shard) !== before) throw new Problem("not_owner", "the shard moved during the read");
    if (job === undefined) throw new Problem("not_found", `There is no job ${jobId}.`, { owner: this.o.site });
    return {
      status: 200,
      body: jobView(job),
      owner: this.o.site,
      servedBy: this.o.servedBy,
      confirm: () => void this.o.gate.held(request.shard),
    };
  }
}

/** Tasks may have printed more than goes into one message. */
const bodyOf = (command: Command, body: unknown, most: number | undefined): unknown =>
  command.type === "job.tasks" && most !== undefined ? shortened(body as TaskList, most) : body;

/** Of what the caller asked: the same key with another request is refused. */
export function fingerprint(command: Command): string {
  return createHash("sha256").update(canonical(command)).digest("base64url").slice(0, 32);
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "object" && value !== null)
    return `{${Object.entries(value)
      .filter(([, v]) => v !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, v]) => `${JSON.stringify(key)}:${canonical(v)}`)
      .join(",")}}`;
  return JSON.stringify(value) ?? "null";
}
