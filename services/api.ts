import type { Position, Epoch, ShardId, SiteName } from "../shards/ids.js";
import type { LoadRow } from "../replication/load.js";
import type { ClusterStatus, JobStatus, JsonObject } from "../replication/entities.js";

export const scopes = ["read", "write", "operate", "admin"] as const;
export type Scope = (typeof scopes)[number];

/** Who asks. Without tokens everybody is `anonymous` of the tenant "". */
export interface Caller {
  readonly tenant: string;
  readonly principal: string;
  /** What the caller may do; left out: everything. */
  readonly scopes?: readonly Scope[];
}

/** `<shard>:<epoch>:<position>`, as in Hothot-Position. */
export interface Place {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
}

/** What comes with each request. */
export interface RequestContext {
  readonly requestId: string;
  readonly caller: Caller;
  /** On this process's monotonic clock, milliseconds. */
  readonly deadline: number;
  readonly durability: "local" | "replicated";
  readonly consistency: "local" | "owner";
  readonly minPosition?: Place;
  readonly idempotencyKey?: string;
  /** W3C trace context: the traceparent and, behind a space, the tracestate if there is one. */
  readonly traceparent?: string;
}

export interface ClusterFields {
  readonly name: string;
  readonly spec: JsonObject;
  readonly state?: JsonObject;
  readonly labels?: Readonly<Record<string, string>>;
  readonly expiresAt?: string | null;
}

/** A JSON merge patch: null removes, or sets what is always there to its empty value. */
export interface ClusterPatch {
  readonly name?: string;
  readonly spec?: JsonObject | null;
  readonly state?: JsonObject | null;
  readonly labels?: Readonly<Record<string, string | null>> | null;
  readonly expiresAt?: string | null;
}

export interface Condition {
  /** If-Match: the version that must be there. */
  readonly version?: number;
  /** If-None-Match: * */
  readonly absent?: boolean;
}

/**
 * Everything that is carried out by a shard's owner. Plain data: it is forwarded as it is.
 * Each is routed by cluster id, job id (which contains its shard), task id (likewise) or worker id.
 */
export type Command =
  | { readonly type: "cluster.create"; readonly id?: string; readonly fields: ClusterFields }
  | { readonly type: "cluster.put"; readonly id: string; readonly fields: ClusterFields; readonly condition: Condition }
  /** RFC 7396 on what a PUT sets. */
  | { readonly type: "cluster.patch"; readonly id: string; readonly patch: ClusterPatch; readonly condition: Condition }
  | { readonly type: "cluster.delete"; readonly id: string; readonly condition: Condition }
  /** Many of one shard, all or none; its reply's body is a LoadOutcome. Always with a key. */
  | { readonly type: "cluster.load"; readonly shard: ShardId; readonly rows: readonly LoadRow[] }
  /** An owner read: the lease is checked before and after. */
  | { readonly type: "cluster.get"; readonly id: string }
  | {
      readonly type: "job.start";
      readonly clusterId: string;
      readonly operation: string;
      readonly input: JsonObject;
      readonly notBefore: string | null;
    }
  | { readonly type: "job.cancel" | "job.retry" | "job.pause" | "job.resume"; readonly jobId: string }
  | { readonly type: "job.get"; readonly jobId: string }
  | { readonly type: "job.tasks"; readonly jobId: string }
  | {
      readonly type: "worker.put";
      readonly workerId: string;
      readonly capacity: number;
      readonly labels: Readonly<Record<string, string>>;
    }
  /** The group's own: tokens, tenants, the audit trail. The body null removes it. */
  | { readonly type: "document.put"; readonly kind: string; readonly id: string; readonly body: JsonObject | null }
  /** An operator's idempotency key, with what its request was answered. Always with a key. */
  | { readonly type: "key.put"; readonly shard: ShardId; readonly status: number; readonly body: unknown }
  | { readonly type: "worker.delete"; readonly workerId: string; readonly why?: string }
  | { readonly type: "task.heartbeat"; readonly taskId: string; readonly token: string; readonly workerId: string }
  | {
      readonly type: "task.finish";
      readonly taskId: string;
      readonly token: string;
      readonly workerId: string;
      readonly try?: number;
      readonly status: "ok" | "failed";
      readonly result?: JsonObject;
      readonly stdout?: string;
      readonly stderr?: string;
    };

