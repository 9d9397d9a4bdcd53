import type { Epoch, Position, ShardId, SiteName } from "../shards/ids.js";
import type { ClusterRow, DocumentRow, JobRow, KeyRow, TaskRow, WorkerRow } from "./entities.js";

/** What a write reads, named before its transaction so that all that wait are loaded in few statements. */
export interface Needs {
  readonly clusters?: readonly { readonly tenant: string; readonly id: string }[];
  readonly jobs?: readonly string[];
  /** The unfinished job of each of `clusters`, and of the clusters of `jobs`, is loaded too. */
  readonly activeJobs?: boolean;
  /** Of those jobs; what tasks that are ok have printed comes only if it is asked for, and such tasks are not put again. */
  readonly tasks?: boolean | "printed";
  readonly workers?: readonly { readonly tenant: string; readonly id: string }[];
}

/** What a record says happened. Each type is one kind of completed operation, restart record or checkpoint. */
export type RecordType =
  | "cluster.put"
  | "cluster.delete"
  /** Many clusters at once; see record.ts. */
  | "cluster.load"
  | "job.start"
  | "job.restart"
  | "job.checkpoint"
  | "job.change"
  | "job.end"
  | "worker.put"
  | "worker.delete"
  | "digest"
  | "audit"
  | "document.put"
  /** A keyed write that changed nothing: only its key travels. */
  | "key";

type Unplaced<T> = Omit<T, "changedEpoch" | "changedPosition">;

/** One replicated fact: the new state of the rows that the operation completed. It gets the next position of its shard. */
export interface Change {
  readonly type: RecordType;
  readonly cluster?: Unplaced<ClusterRow>;
  readonly job?: Unplaced<JobRow>;
  readonly worker?: Unplaced<WorkerRow>;
  readonly document?: Unplaced<DocumentRow>;
  readonly audit?: unknown;
}

/**
 * The shard inside the owner's transaction: rows as they are, locked, and the changes so far. Synchronous and pure:
 * no network, no clock but `now`. When `decide` throws, its changes are dropped and other writes of the batch go on.
 */
export interface Work {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  /** First epoch of this datacenter's unbroken ownership of the shard. Attempts that began earlier are void. */
  readonly tenure: Epoch;
  readonly datacenter: SiteName;
  /** Wall clock of the owner, milliseconds since 1970, the same for the whole batch. */
  readonly now: number;
  /** Random text for ids. */
  token(length: number): string;
  /** Also a tombstone; look at `deleted`. */
  cluster(tenant: string, id: string): ClusterRow | undefined;
  job(id: string): JobRow | undefined;
  /** The unfinished job of a cluster. Needs `activeJobs`. */
  activeJob(tenant: string, clusterId: string): JobRow | undefined;
  /** Tasks of the job, all attempts that are kept, by stage and number. Needs `tasks`. */
  tasks(jobId: string): readonly TaskRow[];
  worker(tenant: string, id: string): WorkerRow | undefined;
  /** Numbers a replicated change, and makes it seen by later reads of this batch. */
  record(change: Change): Position;
  /** Local to the owner, never in the log. */
  putTask(task: TaskRow): void;
  /** Local to the owner: removes the tasks of a job. */
  dropTasks(jobId: string): void;
  /** Local to the owner: the stage that a job is in. */
  setStage(jobId: string, stage: string | null): void;
  /** Runs after the commit, never when it fails. For wake-ups only: a crash may skip it. */
  afterCommit(action: () => void): void;
}

/** What a write answers. */
export interface Outcome {
  readonly status: number;
  readonly body: unknown;
  /** The cluster's new version, for `ETag`. */
  readonly version?: number;
}

/** A write, as it waits for the owner's transaction. */
export interface Operation {
  readonly shard: ShardId;
  readonly needs: Needs;
  /** Throws a Problem to refuse. */
  decide(work: Work): Outcome;
  readonly key?: OperationKey;
  /** Who asked: goes along into its records. */
  readonly trace?: Trace;
  /** It makes no record: the bound of what is not in the log yet does not concern it. */
  readonly unlogged?: boolean;
}

export interface OperationKey {
  readonly tenant: string;
  readonly key: string;
  readonly fingerprint: string;
  /** When it changes nothing that is replicated, its key stays in this database (a task's finish never enters the log). */
  readonly local?: boolean;
  /** Keys older than this count for nothing any more, milliseconds. */
  readonly retentionMs: number;
}

/** A request, as log lines name it in every datacenter. */
export interface Trace {
  readonly requestId: string;
  /** W3C trace context: the traceparent and, behind a space, the tracestate if there is one. */
  readonly traceparent: string | null;
}

export interface Written {
  readonly outcome: Outcome;
  readonly epoch: Epoch;
  /** Last position that the operation wrote; the shard's head when it wrote none. */
  readonly position: Position;
  readonly replayed: boolean;
  /** The shard's epoch now; a replayed answer may be of an earlier one. */
  readonly openEpoch: Epoch;
}

/** The owner's group-committed transaction: replication/writer.ts. */
export interface ShardWriter {
  /**
   * Decides and commits `operation` in the shard's present epoch, with others that wait.
   * @throws Problem not_owner, no_lease, shard_moving: nothing happened; outcome_unknown: it may have.
   */
  write(
    operation: Operation,
    options: { readonly durability: "local" | "replicated"; readonly deadline: number },
  ): Promise<Written>;
}

export type { ClusterRow, DocumentRow, JobRow, KeyRow, TaskRow, WorkerRow };
