import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";
import type { PostgresServer } from "./postgres.js";
import { endProcess, signalTree, waitGone } from "./processes.js";
import { until } from "./wait.js";

const promoteMs = 30_000;

/**
 * Two PostgreSQL servers of a datacenter: one takes writes, the other follows it, and a commit waits for it. On one machine nobody
 * watches over them as Patroni would: who is the primary changes by `promote` alone, and stands in a file.
 */
export class PostgresPair {
  readonly #servers: readonly [PostgresServer, PostgresServer];
  readonly #roleFile: string;

  constructor(first: PostgresServer, second: PostgresServer, dir: string) {
    this.#servers = [first, second];
    this.#roleFile = path.join(dir, "postgres-primary");
  }

  get primary(): PostgresServer {
    return this.#servers[this.#index];
  }

  get standby(): PostgresServer {
    return this.#servers[this.#index === 0 ? 1 : 0];
  }

  /** The primary, then the standby; one that has none, or was a primary itself, gets the primary's data anew. */
  async start(): Promise<void> {
    const { primary, standby } = this;
    await primary.initialise();
    if (primary.process() === undefined) primary.configure({ synchronous: true });
    await primary.start();
    if (!standby.follows) await standby.copyOf(primary);
    await standby.start();
    primary.configure({ synchronous: true });
  }

  /** The primary dies, and the standby takes its place; without a standby of its own until the next `start`. @throws FatalError */
  async promote(): Promise<void> {
    const { primary, standby } = this;
    const process_ = standby.process();
    if (process_ === undefined)
      throw new FatalError(
        "not_running",
        "The standby does not run.",
        "Start it with `hothot simulate restart` or `hothot up`.",
      );
    const dead = primary.process();
    if (dead !== undefined) {
      signalTree(dead, "SIGKILL");
      await waitGone(dead, 10_000);
      await endProcess(dead, "SIGKILL", 1_000);
    }
    // A commit must not wait for a standby that is not there.
    standby.configure({ synchronous: false });
    standby.promote();
    if ((await until(() => !standby.follows, promoteMs)) === undefined)
      throw new FatalError("postgres_failed", "The standby does not become the primary.", `See ${standby.logFile}.`);
    writeFileSync(this.#roleFile, this.#index === 0 ? "second\n" : "first\n");
  }

  /** Ends the standby first, so that the primary has nobody to wait for at its end. */
  async stop(): Promise<void> {
    const { primary, standby } = this;
    primary.configure({ synchronous: false });
    await primary.stop();
    await standby.stop();
  }

  get #index(): 0 | 1 {
    return existsSync(this.#roleFile) && readFileSync(this.#roleFile, "utf8").trim() === "second" ? 1 : 0;
  }
}
