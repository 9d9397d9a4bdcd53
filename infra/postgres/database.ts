import type { Duplex } from "node:stream";
import pg from "pg";
import { CamelCasePlugin, Kysely, PostgresDialect } from "kysely";
import { asError, FatalError } from "../errors.js";
import type { Logger } from "../logger.js";
import { migrations } from "./migrations.js";
import type { Tables } from "./schema.js";

export type Client = pg.PoolClient;
export type Db = Kysely<Tables>;
/** Takes the promise of a statement that nothing waits for before the end of the transaction. */
export type Send = (statement: Promise<unknown>) => void;

/**
 * Identity of a database as it is now (rule i). A promotion raises the timeline; a copy that was put back raises the
 * restore number (by hand, or by itself where the system identifier is another). Ordered by (restore, timeline).
 */
export interface Identity {
  readonly systemId: string;
  readonly restoreNumber: number;
  readonly timeline: number;
}

/** The identity as one number that only grows: restore number (seconds since 1970, or 0) above, timeline below. */
export const incarnationOf = (identity: Identity): number => identity.restoreNumber * 2 ** 20 + identity.timeline;

/** The database is another one than the process knew: statements that were meant for the old one are dropped. */
export class IncarnationChanged extends Error {
  constructor(readonly found: Identity) {
    super("the database's incarnation changed");
    this.name = "IncarnationChanged";
  }
}

const DATE = 1184;
const INT8 = 20;
const NUMERIC = 1700;

function safeInteger(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value)) throw new RangeError(`not a safe integer: ${text}`);
  return value;
}

const parsers = new Map<number, (text: string) => unknown>([
  [INT8, safeInteger],
  [NUMERIC, (text) => text],
  [DATE, (text) => new Date(text).toISOString()],
]);

const types = {
  getTypeParser: (oid: number, format?: "text" | "binary"): ((value: string) => unknown) =>
    (format !== "binary" ? parsers.get(oid) : undefined) ??
    (pg.types.getTypeParser(oid, "text") as (value: string) => unknown),
};

/**
 * Types of a query whose `json` comes as bytes: many strings that live for as long as their statement would end among the engine's
 * old objects, which it looks through seldom.
 */
export const jsonAsBytes = {
  getTypeParser: (oid: number, format?: "text" | "binary"): ((value: string) => unknown) =>
    oid === (pg.types.builtins.JSON as number) ? (value) => Buffer.from(value) : types.getTypeParser(oid, format),
};

interface Host {
  readonly host: string;
  readonly port: number;
}

/** `postgres://user:password@h1:5432,h2:5432/name` -> its hosts and the rest. */
export function parseDatabaseUrl(url: string): {
  hosts: Host[];
  user: string;
  password: string;
  database: string;
  ssl: boolean;
} {
  const match = /^postgres(?:ql)?:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?([^/]+)\/([^?]*)(?:\?(.*))?$/.exec(url);
  if (match === null)
    throw new FatalError(
      "bad_configuration",
      "HOTHOT_DATABASE_URL can't be read",
      "Write postgres://user:password@host:5432/database.",
    );
  const hosts = (match[3] ?? "").split(",").map((part) => {
    const [host = "", port = "5432"] = part.split(":");
    return { host, port: Number(port) };
  });
  const ssl = new URLSearchParams(match[5] ?? "").get("sslmode");
  return {
    hosts,
    user: decodeURIComponent(match[1] ?? "postgres"),
    password: decodeURIComponent(match[2] ?? ""),
    database: decodeURIComponent(match[4] ?? "postgres"),
    ssl: ssl !== null && ssl !== "disable",
  };
}

export interface DatabaseOptions {
  readonly url: string;
  readonly connections: number;
  readonly name: string;
  /** Client-side bound of one statement, milliseconds: a stopped server must not hold callers for ever. */
  readonly statementTimeoutMs?: number;
  /** Statements of a connection are sent without waiting for the answers to those before them. Excludes COPY and cursors. */
  readonly pipeline?: boolean;
  readonly log: Logger;
}

/** Longer than a process is ever busy between two statements, shorter than a shard may be held up. */
const idleInTransactionMs = 3_000;

const identityQuery = `SELECT pg_is_in_recovery() AS recovering,
  (SELECT system_identifier::text FROM pg_control_system()) AS "systemId",
  CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || lpad(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 16, '0'))::bit(64)::bigint END AS timeline,
  to_regclass('meta') IS NOT NULL AS "hasMeta"`;

/** Connections to a datacenter's PostgreSQL: finds the writable one of several hosts, and knows which incarnation it speaks to. */
export class Database {
  readonly db: Db;
  readonly #log: Logger;
  readonly #hosts: Host[];
  readonly #config: pg.PoolConfig;
  #pool: pg.Pool;
  #host = 0;
  #known: Identity | undefined;
  #listener: ((found: Identity) => void) | undefined;

