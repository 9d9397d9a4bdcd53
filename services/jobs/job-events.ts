import type { JsonObject } from "../../replication/entities.js";
import type { ShardId } from "../../shards/ids.js";

/** A task that may be taken, as the dispatcher keeps it in memory. */
export interface OfferedTask {
  readonly id: string;
  readonly jobId: string;
  readonly shard: ShardId;
  readonly tenant: string;
  readonly clusterId: string;
  readonly name: string;
  /** Labels of its cluster. */
  readonly labels: Readonly<Record<string, string>>;
  /** Not before this time, milliseconds since 1970; 0: at once. */
  readonly notBefore: number;
  /** When its job was made, milliseconds since 1970: the oldest job comes first. */
  readonly jobSince: number;
}

export interface JobListener {
  /** Tasks became available. */
  offered?(tasks: readonly OfferedTask[]): void;
  /** A job began, ended, was paused or resumed; in the form of the API. */
  jobChanged?(job: JsonObject, tenant: string): void;
  /** An attempt began because the one before was an earlier owner's. */
  restarted?(jobId: string): void;
}

/**
 * Wake-ups out of committed writes. They reach this process only, and a crash may skip them: whoever listens also
 * looks into the database now and then.
 */
export class JobEvents implements Required<JobListener> {
  readonly #listeners = new Set<JobListener>();

  /** Calls `listener` until the returned function is called. */
  on(listener: JobListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  offered(tasks: readonly OfferedTask[]): void {
    if (tasks.length === 0) return;
    for (const listener of this.#listeners) listener.offered?.(tasks);
  }

  jobChanged(job: JsonObject, tenant: string): void {
    for (const listener of this.#listeners) listener.jobChanged?.(job, tenant);
  }

  restarted(jobId: string): void {
    for (const listener of this.#listeners) listener.restarted?.(jobId);
  }
}
