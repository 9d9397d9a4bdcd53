import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { NoResponders, type Messenger } from "../infra/nats/messaging.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import { correctSum, digestShards, readSum, type ShardDigest, type Sum } from "../replication/digest.js";
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
import { areAligned, judgeBy, judgeCopies, wholeCopies, type Copies } from "./sound-copy.js";

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
  /** What should your rows add up to, and where do you stand? */
  | { readonly kind: "sum"; readonly shard: number }
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
  /** Has the owner put the shard's digest into the log. @returns its position, if it is there */
  readonly tell: (shard: number) => Promise<number | undefined>;
}

export interface RepairRequest {
  readonly shard?: number;
  readonly clusterId?: string;
  /** Whose copy is right; left out: found out. */
  readonly from?: SiteName;
}

const askMs = 5_000;
/** A large shard takes minutes; it goes on when nobody waits for it any more. */
const mendMs = 200_000;
const recopyMs = 240_000;
/** How long copies may take to stand at the same place. */
const alignMs = 5_000;
/** Shards that are written all the time never do: they are compared where the log has their digest. */
const tellMs = 1_500;
const pauseMs = 200;
const samplePauseMs = 20;
const pageRows = 2_000;
/** Of whole rows; a row may have nearly a megabyte, so that less is asked for when an answer does not fit. */
const batchRows = 100;

