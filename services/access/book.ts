import type { Time } from "../../infra/clock.js";
import { asError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Database } from "../../infra/postgres/database.js";
import type { Service } from "../../infra/service.js";
import type { KeptToken } from "./tokens.js";

/** What a tenant may use; null: as much as it likes. */
export interface TenantLimits {
  readonly id: string;
  readonly maxClusters: number | null;
  /** Of one process. */
  readonly writesPerSecond: number | null;
}

/** How old what this process knows may be; a token that was removed works no longer than that. */
const tickMs = 1_000;
/** An unknown token looks into the database at most this often. */
const againMs = 200;

/** Tokens and tenants as this datacenter's database has them, in memory. */
export class AccessBook implements Service {
  readonly name = "access";
  readonly #database: Database;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #tokens = new Map<string, KeptToken>();
  #tenants = new Map<string, TenantLimits>();
  #loop: Promise<void> = Promise.resolve();
  #reading: Promise<void> | undefined;
  #readAt = -Infinity;

  constructor(database: Database, time: Time, log: Logger) {
    this.#database = database;
    this.#time = time;
    this.#log = log.with({ component: "access" });
  }

  async start(): Promise<void> {
    await this.refresh();
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#time.sleep(tickMs, this.#stop.signal);
        await this.refresh();
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  token(id: string): KeptToken | undefined {
    return this.#tokens.get(id);
  }

  /** One that may have been made a moment ago, here or elsewhere. */
  async newToken(id: string): Promise<KeptToken | undefined> {
    if (this.#time.monotonic() - this.#readAt > againMs) await this.refresh();
    return this.#tokens.get(id);
  }

  get tokens(): readonly KeptToken[] {
    return [...this.#tokens.values()];
  }

  limits(tenant: string): TenantLimits | undefined {
    return this.#tenants.get(tenant);
  }

  get tenants(): readonly TenantLimits[] {
    return [...this.#tenants.values()];
  }

  /** Reads both again. While the database can't be read, what was known last goes on to count. */
  refresh(): Promise<void> {
    return (this.#reading ??= this.#read().finally(() => (this.#reading = undefined)));
  }

  async #read(): Promise<void> {
    this.#readAt = this.#time.monotonic();
    try {
      const { rows } = await this.#database.pool.query<{ kind: string; id: string; body: Record<string, unknown> }>({
        name: "access_book",
        text: "SELECT kind, id, body FROM documents WHERE kind IN ('token', 'tenant') AND NOT deleted ORDER BY id",
      });
      const tokens = rows.filter((row) => row.kind === "token");
      const tenants = rows.filter((row) => row.kind === "tenant");
      this.#tokens = new Map(tokens.map(({ id, body }) => [id, { ...body, id } as unknown as KeptToken]));
      this.#tenants = new Map(
        tenants.map(({ body }) => [String(body["tenant"]), { ...body, id: body["tenant"] } as unknown as TenantLimits]),
      );
    } catch (error) {
      this.#log.warn("tokens can't be read: those known last go on to count", { error: asError(error) });
    }
  }
}
