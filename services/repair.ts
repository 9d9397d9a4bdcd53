import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { NoResponders, type Messenger } from "../infra/nats/messaging.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import type { ShardDigest } from "../replication/digest.js";
import {
  cutRows,
  listRows,
  mendRows,
  mendTables,
  type Cut,
  type Listed,
  type MendTable,
  type Scope,
} from "../replication/mend.js";
import type { SnapshotStore } from "../replication/snapshot-store.js";
import { shardOf, type ShardId, type SiteName } from "../shards/ids.js";

const subject = (group: string, dc: SiteName): string => `hothot.${group}.dc.${dc}.mend`;

type Question =
  | {
      readonly kind: "list";
      readonly table: MendTable;
      readonly scope: Scope;
      readonly after: readonly string[] | null;
    }
  | {
      readonly kind: "rows";
      readonly table: MendTable;
      readonly shard: number;
      readonly keys: readonly (readonly string[])[];
    }
  /** Copy a shard again whose log you could not apply any more. */
  | { readonly kind: "recopy"; readonly shard: number }
  /** How far is that? */
  | { readonly kind: "recopied"; readonly shard: number }
  /** Mend your copy from another's. */
  | { readonly kind: "mend"; readonly scope: Scope; readonly from: SiteName };

export interface RepairOptions {
  readonly group: string;
  readonly site: SiteName;
  readonly shards: number;
  readonly database: Database;
  readonly messenger: Messenger;
  readonly time: Time;
  readonly log: Logger;
  readonly owner: (shard: number) => SiteName | null;
  /** What of this datacenter's copies has stopped, and is loaded anew. */
  readonly copies: Pick<SnapshotStore, "recopy" | "recopied">;
  /** Every datacenter's digest of a shard, recomputed; those that answer. */
  readonly digests: (shard: number) => Promise<ReadonlyMap<SiteName, ShardDigest>>;
}

const askMs = 5_000;
const mendMs = 60_000;
/** A large shard takes minutes; it goes on loading when nobody waits for it any more. */
const recopyMs = 240_000;
const alignMs = 5_000;
const pauseMs = 200;
const pageRows = 2_000;
/** Of whole rows; a row may have nearly a megabyte, so that less is asked for when an answer does not fit. */
const batchRows = 100;

/**
 * Makes damaged copies sound again, while they serve: row by row, from a copy whose rows give the digest that the log says, be it
 * not the owner's. Of each row the newer (epoch, position) stays.
 */
export class Repairer implements Service {
  readonly name = "repairer";
  readonly #o: RepairOptions;
  readonly #log: Logger;
  #unsubscribe: (() => void) | undefined;

