import { asError } from "../../infra/errors.js";
import type { ClusterRow, KeyRow } from "../../replication/entities.js";
import type { FullHead } from "../../replication/heads.js";
import type { Epoch, Position } from "../../shards/ids.js";
import { transition } from "../../shards/states.js";
import type { Vote } from "../../shards/store.js";
import type { Process, Scheduler } from "./scheduler.js";

export interface OutboxEntry {
  readonly epoch: Epoch;
  readonly position: Position;
  readonly record: Uint8Array;
  readonly committedAt: number;
}

export interface Restore {
  readonly id: string;
  readonly shard: number;
  readonly cut: { readonly epoch: number; readonly position: number } | null;
}

/** An operation that was set aside. */
export interface Aside {
  /** Name of the cluster that it wrote. */
  readonly mark: string;
  readonly key: string | null;
  /** False: superseded. */
  readonly open: boolean;
}

/** All tables of a datacenter's database. Values are never changed in place, so that a copy of the maps is a copy of it all. */
export interface Tables {
  readonly heads: Map<number, FullHead>;
  readonly progress: Map<number, number>;
  readonly rows: Map<string, ClusterRow>;
  /** By "shard/key". */
  readonly keys: Map<string, KeyRow>;
  readonly outbox: Map<number, readonly OutboxEntry[]>;
  /** By "shard/epoch/position". */
  readonly divergent: Map<string, Aside>;
  readonly restores: Map<string, Restore>;
  readonly votes: Map<string, Vote>;
  readonly incarnations: Map<string, number>;
  readonly locks: Map<string, { readonly holder: string; readonly until: number }>;
  readonly nodes: Map<string, number>;
  /** "incarnation" as it was when last met; "run". */
  readonly meta: Map<string, number>;
}

export const emptyTables = (): Tables => ({
  heads: new Map(),
  progress: new Map(),
  rows: new Map(),
  keys: new Map(),
  outbox: new Map(),
  divergent: new Map(),
  restores: new Map(),
  votes: new Map(),
  incarnations: new Map(),
  locks: new Map(),
  nodes: new Map(),
  meta: new Map([["incarnation", 1]]),
});

const copyOf = (tables: Tables): Tables =>
  Object.fromEntries(
    Object.entries(tables).map(([name, table]) => [name, new Map(table as Map<string, unknown>)]),
  ) as unknown as Tables;

/** Heads that a transaction under way has locked. */
export class HeldLocks {
  /** The server has ended the transaction: nothing of it is committed. */
  lost = false;

  constructor(
    readonly process: Process,
    readonly shards: readonly number[],
    readonly at: number,
    readonly release: () => void,
  ) {}
}

export interface DatabaseHooks {
  effect(process: Process, what: string): void;
  say(who: string, text: string): void;
}

/** What rules are removed here, to see whether that is noticed. */
export interface DatabaseFaults {
  /** Statements of an older incarnation are carried out, and a new one closes nothing. */
  forgetsIncarnation?: boolean;
}

const dataStatements = new Set(["apply", "lock heads", "write", "outbox", "restore", "copy"]);
const statementTimeoutMs = 3_000;
/** As infra/postgres sets it. */
const idleInTransactionMs = 3_000;

/** A datacenter's database: each call is one atomic statement, sooner or later; it survives its processes. */
export class MemoryDatabase {
  tables = emptyTables();
  /** The server's own word on who it is; it does not go back with the data. */
  incarnation = 1;
  #up = true;
  pausedUntil = 0;
  /** The tables of the data stand still (a lock, a full disk queue), the small ones of the leases don't. */
  dataPausedUntil = 0;
  /** Lock statements of one process come late. */
  lateLocks: { readonly process: string; readonly until: number } | null = null;
  /** Milliseconds that its clock, which judges locks, is ahead. */
  ahead = 0;
  calm = false;
  slow = 0.02;
  faults: DatabaseFaults = {};
  readonly #s: Scheduler;
  readonly #hooks: DatabaseHooks;
  readonly #held = new Set<HeldLocks>();
  #snapshots: { readonly at: number; readonly tables: Tables }[] = [];

  constructor(
    s: Scheduler,
    readonly site: string,
    hooks: DatabaseHooks,
  ) {
    this.#s = s;
    this.#hooks = hooks;
  }

  get up(): boolean {
    return this.#up;
  }

  set up(up: boolean) {
    this.#up = up;
    if (!up) this.#dropLocks();
  }

  get clock(): number {
    return this.#s.now + this.ahead;
  }