  constructor(options: DatabaseOptions) {
    this.#log = options.log;
    const { hosts, user, password, database, ssl } = parseDatabaseUrl(options.url);
    this.#hosts = hosts;
    const limit = options.statementTimeoutMs ?? 10_000;
    this.#config = {
      user,
      password,
      database,
      ...(ssl ? { ssl: true } : {}),
      max: options.connections,
      application_name: options.name,
      connectionTimeoutMillis: 3_000,
      idleTimeoutMillis: 0,
      keepAlive: true,
      statement_timeout: limit,
      // A process that stands still in the middle of a transaction must not keep the others from the rows that it has locked.
      idle_in_transaction_session_timeout: idleInTransactionMs,
      query_timeout: limit + 500,
      ...(options.pipeline === true ? { pipeline: true } : {}),
      types,
    };
    this.#pool = this.#newPool();
    const current = (): pg.Pool => this.#pool;
    this.db = new Kysely<Tables>({
      dialect: new PostgresDialect({
        pool: { connect: () => current().connect(), end: () => current().end() },
      }),
      plugins: [new CamelCasePlugin({ maintainNestedObjectKeys: true })],
    });
  }

  /** The incarnation that statements are meant for, as one number; 0 before `adopt`. */
  get incarnation(): number {
    return this.#known === undefined ? 0 : incarnationOf(this.#known);
  }

  /** Replaced when the database turns out to be another one: keep no reference. */
  get pool(): pg.Pool {
    return this.#pool;
  }

  /**
   * From now on statements are meant for this incarnation; connections to another one are refused and reported. Those to an
   * earlier one (a former primary that still runs) are dropped.
   */
  adopt(identity: Identity): void {
    const before = this.#known;
    this.#known = identity;
    if (
      before === undefined ||
      (before.systemId === identity.systemId && incarnationOf(before) === incarnationOf(identity))
    )
      return;
    const old = this.#pool;
    this.#pool = this.#newPool();
    old.end().catch((error: unknown) => this.#log.debug("closing old connections failed", { error: asError(error) }));
  }

  /** One transaction on a connection of its own that is not compared with the known incarnation: to meet a new one. */
  async meet<T>(work: (client: Client) => Promise<T>): Promise<T> {
    const client = new pg.Client({ ...this.#config, ...this.#address() });
    client.on("error", (error) => this.#log.warn("database connection lost", { error }));
    try {
      await client.connect();
      await client.query("BEGIN");
      const result = await work(client as unknown as Client);
      await client.query("COMMIT");
      return result;
    } catch (error) {
      this.#nextHost();
      throw error;
    } finally {
      client.end().catch(() => undefined);
    }
  }

  onIncarnation(listener: (found: Identity) => void): void {
    this.#listener = listener;
  }

  /** One connection, one transaction; rolled back when `work` throws. */
  transaction<T>(work: (client: Client) => Promise<T>): Promise<T> {
    return this.pipelined((client) => work(client));
  }

  /**
   * As `transaction`, for work that need not wait for each answer: BEGIN goes with its first statement, and COMMIT behind the ones
   * that it gave to `send`, whose failure fails the whole. On a pipelined pool each wait is one round trip, however many it sent.
   */
  async pipelined<T>(work: (client: Client, send: Send) => Promise<T>): Promise<T> {
    const client = await this.connect();
    const sent: Promise<unknown>[] = [];
    let broken: Error | undefined;
    let first: Error | undefined;
    const send: Send = (statement) => {
      // Met at the end; until then nobody may wait for it.
      statement.catch((error: unknown) => (first ??= asError(error)));
      sent.push(statement);
    };
    try {
      send(client.query("BEGIN"));
      const result = await work(client, send);
      const ended = client.query("COMMIT");
      ended.catch(() => undefined);
      await Promise.all(sent);
      if ((await ended).command !== "COMMIT") throw new Error("the database rolled the transaction back");
      return result;
    } catch (error) {
      if (isTimeout(error)) broken = asError(error);
      else
        try {
          await client.query("ROLLBACK");
        } catch (failure) {
          broken = asError(failure);
        }
      // What follows a statement that failed is refused for that alone: the first failure is the cause.
      throw isAborted(error) && first !== undefined ? first : error;
    } finally {
      client.release(broken);
    }
  }

  connect(): Promise<Client> {
    return this.#pool.connect();
  }

  /** Brings the tables to this version's, under an advisory lock; several processes may call it at once. */
  async migrate(): Promise<void> {
    await this.transaction(async (client) => {
      await client.query("SELECT pg_advisory_xact_lock(7305128)");
      await client.query(
        "CREATE TABLE IF NOT EXISTS schema_version (version int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
      );
      const found = await client.query<{ version: number }>(
        "SELECT coalesce(max(version), 0)::int AS version FROM schema_version",
      );
      const version = found.rows[0]?.version ?? 0;
      if (version > migrations.length)
        throw new FatalError(
          "schema_too_new",
          `the database has schema version ${version}, this program knows ${migrations.length}`,
          "Start a newer hothot.",
        );
      for (const [index, sql] of migrations.entries()) {
        if (index < version) continue;
        await client.query(sql);
        await client.query("INSERT INTO schema_version (version) VALUES ($1)", [index + 1]);
      }
    });
  }

  async identity(): Promise<Identity> {
    const client = await this.connect();
    try {
      return await readIdentity(client);
    } finally {
      client.release();
    }
  }

  async close(): Promise<void> {
    await this.#pool.end();
  }

  #address(): Host {
    return this.#hosts[this.#host] ?? { host: "127.0.0.1", port: 5432 };
  }

  #newPool(): pg.Pool {
    const pipeline = this.#config.pipeline === true;
    // A connection that can't be made, for whatever reason and for whomever, is tried at the next host.
    const rotate = (): void => this.#nextHost();
    class RotatingClient extends pg.Client {
      override connect(callback?: unknown): never {
        const done = callback as ((error?: Error) => void) | undefined;
        const connect = super.connect.bind(this) as (callback: (error?: Error) => void) => void;
        connect((error) => {
          if (error !== undefined && error !== null) rotate();
          done?.(error);
        });
        return undefined as never;
      }
    }
    const pool = new pg.Pool({
      ...this.#config,
      ...this.#address(),
      Client: RotatingClient,
      verify: (client: pg.PoolClient, done: (error?: Error) => void) => {
        this.#verify(client).then(
          () => done(),
          (error: unknown) => {
            this.#nextHost();
            done(asError(error));
          },
        );
      },
    });
    pool.on("error", (error) => this.#log.warn("database connection lost", { error }));
    // Also while it is checked out: without a listener a lost connection would end the process.
    pool.on("connect", (client) => {
      client.on("error", (error) => this.#log.debug("database connection lost in use", { error }));
      if (pipeline) sendTogether(client);
    });
    return pool;
  }

  async #verify(client: pg.PoolClient): Promise<void> {
    const found = await readIdentity(client);
    const known = this.#known;
    if (known === undefined || (found.systemId === known.systemId && incarnationOf(found) === incarnationOf(known)))
      return;
    this.#log.error("database incarnation changed", { known, found });
    this.#listener?.(found);
    throw new IncarnationChanged(found);
  }

  #nextHost(): void {
    if (this.#hosts.length < 2) return;
    this.#host = (this.#host + 1) % this.#hosts.length;
    Object.assign((this.#pool as unknown as { options: Host }).options, this.#address());
  }
}

/** What is asked in one turn of the event loop leaves in one write: a system call costs more than a small statement. */
function sendTogether(client: pg.PoolClient): void {
  const { stream } = (client as unknown as { connection: { stream: Duplex } }).connection;
  const query = client.query.bind(client) as (...args: unknown[]) => unknown;
  let corked = false;
  const together = (...args: unknown[]): unknown => {
    if (!corked) {
      corked = true;
      stream.cork();
      process.nextTick(() => {
        corked = false;
        stream.uncork();
      });
    }
    return query(...args);
  };
  Object.assign(client, { query: together });
}

export async function readIdentity(client: pg.PoolClient): Promise<Identity> {
  const { rows } = await client.query<{ recovering: boolean; systemId: string; timeline: number; hasMeta: boolean }>(
    identityQuery,
  );
  const row = rows[0];
  if (row === undefined) throw new Error("the database did not say who it is");
  if (row.recovering) throw Object.assign(new Error("this PostgreSQL is a standby"), { code: "25006" });
  let restoreNumber = 0;
  if (row.hasMeta) {
    const meta = await client.query<{ restore_number: number }>("SELECT restore_number FROM meta");
    restoreNumber = meta.rows[0]?.restore_number ?? 0;
  }
  return { systemId: row.systemId, timeline: row.timeline, restoreNumber };
}

/** The server itself refused the statement, which so had no effect; any other error leaves that open. */
export const isRefusal = (error: unknown): error is Error => error instanceof pg.DatabaseError;

/** Refused only as an earlier statement of the transaction had failed. */
const isAborted = (error: unknown): boolean => isRefusal(error) && (error as { code?: string }).code === "25P02";

/** The client gave up waiting: whether the statement was carried out is unknown, and the connection is of no use any more. */
export function isTimeout(error: unknown): boolean {
  return error instanceof Error && error.message === "Query read timeout";
}
