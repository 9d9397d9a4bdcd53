import { decodeBatch, decodeRecord, lastOf } from "../../replication/record.js";
import type { FoldStep } from "../../replication/fold.js";
import type { FullHead } from "../../replication/heads.js";
import type { Incoming } from "../../replication/replica-store.js";
import { partitionOf } from "../../shards/ids.js";
import type { MemoryDatabase } from "./database.js";
import type { Scheduler } from "./scheduler.js";

/** A promise of DESIGN.md section 9 that was broken. */
export class Violation extends Error {
  constructor(
    readonly invariant: number,
    what: string,
  ) {
    super(`invariant ${invariant}: ${what}`);
    this.name = "Violation";
  }
}

interface Place {
  readonly epoch: number;
  readonly last: number;
  readonly owner: string;
}

interface Row {
  readonly version: number;
  readonly name: string;
  readonly epoch: number;
  readonly position: number;
}

/** A shard as the log tells it: the one truth that copies and answers are held against. */
interface Line {
  now: Place;
  /** Owner by epoch. */
  readonly owners: Map<number, string>;
  /** Mark by "epoch/position". */
  readonly records: Map<string, string>;
  readonly rows: Map<string, Row>;
  /** The rows as each epoch found them. */
  readonly found: Map<number, ReadonlyMap<string, Row>>;
  /** Idempotency keys that took effect, with the place where. */
  readonly keys: Map<string, string>;
}

interface Acknowledged {
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
  readonly id: string;
  readonly mark: string;
  readonly dc: string;
  readonly started: number;
  readonly at: number;
}

/** What may travel: completed operations, and the least needed to restart a job (invariant 9). */
const replicated = new Set([
  "cluster.put",
  "cluster.delete",
  "key",
  "job.start",
  "job.restart",
  "job.checkpoint",
  "job.change",
  "job.end",
]);

/** Watches every step of a run. */
export class Checker {
  readonly #s: Scheduler;
  readonly #lines = new Map<number, Line>();
  /** Per partition the place of the message's shard after each sequence. */
  readonly #places: Place[][];
  readonly #answers = new Map<number, Map<number, { readonly at: number; readonly dc: string }>>();
  readonly #acknowledged: Acknowledged[] = [];
  /** When a datacenter's database went back, and to when. */
  readonly #lost: { readonly dc: string; readonly at: number; readonly to: number }[] = [];
  readonly counts = { opens: 0, records: 0, answers: 0, divergent: 0 };

  constructor(
    s: Scheduler,
    private readonly partitions: number,
  ) {
    this.#s = s;
    this.#places = Array.from({ length: partitions }, () => []);
  }

  /** Before a message is stored in the log (invariants 1, 2, 4). */
  committing(partition: number, shard: number, sequence: number, data: Uint8Array): void {
    const { header, records } = decodeBatch(data);
    let line = this.#lines.get(shard);
    if (line === undefined) {
      line = {
        now: { epoch: 0, last: 0, owner: "" },
        owners: new Map(),
        records: new Map(),
        rows: new Map(),
        found: new Map(),
        keys: new Map(),
      };
      this.#lines.set(shard, line);
    }
    const { now } = line;
    const what = `${header.kind} of ${header.owner}, epoch ${header.epoch}, from ${header.first}, is stored for shard ${shard} behind epoch ${now.epoch} of ${now.owner} at ${now.last}`;
    if (header.kind === "open") {
      if (header.epoch !== now.epoch + 1) throw new Violation(1, what);
      if (header.first !== now.last + 1) throw new Violation(2, what);
      line.owners.set(header.epoch, header.owner);
      line.found.set(header.epoch, new Map(line.rows));
      this.counts.opens++;
    } else {
      if (header.epoch !== now.epoch || header.owner !== now.owner) throw new Violation(1, what);
      if (header.kind === "records" && header.first !== now.last + 1) throw new Violation(4, what);
      if (header.kind === "statement" && header.first !== now.last + 1) throw new Violation(4, what);
    }
    records.forEach((bytes, index) => {
      const { cluster, key, type } = decodeRecord(bytes);
      if (!replicated.has(type)) throw new Violation(9, `a record of type ${type} is on its way into the log`);
      const position = header.first + index;
      if (key !== undefined) {
        const before = line.keys.get(key.key);
        if (before !== undefined)
          throw new Violation(
            5,
            `the write with key ${key.key} takes effect at ${header.epoch}/${position}, and did at ${before}`,
          );
        line.keys.set(key.key, `${header.epoch}/${position}`);
      }
      if (cluster === undefined) return;
      const before = line.rows.get(cluster.id);
      if (cluster.version !== (before?.version ?? 0) + 1)
        throw new Violation(
          3,
          `${cluster.name} makes version ${cluster.version} of ${cluster.id}, whose version in the log is ${before?.version ?? 0}: an earlier write is lost`,
        );
      line.records.set(`${header.epoch}/${position}`, cluster.name);
      line.rows.set(cluster.id, { version: cluster.version, name: cluster.name, epoch: header.epoch, position });
      this.counts.records++;
    });
    line.now = { epoch: header.epoch, last: lastOf(header), owner: header.owner };
    const places = this.#places[partition];
    if (places !== undefined) places[sequence] = line.now;
  }

