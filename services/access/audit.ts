import { within, type Time } from "../../infra/clock.js";
import { asError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Database } from "../../infra/postgres/database.js";
import type { Service } from "../../infra/service.js";
import type { JsonObject } from "../../replication/entities.js";
import type { Listed, Page } from "../api.js";
import { cursorParts, encodeCursor } from "../clusters/queries.js";

/** What somebody did, or tried to. */
export interface AuditEntry {
  /** The same id again: the entry in its newer state. */
  readonly id: string;
  /** RFC 3339. */
  readonly at: string;
  readonly who: string;
  /** The datacenter that was asked. */
  readonly dc: string;
  readonly action: string;
  readonly target: JsonObject;
  /** `ok`, the status of a long operation, or the code of the refusal; `begun`: what came of it was not noted (yet). */
  readonly result: string;
  readonly detail?: string;
  readonly requestId: string | null;
}

export interface AuditOptions {
  readonly database: Database;
  readonly time: Time;
  readonly log: Logger;
  /** Stores it for all datacenters, so that a majority of sites has it. */
  readonly publish: (id: string, body: JsonObject, timeoutMs: number) => Promise<void>;
  /** This process looks after what others of the datacenter left behind. */
  readonly active: () => boolean;
}

/** An answer waits so long for its entry to be in the log. */
const patienceMs = 500;
const publishMs = 5_000;
const againMs = 1_000;
const orphanSeconds = 15;
const endsKept = 200;
const lateKept = 200;

/**
 * Who did what, in every datacenter. An entry is first kept in the own database, and goes from there into the log; what
 * the log can't take now is brought there later, so that no action waits for it and none is forgotten. Entries stay for ever.
 */