  /** Runs one statement. @throws what `work` throws, or an error when the database is off, another incarnation, or silent */
  run<T>(
    process: Process,
    what: string,
    work: (tables: Tables) => T,
    touches: readonly number[] | "all" = [],
  ): Promise<T> {
    const s = this.#s;
    const knew = process.knows;
    return new Promise((resolve, reject) => {
      const fail = (delay: number, message: string): void =>
        void s.after(delay, process, () => reject(new Error(message)));
      const execute = (): void => {
        if (!this.up) return fail(1, "the database is off");
        const lateLock = what === "lock" && this.lateLocks?.process === process.name ? this.lateLocks.until : 0;
        const until = Math.max(this.pausedUntil, lateLock, dataStatements.has(what) ? this.dataPausedUntil : 0);
        if (until > s.now) {
          s.after(until - s.now + s.between(0, 2), null, execute);
          return;
        }
        if (process.dead && s.chance(0.5)) return;
        if (what !== "meet" && knew !== this.incarnation && this.faults.forgetsIncarnation !== true) {
          s.after(s.between(0.1, 1), process, () => {
            process.onIncarnation();
            reject(new Error("the database's incarnation changed"));
          });
          return;
        }
        if (this.#blocked(touches)) {
          s.count("waits for locked heads");
          s.after(s.between(2, 10), null, execute);
          return;
        }
        let result: T;
        try {
          result = work(this.tables);
        } catch (error) {
          s.after(s.between(0.1, 1), process, () => reject(asError(error)));
          return;
        }
        this.#hooks.effect(process, what);
        if (!this.calm && s.chance(0.002)) {
          s.count("statements without an answer");
          return fail(statementTimeoutMs, "Query read timeout");
        }
        const lateAnswer = !this.calm && s.chance(0.01);
        s.after(lateAnswer ? s.between(20, 500) : s.between(0.1, 0.6), process, () => resolve(result));
      };
      const late = !this.calm && s.chance(this.slow);
      if (late) s.count("statements late");
      s.after(late ? s.between(50, 1_500) : s.between(0.1, 1), null, execute);
    });
  }

  /** Within a statement: locks the heads until `release`, the end of the process, or of its patience with an idle transaction. */
  hold(process: Process, shards: readonly number[]): HeldLocks {
    const held = new HeldLocks(process, shards, this.#s.now, () => {
      this.#held.delete(held);
    });
    this.#held.add(held);
    return held;
  }

  #blocked(touches: readonly number[] | "all"): boolean {
    if (touches.length === 0) return false;
    for (const held of this.#held) {
      if (held.process.dead || this.#s.now - held.at > idleInTransactionMs) {
        held.lost = true;
        this.#held.delete(held);
      } else if (touches === "all" || held.shards.some((shard) => touches.includes(shard))) return true;
    }
    return false;
  }

  #dropLocks(): void {
    for (const held of this.#held) held.lost = true;
    this.#held.clear();
  }

  /** The first statement of a process (rule i); see shards/incarnation.ts. */
  meet(
    process: Process,
    options: { readonly node: string; readonly goneMs: number; readonly closing: number },
  ): Promise<number> {
    return this.run(
      process,
      "meet",
      (tables) => {
        if (tables.meta.get("incarnation") !== this.incarnation && this.faults.forgetsIncarnation !== true) {
          tables.meta.set("incarnation", this.incarnation);
          closeTables(tables, options.closing);
          tables.locks.clear();
          this.#hooks.say(process.name, `meets incarnation ${this.incarnation} of its database, and closes it`);
        }
        const alive = [...tables.nodes].some(
          ([node, seen]) => node !== options.node && seen > this.clock - options.goneMs,
        );
        if (!alive)
          for (const head of tables.heads.values())
            if (head.confirmed && head.state !== "replica")
              tables.heads.set(head.shard, { ...head, confirmed: false, revision: head.revision + 1 });
        return this.incarnation;
      },
      "all",
    );
  }

  /** Keeps copies of the last two seconds, to go back to. */
  snapshot(): void {
    this.#snapshots.push({ at: this.#s.now, tables: copyOf(this.tables) });
    if (this.#snapshots.length > 20) this.#snapshots.shift();
  }

  /** An asynchronous standby takes over: everything in it is as it was. @returns when that was */
  goBack(by?: number): number | undefined {
    if (this.#snapshots.length < 3) return undefined;
    const before = this.#s.now - (by ?? 0);
    const copy =
      by === undefined
        ? this.#snapshots[Math.floor(this.#s.random.next() * (this.#snapshots.length - 1))]
        : (this.#snapshots.findLast((each) => each.at <= before) ?? this.#snapshots[0]);
    if (copy === undefined) return undefined;
    this.tables = copyOf(copy.tables);
    this.#snapshots = this.#snapshots.filter((other) => other.at <= copy.at);
    this.incarnation++;
    this.#dropLocks();
    return copy.at;
  }
}

/** Closes the datacenter; see `close` in shards/postgres-store.ts. */
export function closeTables(tables: Tables, closing: number): void {
  for (const head of tables.heads.values())
    tables.heads.set(head.shard, {
      ...head,
      closing,
      fencedThrough: Math.max(head.fencedThrough, head.epoch) as Epoch,
      state: transition(head.state, "close")?.next ?? head.state,
      revision: head.revision + 1,
    });
}