  /** A message was folded into a copy (invariant 4). */
  applied(site: string, message: Incoming, before: FullHead, step: FoldStep): void {
    const what = `${site}, shard ${message.shard}, message ${message.sequence}`;
    if (step.kind === "stop") throw new Violation(4, `${what}: the shard stopped: ${step.why}`);
    const head = step.kind === "none" ? before : step.head;
    const place = this.#places[partitionOf(message.shard, this.partitions)]?.[message.sequence];
    if (place === undefined) throw new Violation(4, `${what}: the log does not hold it`);
    // A copy may be ahead where messages are folded in again after its database went back.
    const same =
      head.epoch === place.epoch && (head.owner === site ? head.position >= place.last : head.position === place.last);
    if (!same)
      throw new Violation(
        4,
        `${what}: the copy is at epoch ${head.epoch}, position ${head.position}, the log there at epoch ${place.epoch}, position ${place.last}`,
      );
    if (step.kind !== "adopt" || step.divergentAbove === null) return;
    this.counts.divergent++;
    const open = message.batch?.open;
    if (open?.kind === "switchover" && open.from === site && !this.#lost.some((lost) => lost.dc === site))
      throw new Violation(
        3,
        `${what}: a planned move leaves ${before.position - step.divergentAbove} committed operations behind`,
      );
  }

  /** An answer to a client (invariants 1, 2, 7). `position` is null for a read. */
  answer(o: {
    readonly dc: string;
    readonly node: string;
    readonly shard: number;
    readonly epoch: number;
    readonly started: number;
    readonly kind: "read" | "local write" | "replicated write";
    /** Where the write took effect; in an earlier epoch where the first answer is given again. */
    readonly written?: {
      readonly epoch: number;
      readonly position: number;
      readonly id: string;
      readonly mark: string;
    };
    readonly seen?: { readonly id: string; readonly epoch: number; readonly position: number; readonly name: string };
  }): void {
    this.counts.answers++;
    const line = this.#lines.get(o.shard);
    const what = `${o.node} answers a ${o.kind} of shard ${o.shard}, epoch ${o.epoch}, that started at ${o.started.toFixed(1)}`;
    if (line?.owners.get(o.epoch) !== o.dc)
      throw new Violation(1, `${what}, an epoch of ${line?.owners.get(o.epoch) ?? "nobody"}`);
    let answers = this.#answers.get(o.shard);
    if (answers === undefined)
      this.#answers.set(o.shard, (answers = new Map<number, { readonly at: number; readonly dc: string }>()));
    for (const [epoch, first] of answers)
      if (epoch > o.epoch && first.dc !== o.dc && first.at < o.started)
        throw new Violation(7, `${what}, though ${first.dc} had answered in epoch ${epoch} at ${first.at.toFixed(1)}`);
    if (!answers.has(o.epoch)) answers.set(o.epoch, { at: this.#s.now, dc: o.dc });
    if (o.seen !== undefined) this.#notOlder(line, { ...o, seen: o.seen }, what);
    if (o.written === undefined) return;
    const { position, mark, id, epoch } = o.written;
    if (o.kind === "replicated write" && line.records.get(`${epoch}/${position}`) !== mark)
      throw new Violation(2, `${what}, mark ${mark}, position ${position}, which the log does not hold there`);
    this.#acknowledged.push({
      shard: o.shard,
      epoch,
      position,
      id,
      mark,
      dc: o.dc,
      started: o.started,
      at: this.#s.now,
    });
  }

  /** An owner read shows all that the log held when the epoch began, and all that was acknowledged in it before the read. */
  #notOlder(
    line: Line,
    o: {
      readonly dc: string;
      readonly shard: number;
      readonly epoch: number;
      readonly started: number;
      readonly seen: { readonly id: string; readonly epoch: number; readonly position: number; readonly name: string };
    },
    what: string,
  ): void {
    const { id, epoch, position, name } = o.seen;
    const found = line.found.get(o.epoch)?.get(id);
    if (found !== undefined && (epoch < found.epoch || (epoch === found.epoch && position < found.position)))
      throw new Violation(
        3,
        `${what}, and shows ${id} as '${name}' of ${epoch}/${position}, though the log held '${found.name}' of ${found.epoch}/${found.position} when the epoch began`,
      );
    for (const ack of this.#acknowledged)
      if (
        ack.id === id &&
        ack.shard === o.shard &&
        ack.epoch === o.epoch &&
        ack.at < o.started &&
        (epoch < ack.epoch || (epoch === ack.epoch && position < ack.position)) &&
        !this.#lost.some((lost) => lost.dc === o.dc && lost.to < ack.at)
      )
        throw new Violation(
          3,
          `${what}, and shows ${id} as '${name}' of ${epoch}/${position}, though '${ack.mark}' of ${ack.epoch}/${ack.position} was acknowledged at ${ack.at.toFixed(1)}`,
        );
  }

  wentBack(dc: string, to: number): void {
    this.#lost.push({ dc, at: this.#s.now, to });
  }

  owner(shard: number): string {
    return this.#lines.get(shard)?.now.owner ?? "";
  }

  /** What keeps the copies from being equal and the shards from being owned (invariant 8); undefined: nothing. */
  unequal(databases: ReadonlyMap<string, MemoryDatabase>): string | undefined {
    for (const [shard, { now, rows }] of this.#lines)
      for (const [site, { tables }] of databases) {
        const head = tables.heads.get(shard);
        const state = site === now.owner ? "owned" : "replica";
        if (head?.epoch !== now.epoch || head.owner !== now.owner || head.position !== now.last)
          return `shard ${shard}: ${site} is at epoch ${head?.epoch}, position ${head?.position}, the log at epoch ${now.epoch}, position ${now.last}`;
        if (head.state !== state || (state === "owned" && !head.confirmed))
          return `shard ${shard}: ${site} has it as ${head.state}, not ${state}`;
        if (tables.restores.size > 0) return `${site} waits for copies of ${[...tables.restores.keys()].join(", ")}`;
        for (const [id, row] of rows) {
          const copy = tables.rows.get(id);
          if (
            copy?.name !== row.name ||
            copy.version !== row.version ||
            copy.changedEpoch !== row.epoch ||
            copy.changedPosition !== row.position
          )
            return `shard ${shard}: ${site} has ${id} as ${copy?.name} (epoch ${copy?.changedEpoch}, position ${copy?.changedPosition}), the log as ${row.name} (epoch ${row.epoch}, position ${row.position})`;
        }
        for (const row of tables.rows.values())
          if (row.shard === shard && !rows.has(row.id))
            return `shard ${shard}: ${site} has ${row.id}, which the log does not know`;
      }
    return undefined;
  }

  /** A key that took effect in the log can't be replayed from what a datacenter has set aside (invariant 5). */
  #superseded(databases: ReadonlyMap<string, MemoryDatabase>): void {
    for (const [site, { tables }] of databases)
      for (const [at, { key, open }] of tables.divergent) {
        const shard = Number(at.split("/")[0]);
        if (key !== null && open && this.#lines.get(shard)?.keys.has(key) === true)
          throw new Violation(5, `${site} lists ${at} with key ${key} as open, which took effect in the log`);
      }
  }

  /** At the end: every acknowledged write is in the log, or set aside where it was taken (invariants 2, 3). */
  finish(databases: ReadonlyMap<string, MemoryDatabase>): void {
    this.#superseded(databases);
    for (const ack of this.#acknowledged) {
      if (this.#lines.get(ack.shard)?.records.get(`${ack.epoch}/${ack.position}`) === ack.mark) continue;
      const aside = databases.get(ack.dc)?.tables.divergent.get(`${ack.shard}/${ack.epoch}/${ack.position}`);
      if (aside?.mark === ack.mark) continue;
      if (this.#lost.some((lost) => lost.dc === ack.dc && ack.at > lost.to && ack.started < lost.at)) continue;
      throw new Violation(
        3,
        `write ${ack.mark} that ${ack.dc} acknowledged at ${ack.at.toFixed(1)} (shard ${ack.shard}, epoch ${ack.epoch}, position ${ack.position}) is neither in the log nor set aside there`,
      );
    }
  }
}
