import PQueue from "p-queue";
import type { Time, Timer } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Operation, ShardWriter, Written } from "../../replication/work.js";
import type { Epoch, ShardId } from "../../shards/ids.js";
import type { OfferedTask } from "./job-events.js";
import type { JobOperations } from "./job-operations.js";
import type { JobSource, Tenure } from "./job-source.js";
import type { TaskOperations } from "./task-operations.js";

export interface KeeperOptions {
  readonly source: JobSource;
  readonly writer: ShardWriter;
  readonly jobs: JobOperations;
  readonly tasks: TaskOperations;
  readonly time: Time;
  readonly log: Logger;
  /** How often leases, schedules and expiries are looked at, milliseconds. */
  readonly scanMs: number;
  /** How often everything is looked for again, in case a wake-up was lost, milliseconds. */
  readonly reloadMs: number;
  /** Rows of one look, and how many writes of one run at once. */
  readonly batch: number;
  readonly writesAtOnce: number;
  /** Available tasks were found in the database. False when there is no room for more. */
  readonly onAvailable: (tasks: readonly OfferedTask[]) => boolean;
}

/** For one write: a shard that can't be written now must not keep the others waiting. */
const writeMs = 3_000;

/**
 * What happens to jobs by itself, in the shards that this datacenter owns: attempts of an earlier owner begin anew,
 * tasks whose lease ran out are offered again, schedules and expiries come due. Each look and each write is bounded, so
 * that a takeover with thousands of jobs does not starve live writes; what one look leaves, the next one finds.
 */
export class JobKeeper {
  readonly #options: KeeperOptions;
  readonly #log: Logger;
  readonly #owned = new Map<ShardId, { readonly epoch: Epoch; readonly tenure: Epoch }>();
  /** Shards to look at as a whole: just owned, or the safety net. */
  readonly #fresh = new Set<ShardId>();
  readonly #looks = new PQueue({ concurrency: 1 });
  readonly #writes: PQueue;
  #timer: Timer | undefined;
  #sinceReload = 0;
  #scanning = false;
  #stopped = false;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#log = options.log.with({ component: "job-keeper" });
    this.#writes = new PQueue({ concurrency: options.writesAtOnce });
  }

  start(): void {
    this.#schedule();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#looks.clear();
    this.#writes.clear();
    await Promise.all([this.#looks.onIdle(), this.#writes.onIdle()]);
  }

  get owned(): Tenure[] {
    return [...this.#owned].map(([shard, { tenure }]) => ({ shard, tenure }));
  }

  get shards(): ShardId[] {
    return [...this.#owned.keys()];
  }

  /** Served and writable from now on. May be called again, also with the same epoch. */
  onOwned(shard: ShardId, epoch: Epoch, tenure: Epoch): void {
    this.#owned.set(shard, { epoch, tenure });
    this.lookAgain([shard]);
  }

  onLost(shard: ShardId): void {
    this.#owned.delete(shard);
    this.#fresh.delete(shard);
  }

  /** Looks for void attempts and available tasks of these shards soon. Calls that come together share one look. */
  lookAgain(shards: readonly ShardId[]): void {
    if (this.#stopped) return;
    for (const shard of shards) this.#fresh.add(shard);
    if (this.#looks.size === 0)
      void this.#looks.add(() => this.#guarded("look at owned shards", () => this.#lookAtFresh()));
  }

  #schedule(): void {
    if (this.#stopped) return;
    this.#timer = this.#options.time.after(this.#options.scanMs, () => {
      this.#sinceReload += this.#options.scanMs;
      if (this.#sinceReload >= this.#options.reloadMs) {
        this.#sinceReload = 0;
        this.lookAgain(this.shards);
      } else if (this.#fresh.size > 0) this.lookAgain([]);
      if (!this.#scanning) {
        this.#scanning = true;
        void this.#guarded("scan leases and schedules", () => this.#scan()).finally(() => (this.#scanning = false));
      }
      this.#schedule();
    });
  }

  async #lookAtFresh(): Promise<void> {
    const shards = [...this.#fresh];
    this.#fresh.clear();
    const mine = (): Tenure[] => this.owned.filter(({ shard }) => shards.includes(shard));
    try {
      const { source, batch } = this.#options;
      let restarted = 0;
      for (let after: string | null = null; !this.#stopped && mine().length > 0;) {
        const found = await source.voidJobs(mine(), after, batch);
        await this.#all(found.map(({ id }) => [id, this.#options.jobs.restart(id)]));
        restarted += found.length;
        if (found.length < batch) break;
        after = found.at(-1)?.id ?? null;
      }
      if (restarted > 0) this.#log.info("jobs restarted", { jobs: restarted, shards: shards.length });
      for (let after: string | null = null; !this.#stopped && mine().length > 0;) {
        const tasks = await source.availableTasks(mine(), after, batch);
        const room = this.#options.onAvailable(tasks.filter((task) => this.#owned.has(task.shard)));
        if (!room || tasks.length < batch) break;
        after = tasks.at(-1)?.id ?? null;
      }
    } catch (error) {
      // Not forgotten: the next scan brings them up again.
      for (const shard of shards) if (this.#owned.has(shard)) this.#fresh.add(shard);
      throw error;
    }
  }

  async #scan(): Promise<void> {
    if (this.#owned.size === 0) return;
    const { source, batch, time, jobs, tasks } = this.#options;
    const now = time.wall();
    const [expired, due, clusters] = await Promise.all([
      source.expiredTasks(this.shards, now, batch),
      source.dueJobs(this.shards, now, batch),
      source.expiredClusters(this.shards, now, batch),
    ]);
    await this.#all([
      ...expired.map(({ id }): Named => [id, tasks.expire(id)]),
      ...due.map(({ id }): Named => [id, jobs.startDue(id)]),
      ...clusters.map(({ tenant, id, shard }): Named => [id, jobs.startExpiry(tenant, id, shard)]),
    ]);
  }

  /** Carries out all of them, some at a time. One that fails is left to the next look. */
  async #all(operations: readonly Named[]): Promise<void> {
    await Promise.all(
      operations.map(([id, operation]) =>
        this.#writes.add(async () => {
          if (this.#stopped || !this.#owned.has(operation.shard)) return;
          try {
            await this.#write(operation);
          } catch (error) {
            if (this.#owned.has(operation.shard) && !(error instanceof Problem && !error.retryable))
              this.#fresh.add(operation.shard);
            this.#log.warn("a job's own write failed", { id, shard: operation.shard, error });
          }
        }),
      ),
    );
  }

  #write(operation: Operation): Promise<Written> {
    return this.#options.writer.write(operation, {
      durability: "local",
      deadline: this.#options.time.monotonic() + writeMs,
    });
  }

  async #guarded(what: string, action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      this.#log.warn(`could not ${what}`, { error });
    }
  }
}

type Named = [id: string, operation: Operation];
