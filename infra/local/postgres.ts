import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { FatalError, asError } from "../errors.js";
import { copyData, slotName, writeOwned } from "./postgres-copy.js";
import type { PostgresBinaries } from "./postgres-binaries.js";
import { commandAs, giveTo, postgresUser } from "./postgres-user.js";
import { endProcess, isAlive, launch, running, startTimeOf, type ProcessId } from "./processes.js";
import { lastLines } from "./logs.js";
import { freeSharedMemory, lockFileName } from "./shared-memory.js";
import { until } from "./wait.js";

export interface PostgresOptions {
  /** Called when they are needed first. */
  readonly binaries: () => PostgresBinaries;
  /** Holds the data in `data/`; made when missing. */
  readonly dir: string;
  readonly port: number;
  readonly password: string;
  readonly logFile: string;
  readonly pidFile: string;
  readonly settings?: Readonly<Record<string, string>>;
}

const user = "hothot";
const settings: Readonly<Record<string, string>> = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: "100",
  shared_buffers: "128MB",
  wal_level: "replica",
  fsync: "on",
  synchronous_commit: "on",
  // In the data folder: a server that is killed leaves nothing elsewhere.
  dynamic_shared_memory_type: "mmap",
  max_wal_size: "512MB",
  logging_collector: "off",
  log_line_prefix: "%m [%p] ",
};

/** One PostgreSQL server on loopback, with a database `hothot`; its process outlives the one that starts it. */
export class PostgresServer {
  readonly #options: PostgresOptions;
  readonly #data: string;

  constructor(options: PostgresOptions) {
    this.#options = options;
    this.#data = path.join(options.dir, "data");
  }

  url(database = "hothot"): string {
    return `postgres://${user}:${this.#options.password}@127.0.0.1:${this.#options.port}/${database}`;
  }

