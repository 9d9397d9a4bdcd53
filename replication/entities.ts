import type { Epoch, Position, ShardId, SiteName } from "../shards/ids.js";

/** A JSON object, as users send it. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Each replicated row keeps the place of its last change: of two versions of a row the larger (epoch, position) wins, epoch first. */
export interface Placed {
  readonly changedEpoch: Epoch;
  readonly changedPosition: Position;
}

export const clusterStatuses = ["pending", "active", "incomplete", "inconsistent", "terminated"] as const;
export type ClusterStatus = (typeof clusterStatuses)[number];

/** A cluster's whole state. Times are RFC 3339. A tombstone is a row with `deleted`. */
export interface ClusterRow extends Placed {
  readonly tenant: string;
  readonly id: string;
  readonly shard: ShardId;
  readonly status: ClusterStatus;
  readonly name: string;
  readonly spec: JsonObject;
  readonly state: JsonObject;
  readonly labels: Readonly<Record<string, string>>;
  readonly expiresAt: string | null;
  /** From 1, grows by 1 with each change. */
  readonly version: number;
  readonly createdAt: string;
  readonly updatedAt: string;
  readonly deleted: boolean;
}

export const jobStatuses = ["queued", "running", "paused", "complete", "failed", "cancelled"] as const;
export type JobStatus = (typeof jobStatuses)[number];
export const unfinished: readonly JobStatus[] = ["queued", "running", "paused"];

/** How far an attempt may restart: the first `stages` stages are done, with what their tasks gave to later ones. */
export interface JobCheckpoint {
  readonly stages: number;
  readonly results: JsonObject;
}

/** A job as it is replicated: its request, its checkpoint, its end. Progress within an attempt lives in `TaskRow`s and `stage`. */
export interface JobRow extends Placed {
  /** Begins with its shard: `j<shard>-<random>`. */
  readonly id: string;
  readonly shard: ShardId;
  readonly tenant: string;
  readonly clusterId: string;
  readonly type: string;
  readonly input: JsonObject;
  readonly status: JobStatus;
  /** From 1; a takeover begins the next. */
  readonly attempt: number;
  /** The epoch in which the running attempt began: with shard and attempt, the token of its tasks. */
  readonly epoch: Epoch;
  /** Name of the stage under way. Local to the owner: changed without a record. */
  readonly stage: string | null;
  readonly stages: readonly string[];
  readonly checkpoint: JobCheckpoint | null;
  readonly startedIn: SiteName;
  readonly runsIn: SiteName;
  readonly notBefore: string | null;
  readonly createdAt: string;
  readonly finishedAt: string | null;
  readonly error: string | null;
}

export const taskStatuses = ["waiting", "taken", "ok", "failed", "cancelled"] as const;
export type TaskStatus = (typeof taskStatuses)[number];

/** A task of the running attempt: in the owner's database only, never in the log (invariant 9). */
export interface TaskRow {
  /** `<job id>.<attempt>.<number>`. */
  readonly id: string;
  readonly jobId: string;
  readonly shard: ShardId;
  readonly tenant: string;
  readonly clusterId: string;
  readonly name: string;
  readonly node: string | null;
  /** Of a stage per service: the node's service that it is about. */
  readonly service: string | null;
  readonly stage: string;
  readonly stageIndex: number;
  readonly attempt: number;
  readonly status: TaskStatus;
  /** How often it has been taken. */
  readonly tries: number;
  readonly workerId: string | null;
  /** When it is offered again if its worker stays silent (RFC 3339). */
  readonly leaseUntil: string | null;
  /** When the running try takes too long (RFC 3339): no heartbeat extends the lease beyond it. Null when no try is open. */
  readonly deadline: string | null;
  /** Not offered before (back-off after a failure). */
  readonly notBefore: string | null;
  readonly result: JsonObject | null;
  readonly stdout: string | null;
  readonly stderr: string | null;
  readonly finishedAt: string | null;
}

/** A worker's registration; a record of shard hash(workerId). */
export interface WorkerRow extends Placed {
  readonly id: string;
  readonly shard: ShardId;
  readonly tenant: string;
  readonly capacity: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly registeredAt: string;
  readonly deleted: boolean;
}

/**
 * A small thing of the group's own that every datacenter must know: an access token, a tenant's limits, an entry of the
 * audit trail. What is in the body is the business of whoever named the kind.
 */
export interface DocumentRow extends Placed {
  readonly kind: string;
  readonly id: string;
  /** hash(id) mod shards. */
  readonly shard: ShardId;
  readonly body: JsonObject;
  /** Wall clock of the owner that wrote it last (RFC 3339). */
  readonly updatedAt: string;
  readonly deleted: boolean;
}

/** The first answer to a keyed write, kept with the write. */
export interface KeyRow extends Placed {
  readonly tenant: string;
  readonly key: string;
  readonly shard: ShardId;
  /** Hash of method, path and body. */
  readonly fingerprint: string;
  readonly status: number;
  readonly body: unknown;
  readonly version: number | null;
  readonly createdAt: string;
}
