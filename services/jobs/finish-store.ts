import type { Database } from "../../infra/postgres/database.js";
import { Problem, type ProblemCode } from "../../infra/errors.js";
import type { Caller, Command } from "../api.js";
import { tailOf } from "./output.js";

export type FinishCommand = Extract<Command, { readonly type: "task.finish" }>;

/** A finish that this datacenter has accepted, and that no owner has answered yet. */
export interface StoredFinish {
  readonly key: string;
  readonly caller: Caller;
  readonly command: FinishCommand;
  /** How often it was forwarded in vain. */
  readonly tries: number;
}

/** More than this many are not accepted: then the worker has to repeat its finish. */
const most = 10_000;
/** Of standard output and of standard error the last so many characters are kept, as the owner would. */
const outputLimit = 64_000;

/** A key begins with its task's id, and that with its shard. */
const shardOfKey = "coalesce(substring(key FROM '^j([0-9]{1,6})-')::int, 0)";

/** Says that the shard has no owner that could be reached now, or too many wait for it: the finish changed nothing, or nobody knows. */
const ownerless = new Set<ProblemCode>([
  "no_lease",
  "no_majority",
  "not_owner",
  "owner_unreachable",
  "shard_moving",
  "outcome_unknown",
  "overloaded",
]);

/** Whether a finish that failed like this is worth keeping. */
export const isOwnerless = (error: unknown): boolean => error instanceof Problem && ownerless.has(error.code);

/**
 * Whether the finish means the same whenever it arrives: one that failed without naming its try might end a later try of
 * the same worker.
 */
export const keepsItsMeaning = (command: FinishCommand): boolean =>
  command.status === "ok" || command.try !== undefined;

/** Finishes without an answer, in the datacenter's own database: they outlive its processes. */
export class FinishStore {
  readonly #database: Pick<Database, "pool">;

  constructor(database: Pick<Database, "pool">) {
    this.#database = database;
  }

  /**
   * Keeps the finish, to be forwarded after `waitMs` at the earliest; one that is kept already stays as it is.
   * @returns its key; undefined when there is no room. Rejects when the database can't be used.
   */
  async keep(caller: Caller, command: FinishCommand, waitMs: number): Promise<string | undefined> {
    const key = [command.taskId, command.token, command.workerId, command.try ?? "", command.status].join(" ");
    const { rowCount } = await this.#database.pool.query({
      name: "keep_finish",
      text: `INSERT INTO stored_finishes (key, tenant, principal, command, next_at)
        SELECT $1, $2, $3, $4, now() + $5 * interval '1 millisecond' WHERE (SELECT count(*) FROM stored_finishes) < $6
        ON CONFLICT (key) DO UPDATE SET tries = stored_finishes.tries`,
      values: [key, caller.tenant, caller.principal, JSON.stringify(bounded(command)), waitMs, most],
    });
    return rowCount === 1 ? key : undefined;
  }

  /** Of those whose time has come. */
  async shards(): Promise<number[]> {
    const { rows } = await this.#database.pool.query<{ shard: number }>(
      `SELECT DISTINCT ${shardOfKey} AS shard FROM stored_finishes WHERE next_at <= now()`,
    );
    return rows.map(({ shard }) => shard);
  }

  /** Of these shards those whose time has come, the oldest first. */
  async due(limit: number, shards: readonly number[]): Promise<StoredFinish[]> {
    const { rows } = await this.#database.pool.query<{
      key: string;
      tenant: string;
      principal: string;
      command: FinishCommand;
      tries: number;
    }>(
      `SELECT key, tenant, principal, command, tries FROM stored_finishes JOIN unnest($2::int[]) AS s(shard) ON s.shard = ${shardOfKey}
       WHERE next_at <= now() ORDER BY next_at LIMIT $1`,
      [limit, shards],
    );
    return rows.map(({ key, tenant, principal, command, tries }) => ({
      key,
      caller: { tenant, principal },
      command,
      tries,
    }));
  }

  async forget(key: string): Promise<void> {
    await this.#database.pool.query("DELETE FROM stored_finishes WHERE key = $1", [key]);
  }

  async later(key: string, waitMs: number): Promise<void> {
    await this.#database.pool.query(
      "UPDATE stored_finishes SET next_at = now() + $2 * interval '1 millisecond', tries = tries + 1 WHERE key = $1",
      [key, waitMs],
    );
  }
}

function bounded(command: FinishCommand): FinishCommand {
  const { stdout, stderr } = command;
  return {
    ...command,
    ...(stdout === undefined ? {} : { stdout: tailOf(stdout, outputLimit) }),
    ...(stderr === undefined ? {} : { stderr: tailOf(stderr, outputLimit) }),
  };
}