/**
 * Makes damaged copies sound again, while they serve: row by row, from a copy whose rows give the digest that the log says, be it
 * not the owner's. Of each row the newer (epoch, position) stays. One that fails on the way leaves a copy that still shows that it is
 * damaged, and can be repeated.
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

  /**
   * @returns how many rows were copied, in all datacenters
   * @throws Problem not_found, owner_unreachable (no sound copy answers), invalid_request (`from` must be given, as copies disagree),
   *   outcome_unknown (not all of it is mended)
   */
  async repair(what: RepairRequest): Promise<{ readonly copied: number }> {
    const shard = what.shard ?? shardOf(what.clusterId ?? "", this.#o.shards);
    if (shard >= this.#o.shards) throw new Problem("not_found", `There is no shard ${shard}.`);
    const scope: Scope = { shard, clusterId: what.clusterId ?? null };
    let copied = await this.#recopy(shard as ShardId);
    const { damaged, source } = await this.#judge(shard, what.from);
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

  async #judge(
    shard: number,
    from: SiteName | undefined,
  ): Promise<{ readonly damaged: readonly SiteName[]; readonly source: SiteName }> {
    const copies = await this.#comparable(shard);
    const judged = from === undefined ? judgeCopies(this.#o.owner(shard), copies) : judgeBy(from, copies);
    if (!("refused" in judged)) return judged;
    if (judged.refused === "none is sound")
      throw new Problem(
        "owner_unreachable",
        from === undefined
          ? `No copy of shard ${shard} that answers is sound.`
          : `The copy of shard ${shard} in ${from} does not answer or is not sound.`,
      );
    const message = `The copies of shard ${shard} disagree: name the datacenter whose copy is right.`;
    throw new Problem("invalid_request", message, { errors: [{ path: "/from", message: "must be given" }] });
  }

  /** Whole copies at the same place; of a shard that is written all the time, once they were compared where the log has its digest. */
  async #comparable(shard: number): Promise<Copies> {
    const began = this.#o.time.monotonic();
    let deadline = Infinity;
    for (let told: number | undefined; ;) {
      const copies = wholeCopies(await this.#o.digests(shard));
      const now = this.#o.time.monotonic();
      if (areAligned(copies) || isCompared(copies, told) || now >= deadline) return copies;
      // The first look at a large shard may take longer.
      deadline = Math.min(deadline, now + alignMs);
      if (told === undefined && now - began > tellMs) told = (await this.#o.tell(shard)) ?? 0;
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
      case "sum":
        return readSum(this.#o.database, question.shard);
      case "mend":
        return this.#mend(question.scope, question.from);
    }
  }

  /** @throws when not all of it can be mended now */
  async #mend(scope: Scope, from: SiteName): Promise<number> {
    let mended = 0;
    let left = 0;
    for (const table of mendTables)
      for await (const suspects of this.#suspects(table, scope, from))
        for (let at = 0; at < suspects.length; at += batchRows) {
          const batch = await this.#mendBatch(table, scope.shard, from, suspects.slice(at, at + batchRows));
          mended += batch.mended;
          left += batch.left;
        }
    if (left > 0) throw new Error(`${mended} rows were mended, ${left} can't be before the copies are further: repeat`);
    await this.#settle(scope, from);
    return mended;
  }

  /** Keys of rows that may not be what they should be, page by page of both copies. */
  async *#suspects(table: MendTable, scope: Scope, from: SiteName): AsyncGenerator<(readonly string[])[]> {
    let after: readonly string[] | null = null;
    do {
      const page: Listed[] = await this.#ask(from, { kind: "list", table, scope, after }, askMs);
      const theirs = new Map(page.map((row) => [JSON.stringify(row.key), row]));
      const through: readonly string[] | null = page.length < pageRows ? null : (page.at(-1)?.key ?? null);
      let mine: Listed[];
      for (let at = after; ; at = mine.at(-1)?.key ?? at) {
        mine = await listRows(this.#o.database, table, scope, at, pageRows, through);
        yield mine
          .filter((row) => {
            const key = JSON.stringify(row.key);
            const other = theirs.get(key);
            theirs.delete(key);
            return !row.sound || other?.digest !== row.digest;
          })
          .map((row) => row.key);
        if (mine.length < pageRows) break;
      }
      yield [...theirs.values()].map((row) => row.key);
      after = through;
    } while (after !== null);
  }

  async #mendBatch(
    table: MendTable,
    shard: number,
    from: SiteName,
    suspects: readonly (readonly string[])[],
  ): Promise<{ readonly mended: number; readonly left: number }> {
    let deadline = this.#o.time.monotonic() + alignMs;
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
      if (result.wait.length < keys.length) deadline = this.#o.time.monotonic() + alignMs;
      if (result.wait.length > 0) await this.#o.time.sleep(pauseMs);
    }
    return { mended, left: left.length };
  }

  /**
   * What the rows should add up to is made right, where a write upon damaged rows has made it wrong: by the source's sum at the same
   * place, and only if the rows then do add up to it.
   */
  async #settle({ shard, clusterId }: Scope, from: SiteName): Promise<void> {
    const sums = await this.#sameplace(shard, from);
    const [here] = await digestShards(this.#o.database, [shard]);
    if (here === undefined || (sums !== null && here.epoch !== sums.mine.epoch))
      throw new Error("its owner changed meanwhile: repeat");
    const rowsDiffer = xor(here.digest, here.expected);
    // No place of a busy shard was seen in both copies, but each of its rows was compared.
    const sumsDiffer = sums === null ? rowsDiffer : xor(sums.mine.expected, sums.theirs.expected);
    const whole = clusterId === null;
    if (rowsDiffer !== sumsDiffer) {
      if (whole) throw new Error(`its rows are not those of ${from} yet: repeat`);
      return;
    }
    if (sumsDiffer === 0 || (sums === null && !whole)) return;
    if (!(await correctSum(this.#o.database, shard, here.epoch, here.expected, here.digest)))
      throw new Error("its owner changed meanwhile: repeat");
  }

  /** What the rows here and there should add up to, at a place at which both have stood; null: none was seen. */
  async #sameplace(shard: number, from: SiteName): Promise<{ readonly mine: Sum; readonly theirs: Sum } | null> {
    const deadline = this.#o.time.monotonic() + alignMs;
    const mine = new Map<string, Sum>();
    const theirs = new Map<string, Sum>();
    for (;;) {
      const [there, here] = await Promise.all([
        this.#ask<Sum | undefined>(from, { kind: "sum", shard }, askMs),
        readSum(this.#o.database, shard),
      ]);
      for (const [seen, sum] of [
        [mine, here],
        [theirs, there],
      ] as const)
        if (sum !== undefined) seen.set(placeOf(sum), sum);
      for (const sum of [here, there]) {
        const place = sum === undefined ? "" : placeOf(sum);
        const pair = { mine: mine.get(place), theirs: theirs.get(place) };
        if (pair.mine !== undefined && pair.theirs !== undefined) return { mine: pair.mine, theirs: pair.theirs };
      }
      if (this.#o.time.monotonic() >= deadline) return null;
      await this.#o.time.sleep(samplePauseMs);
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

const placeOf = (sum: Sum): string => `${sum.epoch}:${sum.position}`;
const xor = (a: number, b: number): number => Number(BigInt(a) ^ BigInt(b));

/** Every copy has met the digest that the log has at `told`. */
const isCompared = (copies: Copies, told: number | undefined): boolean =>
  told !== undefined &&
  told > 0 &&
  [...copies.values()].every((copy) => copy.comparedEpoch === copy.epoch && copy.comparedPosition >= told);
