import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import type { Database } from "../../infra/postgres/database.js";
import { Rounds } from "../../infra/rounds.js";
import type { Service } from "../../infra/service.js";

export interface TaskRetentionOptions {
  readonly database: Pick<Database, "pool">;
  /** How long after its job's end a task stays, with what it printed, milliseconds. */
  readonly keepMs: number;
  readonly time: Time;
  readonly log: Logger;
  /** One process of the datacenter removes. */
  readonly active: () => boolean;
}

const batch = 500;
/** Between two batches, so that live writes are not starved. */
const pauseMs = 100;

/** Tasks of ended jobs, and those that a job left behind where it ran before a takeover. Rows that somebody uses are skipped. */
const removal = `DELETE FROM tasks WHERE id IN (
  SELECT t.id FROM tasks t JOIN jobs j ON j.id = t.job_id
  WHERE %which% AND j.status IN ('complete', 'failed', 'cancelled') AND j.finished_at < now() - $1 * interval '1 millisecond'
  LIMIT ${batch} FOR UPDATE OF t SKIP LOCKED)`;
const ended = removal.replace("%which%", "t.finished_at < now() - $1 * interval '1 millisecond'");
const left = removal.replace("%which%", "t.status IN ('waiting', 'taken')");

/** Removes tasks of jobs that ended long ago, in small steps, from this datacenter's database; their jobs stay. */
export class TaskRetention implements Service {
  readonly name = "task retention";
  readonly #o: TaskRetentionOptions;
  readonly #log: Logger;
  readonly #rounds: Rounds;

  constructor(options: TaskRetentionOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "task-retention" });
    const { keepMs, time } = options;
    const everyMs = Math.min(60_000, Math.max(500, keepMs / 4));
    const round = (stopped: AbortSignal): Promise<void> => this.#round(stopped);
    this.#rounds = new Rounds({ what: "remove old tasks", everyMs, round, time, log: this.#log });
  }

  async start(): Promise<void> {
    this.#rounds.start();
  }

  stop(): Promise<void> {
    return this.#rounds.stop();
  }

  async #round(stopped: AbortSignal): Promise<void> {
    if (!this.#o.active()) return;
    const removed = (await this.#remove(ended, stopped)) + (await this.#remove(left, stopped));
    if (removed > 0) this.#log.info("old tasks were removed", { tasks: removed });
  }

  async #remove(statement: string, stopped: AbortSignal): Promise<number> {
    const { database, keepMs, time } = this.#o;
    for (let removed = 0; ;) {
      const { rowCount } = await database.pool.query(statement, [keepMs]);
      removed += rowCount ?? 0;
      if ((rowCount ?? 0) < batch || stopped.aborted) return removed;
      await time.sleep(pauseMs, stopped);
    }
  }
}