export class AuditTrail implements Service {
  readonly name = "audit";
  readonly #o: AuditOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  /** How long operations ended, for those whose beginning is noted after their end. */
  readonly #ends = new Map<string, { readonly result: string; readonly detail?: string }>();
  /** The last entries of this process. */
  readonly #noted = new Map<string, AuditEntry>();
  /** Entries of this process that the log could not take yet. */
  readonly #late = new Set<string>();
  /** Entries of this process on their way. */
  readonly #under = new Map<string, Promise<void>>();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: AuditOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "audit" });
  }

  async start(): Promise<void> {
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#sweep().catch((error: unknown) =>
          this.#log.debug("entries that wait can't be read", { error: asError(error) }),
        );
        await this.#o.time.sleep(againMs, this.#stop.signal);
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    await Promise.allSettled(this.#under.values());
  }

  /** Keeps what is about to be done in the own database, which delays it little; it goes into the log with what came of it. */
  async begin(entry: AuditEntry): Promise<void> {
    const kept = this.#inTurn(entry.id, () => this.#keep(entry));
    await within(this.#o.time, patienceMs, kept, undefined);
  }

  /** Never fails: an entry that can't even be kept here is in this process's log. */
  async note(entry: AuditEntry): Promise<void> {
    this.#log.info("audit", { entry });
    this.#noted.set(entry.id, entry);
    if (this.#noted.size > endsKept) for (const oldest of this.#noted.keys()) if (this.#noted.delete(oldest)) break;
    await this.#inTurn(entry.id, () => this.#keep(entry));
    await within(this.#o.time, patienceMs, this.#deliver(entry.id), undefined);
  }

  /**
   * The entry in its last state, wherever it is by now; also one whose beginning is about to be noted.
   * @param otherwise what stands in for one that was not noted: whoever began it died
   */
  async ended(otherwise: AuditEntry, detail: string | null): Promise<void> {
    const { id, result } = otherwise;
    const end = { result, ...(detail === null ? {} : { detail }) };
    this.#ends.set(id, end);
    if (this.#ends.size > endsKept) for (const oldest of this.#ends.keys()) if (this.#ends.delete(oldest)) break;
    await this.#inTurn(id, async () => {
      // Between the log's having taken it and the own copy's having it, it stands in neither table.
      const noted = this.#noted.get(id);
      if (noted !== undefined) return this.#keep(noted);
      const { rows } = await this.#o.database.pool.query<{ body: Omit<AuditEntry, "id"> }>(
        `SELECT body FROM audit_pending WHERE id = $1
         UNION ALL SELECT body FROM documents WHERE kind = 'audit' AND id = $1 AND NOT deleted LIMIT 1`,
        [id],
      );
      await this.#keep({ ...(rows[0]?.body ?? otherwise), id });
    });
    await this.#deliver(id);
  }

  /** Oldest first, as this datacenter has them, with those that are not in the log yet. */
  async list(page: Page): Promise<Listed> {
    const [at, id] = page.cursor === undefined ? ["", ""] : cursorParts(page.cursor, ["time", "text"]);
    const { rows } = await this.#o.database.pool.query<{ id: string; body: Record<string, unknown> }>(
      `SELECT id, body FROM (
         SELECT id, body FROM documents d WHERE kind = 'audit' AND NOT deleted AND NOT EXISTS (SELECT 1 FROM audit_pending p WHERE p.id = d.id)
         UNION ALL SELECT id, body FROM audit_pending) AS entries
       WHERE (body ->> 'at', id) > ($1, $2) ORDER BY body ->> 'at', id LIMIT $3`,
      [at, id, page.limit + 1],
    );
    const items = rows.slice(0, page.limit).map((row): JsonObject => ({ id: row.id, ...row.body }));
    const last = items.at(-1);
    const more = rows.length > page.limit && last !== undefined;
    return { items, nextCursor: more ? encodeCursor(JSON.stringify([last["at"], last["id"]])) : null };
  }

  async #keep(entry: AuditEntry): Promise<void> {
    const { id, ...body } = { ...entry, ...this.#ends.get(entry.id) };
    try {
      await this.#o.database.pool.query(
        "INSERT INTO audit_pending (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body, version = audit_pending.version + 1",
        [id, JSON.stringify(body)],
      );
    } catch (error) {
      this.#log.error("an entry of the audit trail can't be kept", { entry, error: asError(error) });
    }
  }

  /** Brings an entry into the log, in its newest state. */
  #deliver(id: string): Promise<void> {
    return this.#inTurn(id, async () => {
      try {
        await this.#bring(id);
        this.#late.delete(id);
      } catch (error) {
        if (this.#late.size < lateKept) this.#late.add(id);
        this.#log.debug("an entry of the audit trail waits for the log", { id, error: asError(error) });
      }
    });
  }

  /** What concerns one entry happens one after the other. */
  #inTurn(id: string, work: () => Promise<void>): Promise<void> {
    const now = (this.#under.get(id) ?? Promise.resolve()).then(work);
    const settled = now.catch(() => undefined);
    this.#under.set(id, settled);
    return now.finally(() => {
      if (this.#under.get(id) === settled) this.#under.delete(id);
    });
  }

  async #bring(id: string): Promise<void> {
    const { pool } = this.#o.database;
    const { rows } = await pool.query<{ body: JsonObject; version: number }>(
      "SELECT body, version FROM audit_pending WHERE id = $1",
      [id],
    );
    const found = rows[0];
    if (found === undefined) return;
    await this.#o.publish(id, found.body, publishMs);
    await pool.query("DELETE FROM audit_pending WHERE id = $1 AND version = $2", [id, found.version]);
  }

  async #sweep(): Promise<void> {
    await Promise.all([...this.#late].filter((id) => !this.#under.has(id)).map((id) => this.#deliver(id)));
    if (!this.#o.active()) return;
    const { rows } = await this.#o.database.pool.query<{ id: string }>(
      `SELECT id FROM audit_pending WHERE noted_at < now() - $1 * interval '1 second' ORDER BY noted_at LIMIT 100`,
      [orphanSeconds],
    );
    for (const { id } of rows) {
      if (this.#stop.signal.aborted) return;
      if (!this.#under.has(id)) await this.#deliver(id);
    }
  }
}