/** An answer, before it becomes HTTP. */
export interface Reply {
  readonly status: number;
  /** JSON, or nothing (204). */
  readonly body?: unknown;
  /** ETag. */
  readonly version?: number;
  /** Hothot-Position, of writes. */
  readonly place?: Place;
  /** Hothot-Owner. */
  readonly owner?: SiteName;
  /** Hothot-Served-By: `<dc>/<node>`. */
  readonly servedBy: string;
  readonly replayed?: boolean;
  /** Hothot-Lag-Ms, of reads from a replica. */
  readonly lagMs?: number;
  /** Hothot-Stale. */
  readonly stale?: boolean;
  /**
   * Called in the turn that sends the answer: a process that stood still since the check of the lease says nothing (rule f).
   * @throws Problem
   */
  readonly confirm?: () => void;
}

export interface Page {
  readonly limit: number;
  readonly cursor?: string;
}

export interface ClusterQuery extends Page {
  readonly status?: ClusterStatus;
  readonly owner?: SiteName;
  readonly shard?: number;
  readonly label?: { readonly name: string; readonly value: string };
}

export interface JobQuery extends Page {
  readonly cluster?: string;
  readonly status?: JobStatus;
}

export interface Listed<T = unknown> {
  readonly items: readonly T[];
  readonly nextCursor: string | null;
}

/** A line of GET /v1/verify. */
export interface VerifyLine {
  readonly shard: number;
  readonly dc: SiteName;
  /** 0 in a line that is not equal: this copy gave no answer. */
  readonly epoch: number;
  readonly position: number;
  readonly equal: boolean;
  /** Ids that differ (at most 100). */
  readonly clusters: readonly string[];
}

export interface DcEvent {
  readonly type: "ownership" | "health" | "job";
  /** Whose it is; left out: everybody's. */
  readonly tenant?: string;
  readonly data: JsonObject;
}

export interface TakeRequest {
  readonly workerId: string;
  readonly waitMs: number;
  readonly max: number;
  readonly names?: readonly string[];
  readonly labels?: Readonly<Record<string, string>>;
}

/** What HTTP stands on: one datacenter, seen from one of its nodes. Failures are `Problem`s of infra/errors. */
export interface Datacenter {
  readonly name: SiteName;
  readonly node: string;
  /** Routes a command to its owner, waits for it at most until the deadline, and answers. */
  execute(context: RequestContext, command: Command): Promise<Reply>;
  /** Local view (or the owner's, by `consistency`), after `minPosition` was applied. */
  getCluster(context: RequestContext, id: string): Promise<Reply>;
  listClusters(context: RequestContext, query: ClusterQuery): Promise<Reply>;
  getJob(context: RequestContext, id: string): Promise<Reply>;
  listJobs(context: RequestContext, query: JobQuery): Promise<Reply>;
  /** Long poll on the jobs that this datacenter owns; `signal` aborts when the client hangs up. */
  takeTasks(context: RequestContext, request: TakeRequest, signal: AbortSignal): Promise<Reply>;
  workerHeartbeat(context: RequestContext, workerId: string): Promise<Reply>;
  /** The body of GET /v1/topology. */
  topology(): Promise<JsonObject>;
  shards(): Promise<Listed>;
  history(page: Page): Promise<Listed>;
  lag(): Promise<Listed>;
  divergent(query: Page & { readonly status?: string }): Promise<Listed>;
  divergentById(id: string): Promise<JsonObject>;
  verify(signal: AbortSignal): AsyncIterable<VerifyLine>;
  /** Not ready: why. */
  readiness(): { readonly ready: boolean; readonly reason: string | null; readonly lagMs: number };
  /** Calls `listener` for each event until the returned function is called. */
  onEvent(listener: (event: DcEvent) => void): () => void;
  /** Prometheus text. */
  metrics(): Promise<{ readonly contentType: string; readonly text: string }>;
}