  /** With a second server: whoever connects finds the one that takes writes. */
  urlWith(other: PostgresServer): string {
    return this.url().replace(/@([^/]*)\//, `@$1,127.0.0.1:${other.#options.port}/`);
  }

  get logFile(): string {
    return this.#options.logFile;
  }

  /** Whether its data is that of a standby. */
  get follows(): boolean {
    return existsSync(path.join(this.#data, "standby.signal"));
  }

  /** Becomes a standby of a running server, with a copy of its data. It does not run. */
  async copyOf(primary: PostgresServer): Promise<void> {
    await copyData(primary.url("postgres"), primary.#data, this.#data);
    const { port, password } = primary.#options;
    writeOwned(
      path.join(this.#data, "postgresql.auto.conf"),
      `primary_conninfo = 'host=127.0.0.1 port=${port} user=${user} password=${password}'\nprimary_slot_name = '${slotName}'\n`,
    );
    writeOwned(path.join(this.#data, "standby.signal"), "");
  }

  /** Whether commits wait for a standby; also while it runs. */
  configure(how: { readonly synchronous: boolean }): void {
    writeOwned(
      path.join(this.#data, "postgresql.auto.conf"),
      how.synchronous ? "synchronous_standby_names = '*'\n" : "synchronous_standby_names = ''\n",
    );
    const process_ = this.process();
    if (process_ !== undefined) process.kill(process_.pid, "SIGHUP");
  }

  /** A standby that runs begins to take writes, soon. */
  promote(): void {
    const process_ = this.process();
    writeOwned(path.join(this.#data, "promote"), "");
    if (process_ !== undefined) process.kill(process_.pid, "SIGUSR1");
  }

  process(): ProcessId | undefined {
    return running(this.#options.pidFile);
  }

  /** Makes the data folder and the database, once: under another name first, so that a break leaves nothing half made. */
  async initialise(): Promise<void> {
    if (existsSync(this.#data)) return;
    const fresh = path.join(this.#options.dir, "data.new");
    const passwordFile = path.join(this.#options.dir, "password.new");
    rmSync(fresh, { recursive: true, force: true });
    // Only the data itself is closed to others: the server's user has to get there.
    mkdirSync(this.#options.dir, { recursive: true });
    mkdirSync(fresh, { mode: 0o700 });
    writeFileSync(passwordFile, this.#options.password, { mode: 0o600 });
    const as = postgresUser();
    for (const file of [fresh, passwordFile]) giveTo(as, file);
    const { initdb, postgres } = this.#options.binaries();
    try {
      const auth = ["--auth=scram-sha-256", `--pwfile=${passwordFile}`, `--username=${user}`];
      await run(commandAs(as, initdb, ["-D", fresh, ...auth, "--encoding=UTF8", "--locale=C"], [fresh]));
      const single = commandAs(as, postgres, ["--single", "-D", fresh, "postgres"], [fresh]);
      await run(single, "CREATE DATABASE hothot\n");
      renameSync(fresh, this.#data);
    } catch (error) {
      rmSync(fresh, { recursive: true, force: true });
      throw new FatalError(
        "postgres_failed",
        `PostgreSQL's data can't be made in ${this.#options.dir}: ${firstLines(error)}`,
        "Is the disk full, or the folder read-only? Another folder: --dir.",
        error,
      );
    } finally {
      rmSync(passwordFile, { force: true });
    }
  }

  /**
   * Starts the server unless it runs, and waits until it accepts connections.
   * @throws FatalError postgres_failed, with the end of its log
   */
  async start(): Promise<ProcessId> {
    const already = this.process();
    if (already !== undefined) return already;
    // Children of a killed server may hold its shared memory for a moment; then a start fails, and a later one doesn't.
    for (let tries = 5; ; tries--) {
      this.#dropStaleLock();
      const started = await this.#launch();
      const ready = await until(() => this.#ready(started) || !isAlive(started), 60_000, 10);
      if (ready && isAlive(started)) return started;
      await endProcess(started, "SIGQUIT", 1000);
      const log = lastLines(this.#options.logFile, 5);
      if (tries === 0 || !/shared memory|lock file/.test(log)) {
        throw new FatalError(
          "postgres_failed",
          `PostgreSQL does not start:\n${log}`,
          `See ${this.#options.logFile}; another port: --port-base.`,
        );
      }
      await until(() => false, 300);
    }
  }

  /** Fast shutdown: sessions are ended, everything is written. */
  async stop(): Promise<void> {
    const process_ = this.process();
    if (process_ !== undefined) await endProcess(process_, "SIGINT", 30_000);
    else await freeSharedMemory(this.#data);
  }

  #launch(): Promise<ProcessId> {
    const { port, logFile, pidFile } = this.#options;
    const binaries = this.#options.binaries();
    const all = {
      ...settings,
      port: String(port),
      // Processes that read ahead are of no use at this size.
      ...(binaries.majorVersion >= 18 ? { io_method: "sync" } : {}),
      ...this.#options.settings,
    };
    const args = ["-D", this.#data, ...Object.entries(all).flatMap(([name, value]) => ["-c", `${name}=${value}`])];
    return launch({
      ...commandAs(postgresUser(), binaries.postgres, args, [this.#data]),
      env: quietEnvironment(),
      logFile,
      pidFile,
    });
  }

  #lockLines(): string[] {
    try {
      return readFileSync(path.join(this.#data, lockFileName), "utf8").split("\n");
    } catch {
      return [];
    }
  }

  #ready(process_: ProcessId): boolean {
    const lines = this.#lockLines();
    return lines[0] === String(process_.pid) && lines[7]?.trim() === "ready";
  }

  /**
   * PostgreSQL refuses to start while any process has the number in its lock file, be it a dead one that its parent has not
   * collected, or another program that was given the number. It overlooks its own parent's number, so that is put there;
   * its other check, for children that still use the shared memory, stays as it is.
   */
  #dropStaleLock(): void {
    const [pid, ...rest] = this.#lockLines();
    if (pid === undefined || Number(pid) <= 1) return;
    const isOurs = startTimeOf(Number(pid)) !== undefined && commandLineOf(Number(pid)).includes(this.#data);
    if (!isOurs) writeFileSync(path.join(this.#data, lockFileName), [process.pid, ...rest].join("\n"));
  }
}

/** Empty where there is no /proc: a number in use is then somebody else's, since our own pid file was looked at before. */
function commandLineOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return "";
  }
}

/** PG* variables of the caller are for its own clients. */
function quietEnvironment(): Record<string, string | undefined> {
  return { ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PG"))), LC_ALL: "C" };
}

async function run(as: ReturnType<typeof commandAs>, input?: string): Promise<void> {
  const { command, args, ...ids } = as;
  const child = promisify(execFile)(command, args, { ...ids, cwd: "/", env: quietEnvironment(), timeout: 60_000 });
  child.child.stdin?.end(input ?? "");
  await child;
}

function firstLines(error: unknown): string {
  const { stderr } = error as { stderr?: string };
  return (stderr !== undefined && stderr !== "" ? stderr : asError(error).message)
    .trim()
    .split("\n")
    .slice(0, 5)
    .join("\n");
}