  constructor(options: RepairOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "repair" });
  }

  async start(): Promise<void> {
    this.#unsubscribe = this.#o.messenger.subscribe(
      subject(this.#o.group, this.#o.site),
      (message) => {
        void this.#answer(unpack(message.data) as Question)
          .then((answer) => message.respond(pack({ ok: answer })))
          .catch((error: unknown) => {
            // A cut that is too large for one message is asked for again in parts.
            this.#log.warn("a repair's question can't be answered", { error: asError(error) });
            message.respond(pack({ failed: asError(error).message }));
          });
      },
      { queue: "mend" },
    );
  }

  async stop(): Promise<void> {
    this.#unsubscribe?.();
  }

  /** @returns how many rows were copied, in all datacenters. @throws Problem not_found, owner_unreachable (no sound copy answers) */
  async repair(what: { readonly shard?: number; readonly clusterId?: string }): Promise<{ readonly copied: number }> {
    const shard = what.shard ?? shardOf(what.clusterId ?? "", this.#o.shards);
    if (shard >= this.#o.shards) throw new Problem("not_found", `There is no shard ${shard}.`);
    const scope: Scope = { shard, clusterId: what.clusterId ?? null };
    let copied = await this.#recopy(shard as ShardId);
    const { damaged, source } = await this.#judge(shard);
    for (const dc of damaged) {
      const mended = await this.#ask<number>(dc, { kind: "mend", scope, from: source }, mendMs);
      this.#log.warn("a copy was repaired", { shard, dc, from: source, rows: mended });
      copied += mended;
    }
    return { copied };
  }

  /** Copies that have stopped are loaded anew from one that has not. @returns clusters in them */
  async #recopy(shard: ShardId): Promise<number> {
    const stopped = [...(await this.#o.digests(shard))]
      .filter(([, copy]) => (copy.stopped ?? null) !== null)
      .map(([dc]) => dc);
    if (stopped.length === 0) return 0;
    for (const dc of stopped) await this.#ask(dc, { kind: "recopy", shard }, askMs);
    const deadline = this.#o.time.monotonic() + recopyMs;
    for (let left = stopped; left.length > 0;) {
      await this.#o.time.sleep(pauseMs);
      const states = await Promise.all(
        left.map((dc) => this.#ask<string>(dc, { kind: "recopied", shard }, askMs).catch(() => "loads")),
      );
      if (states.includes("given_up") || this.#o.time.monotonic() >= deadline)
        throw new Problem(
          "owner_unreachable",
          `Shard ${shard} has stopped in ${left.join(", ")}, and no copy that has not could be loaded there yet.`,
        );
      left = left.filter((_, index) => states[index] !== "done");
    }
    const copies = await this.#o.digests(shard);
    return stopped.reduce((sum, dc) => sum + (copies.get(dc)?.clusters ?? 0), 0);
  }

  async #judge(shard: number): Promise<{ readonly damaged: readonly SiteName[]; readonly source: SiteName }> {
    const owner = this.#o.owner(shard);
    const deadline = this.#o.time.monotonic() + alignMs;
    for (;;) {
      const copies = await this.#o.digests(shard);
      const sound = [...copies].filter(([, copy]) => copy.digest === copy.expected && copy.restoring === 0);
      const truth = (owner === null ? undefined : copies.get(owner)) ?? sound[0]?.[1];
      const aligned = [...copies.values()].every(
        (copy) => copy.epoch === truth?.epoch && copy.position === truth.position,
      );
      const late = this.#o.time.monotonic() >= deadline;
      // At the same place all copies should hold the same; elsewhere each still shows by itself whether it was damaged.
      const right = sound.filter(([, copy]) => !aligned || copy.expected === truth?.expected);
      const damaged = [...copies.keys()].filter((dc) => !right.some(([name]) => name === dc));
      const source = (right.find(([dc]) => dc === owner) ?? right[0])?.[0];
      if (aligned || late || (damaged.length > 0 && source !== undefined)) {
        if (source === undefined)
          throw new Problem("owner_unreachable", `No copy of shard ${shard} that answers is sound.`);
        return { damaged, source };
      }
      await this.#o.time.sleep(pauseMs);
    }
  }

  async #answer(question: Question): Promise<unknown> {
    switch (question.kind) {
      case "list":
        return listRows(this.#o.database, question.table, question.scope, question.after, pageRows);
      case "rows":
        return cutRows(this.#o.database, question.table, question.shard, question.keys);
      case "recopy":
        return this.#o.copies.recopy(question.shard as ShardId, true);
      case "recopied":
        return this.#o.copies.recopied(question.shard as ShardId);
      case "mend":
        return this.#mend(question.scope, question.from);
    }
  }

  async #mend(scope: Scope, from: SiteName): Promise<number> {
    let mended = 0;
    for (const table of mendTables) {
      const theirs = await this.#all((after) =>
        this.#ask<Listed[]>(from, { kind: "list", table, scope, after }, askMs),
      );
      const mine = await this.#all((after) => listRows(this.#o.database, table, scope, after, pageRows));
      const suspects = suspectsOf(mine, theirs);
      for (let at = 0; at < suspects.length; at += batchRows)
        mended += await this.#mendBatch(table, scope.shard, from, suspects.slice(at, at + batchRows));
    }
    return mended;
  }

  async #mendBatch(
    table: MendTable,
    shard: number,
    from: SiteName,
    suspects: readonly (readonly string[])[],
  ): Promise<number> {
    const deadline = this.#o.time.monotonic() + alignMs;
    let left = suspects;
    let mended = 0;
    let size = batchRows;
    while (left.length > 0 && this.#o.time.monotonic() < deadline) {
      const keys = left.slice(0, size);
      let cut: Cut;
      try {
        cut = await this.#ask<Cut>(from, { kind: "rows", table, shard, keys }, askMs);
      } catch (error) {
        // The answer may be too large for one message.
        if (size === 1) throw error;
        size = Math.ceil(size / 8);
        continue;
      }
      const result = await mendRows(this.#o.database, table, shard as ShardId, keys, cut);
      mended += result.mended;
      left = [...left.slice(keys.length), ...result.wait];
      if (result.wait.length > 0) await this.#o.time.sleep(pauseMs);
    }
    return mended;
  }

  async #all(page: (after: readonly string[] | null) => Promise<Listed[]>): Promise<Map<string, Listed>> {
    const all = new Map<string, Listed>();
    for (let after: readonly string[] | null = null; ;) {
      const rows: Listed[] = await page(after);
      for (const row of rows) all.set(JSON.stringify(row.key), row);
      if (rows.length < pageRows) return all;
      after = rows.at(-1)?.key ?? null;
    }
  }

  async #ask<T>(dc: SiteName, question: Question, timeoutMs: number): Promise<T> {
    if (dc === this.#o.site) return (await this.#answer(question)) as T;
    const changes = question.kind === "mend" || question.kind === "recopy";
    let answer: { readonly ok: T } | { readonly failed: string };
    try {
      const data = await this.#o.messenger.request(subject(this.#o.group, dc), pack(question), timeoutMs);
      answer = unpack(data) as typeof answer;
    } catch (error) {
      const unknown = changes && !(error instanceof NoResponders);
      throw new Problem(unknown ? "outcome_unknown" : "owner_unreachable", `${dc} does not answer.`, { cause: error });
    }
    if ("ok" in answer) return answer.ok;
    throw new Problem(changes ? "outcome_unknown" : "owner_unreachable", `${dc} says: ${answer.failed}`);
  }
}

/** Keys of rows that may not be what they should be. */
function suspectsOf(mine: ReadonlyMap<string, Listed>, theirs: ReadonlyMap<string, Listed>): (readonly string[])[] {
  const out: (readonly string[])[] = [];
  for (const [key, row] of mine) {
    const other = theirs.get(key);
    if (!row.sound || other === undefined || other.digest !== row.digest) out.push(row.key);
  }
  for (const [key, row] of theirs) if (!mine.has(key)) out.push(row.key);
  return out;
}
