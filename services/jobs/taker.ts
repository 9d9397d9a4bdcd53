import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Operation, ShardWriter } from "../../replication/work.js";
import type { OfferedTask } from "./job-events.js";
import { timeOf } from "./rows.js";
import type { TaskOperations } from "./task-operations.js";
import type { TakenTask } from "./views.js";

export interface TakerOptions {
  readonly writer: ShardWriter;
  readonly tasks: Pick<TaskOperations, "take" | "release">;
  readonly time: Time;
  readonly log: Logger;
  /** Tasks that may be taken by others now, or at their time. */
  readonly offer: (tasks: readonly OfferedTask[]) => void;
  readonly stopped: AbortSignal;
}

/** What a write that was refused for the moment waits before it is tried again, milliseconds. */
export const againMs = 250;
const writeMs = 5_000;
/** After so many refusals the lease of the task brings it back. */
const mostTries = 20;

/** The writes by which tasks become a worker's, and those that bring back what did not reach it. */
export class Taker {
  readonly #o: TakerOptions;

  constructor(options: TakerOptions) {
    this.#o = options;
  }

  /** Of the candidates those that are the worker's now. */
  async takeAll(
    candidates: readonly OfferedTask[],
    workerId: string,
    leaseMs: number | undefined,
  ): Promise<TakenTask[]> {
    const tried = await Promise.all(candidates.map((task) => this.#take(task, workerId, leaseMs)));
    return tried.filter((task) => task !== undefined);
  }

  /** Tasks taken for a worker that has hung up. */
  async giveBack(taken: readonly TakenTask[], workerId: string): Promise<void> {
    await Promise.all(taken.map((task) => this.#release(task.id, workerId)));
  }

  async #take(task: OfferedTask, workerId: string, leaseMs: number | undefined): Promise<TakenTask | undefined> {
    const { tasks, time, log, offer } = this.#o;
    const take = tasks.take(task, workerId, leaseMs);
    let decided: { readonly at: number; readonly leaseMs: number } | undefined;
    const operation: Operation = {
      ...take,
      decide: (work) => {
        const outcome = take.decide(work);
        if (outcome.status === 200) decided = { at: work.now, leaseMs: (outcome.body as TakenTask).leaseMs };
        return outcome;
      },
    };
    try {
      const { outcome } = await this.#write(operation);
      return outcome.status === 200 ? (outcome.body as TakenTask) : undefined;
    } catch (error) {
      const code = error instanceof Problem ? error.code : undefined;
      log.warn("a task could not be taken", { task: task.id, shard: task.shard, error });
      if (code === "outcome_unknown") {
        // Perhaps it is taken, for a worker that will not hear of it: that take, and no later one, is undone.
        if (decided !== undefined) void this.#release(task.id, workerId, timeOf(decided.at + decided.leaseMs));
      } else if (code !== "not_owner") offer([{ ...task, notBefore: time.wall() + againMs }]);
      return undefined;
    }
  }

  async #release(taskId: string, workerId: string, leaseUntil?: string): Promise<void> {
    const { tasks, time, log, stopped } = this.#o;
    for (let tries = 1; ; tries++) {
      try {
        await this.#write(tasks.release(taskId, workerId, leaseUntil));
        return;
      } catch (error) {
        const passes = error instanceof Problem && error.retryable && error.code !== "not_owner";
        if (!passes || tries >= mostTries || stopped.aborted)
          return log.warn("a task could not be given back", { task: taskId, tries, error });
        await time.sleep(againMs, stopped);
      }
    }
  }

  #write(operation: Operation) {
    const { writer, time } = this.#o;
    return writer.write(operation, { durability: "local", deadline: time.monotonic() + writeMs });
  }
}
