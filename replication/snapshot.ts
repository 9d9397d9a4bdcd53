import { promisify } from "node:util";
import { inflateRaw } from "node:zlib";
import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Link } from "../infra/nats/messaging.js";
import type { Random } from "../infra/random.js";
import type { Service } from "../infra/service.js";
import type { Partition, ShardId, SiteName } from "../shards/ids.js";
import type { Applier } from "./applier.js";
import { copyTables } from "./copy-tables.js";
import {
  snapshotSubject,
  type Chunk,
  type ChunkRequest,
  type Cut,
  type Folded,
  type FoldRequest,
} from "./copy-source.js";
import type { Loading } from "./loading.js";
import { Overtaken } from "./replica-store.js";
import { ChunkDiffers, type Jumped, type SnapshotStore } from "./snapshot-store.js";
import { nextInTurn } from "./turns.js";

export interface SnapshotsOptions {
  readonly group: string;
  readonly link: Pick<Link, "collect">;
  readonly store: SnapshotStore;
  readonly applier: Pick<Applier, "lost" | "hold" | "release">;
  readonly partitions: number;
  /** What the partition's stream holds. */
  readonly state: (
    partition: number,
    timeoutMs: number,
  ) => Promise<
    | {
        readonly firstSequence: number;
        readonly lastSequence: number;
        readonly messages: number;
        readonly bytes: number;
      }
    | undefined
  >;
  /** Whether the map knows of a shard that has stopped here. */
  readonly hasStopped: () => boolean;
  /** Whether this program can read the message that the log has at this place; false also where it has none any more. */
  readonly canRead: (partition: number, sequence: number) => Promise<boolean>;
  /** Live datacenters that may have a copy, the best first; of a shard or, for a partition's fold, of any (null). */
  readonly sources: (shard: ShardId | null) => readonly SiteName[];
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
  /** This process is its datacenter's replicator. */
  readonly active: () => boolean;
  /** Heads have changed in the database, and shards wait to be loaded: before the applier goes on. */
  readonly onJumped: (jumped: readonly Jumped[]) => Promise<void>;
  readonly onChunk: (bytes: number, rows: number) => void;
  readonly onDiffers: () => void;
}

const tickMs = 250;
const pauseMs = 500;
const timeoutMs = 5_000;
/** How long a partition waits for the fold of a datacenter where the shard has not stopped. */
const recopyMs = 10_000;
const shardsAtOnce = 4;
/** A chunk holds far less; what claims more is damaged. */
const maxChunkBytes = 64_000_000;
/** A new datacenter replays what a partition holds up to this, and loads a snapshot beyond. */
const replayMessages = 5_000;
const replayBytes = 4_000_000;
const inflate = promisify(inflateRaw);

/**
 * Loads what the log can't bring any more (section 6): a datacenter whose mark is below the log's start, and a new one. The fold
 * of the partition goes on from another datacenter's place in the log; its shards load chunk by chunk from any current copy while
 * the log goes on, and count once the own mark has reached the highest cut. Each step is stored, so it goes on after any break.
 */
export class Snapshots implements Service {
  readonly name = "snapshots";
  readonly #o: SnapshotsOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #busy = new Map<ShardId, number>();
  /** In which turn a shard that still loads was last begun. */
  readonly #began = new Map<ShardId, number>();
  #turn = 0;
  readonly #jumping = new Set<Partition>();
  readonly #judged = new Set<Partition>();
  /** The chunk behind the one that is being stored, of each shard that loads. */
  readonly #ahead = new Map<ShardId, { readonly key: string; readonly chunk: Promise<Chunk> }>();
  /** What an earlier program could not read was looked at by this one. */
  #reread = false;
  #loads: Promise<void>[] = [];
  #wake: () => void = () => undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: SnapshotsOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "snapshots" });
  }

  async start(): Promise<void> {
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    await Promise.all(this.#loads);
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        if (this.#o.active()) {
          await this.#judgeNew();
          for (const partition of this.#o.applier.lost) this.#begin(partition);
          if (this.#o.hasStopped()) await this.#recopy();
          await this.#loadAll();
        }
      } catch (error) {
        this.#log.warn("looking after snapshots failed", { error: asError(error) });
      }
      // The end of a load begins the next at once.
      const woken = new AbortController();
      this.#wake = () => woken.abort();
      this.#stop.signal.addEventListener("abort", this.#wake, { once: true });
      await this.#o.time.sleep(tickMs, woken.signal);
      this.#stop.signal.removeEventListener("abort", this.#wake);
    }
  }

  /** A new datacenter does not replay a long log. */
  async #judgeNew(): Promise<void> {
    for (let p = 0; p < this.#o.partitions; p++) {
      const partition = p as Partition;
      if (this.#judged.has(partition)) continue;
      if ((await this.#o.store.progress(partition)) === 0) {
        const state = await this.#o.state(partition, timeoutMs);
        if (state === undefined) continue;
        if (state.messages > replayMessages || state.bytes > replayBytes) {
          this.#o.applier.hold(partition);
          this.#begin(partition);
        }
      }
      this.#judged.add(partition);
    }
  }

  /**
   * A shard that has stopped goes on from another datacenter's copy: when that is asked for, and by itself where this program can read
   * what an earlier one could not.
   */
  async #recopy(): Promise<void> {
    const stopped = await this.#o.store.stopped();
    for (const { shard, partition, unread } of this.#reread ? [] : stopped)
      if (unread !== null && (await this.#o.canRead(partition, unread))) await this.#o.store.recopy(shard, true);
    this.#reread = true;
    for (const { shard, partition, recopy } of stopped) {
      if (!recopy || this.#jumping.has(partition)) continue;
      this.#log.warn("a shard that has stopped is copied again", { shard, partition });
      this.#o.applier.hold(partition);
      this.#begin(partition, shard);
    }
  }

  /** @param stopped the shard for whose sake the partition's fold is taken over from the place where it stands; it may not be for ever */
  #begin(partition: Partition, stopped?: ShardId): void {
    if (this.#jumping.has(partition)) return;
    this.#jumping.add(partition);
    const deadline = stopped === undefined ? Infinity : this.#o.time.monotonic() + recopyMs;
    void (async () => {
      while (!this.#stop.signal.aborted && this.#o.active()) {
        try {
          await this.#jump(partition, stopped !== undefined);
          break;
        } catch (error) {
          this.#log.warn("a partition waits for another datacenter's fold", { partition, error: asError(error) });
          if (stopped !== undefined && this.#o.time.monotonic() >= deadline) {
            // The other shards of the partition must go on.
            await this.#o.store.recopy(stopped, false).catch(() => undefined);
            break;
          }
          await this.#o.time.sleep(pauseMs, this.#stop.signal);
        }
      }
      this.#jumping.delete(partition);
      await this.#o.applier.release(partition).catch(() => undefined);
    })();
  }

  async #jump(partition: Partition, again: boolean): Promise<void> {
    const state = await this.#o.state(partition, timeoutMs);
    if (state === undefined) throw new Error("the partition's stream can't be found");
    let failure: unknown = new Error("no other datacenter is there");
    for (const dc of this.#o.sources(null)) {
      try {
        const from = await this.#o.store.progress(partition);
        // A replica of the log may have been behind; nothing is missing then.
        if (!again && from > 0 && from + 1 >= state.firstSequence) return;
        const folded = await this.#ask<Folded>(dc, { kind: "fold", partition });
        if (folded.sequence < from + (again ? 0 : 1) || folded.sequence + 1 < state.firstSequence)
          throw new Error(`${dc} has folded in ${folded.sequence}, the log begins at ${state.firstSequence}`);
        const jumped = await this.#o.store.jump(partition, from, folded, this.#o.random.token(8));
        this.#log.warn("goes on from another datacenter's place in the log", {
          partition,
          dc,
          from,
          to: folded.sequence,
          loads: jumped.filter((each) => each.loads).map((each) => each.head.shard),
          divergent: jumped.reduce((sum, each) => sum + each.divergent, 0),
        });
        await this.#o.onJumped(jumped);
        return;
      } catch (error) {
        failure = error instanceof Overtaken ? new Error("the partition's progress changed meanwhile") : error;
      }
    }
    throw failure;
  }

  async #loadAll(): Promise<void> {
    if (this.#busy.size >= shardsAtOnce) return;
    const waiting = await this.#o.store.loading();
    // One that nobody gives a copy of now must not keep its place from those that load.
    const order = { busy: this.#busy, lane: () => 0, most: shardsAtOnce, began: this.#began };
    for (const loading of nextInTurn(waiting, order)) {
      this.#busy.set(loading.shard, 0);
      this.#began.set(loading.shard, ++this.#turn);
      const load = this.#load(loading)
        .catch((error: unknown) =>
          this.#log.warn("loading a shard failed", { shard: loading.shard, error: asError(error) }),
        )
        .finally(() => {
          this.#busy.delete(loading.shard);
          this.#ahead.delete(loading.shard);
          this.#loads = this.#loads.filter((each) => each !== load);
          this.#wake();
        });
      this.#loads.push(load);
    }
  }

  async #load(first: Loading): Promise<void> {
    const began = this.#o.time.monotonic();
    let bytes = 0;
    let chunks = 0;
    for (let loading: Loading | undefined = first; !this.#stop.signal.aborted && this.#o.active();) {
      bytes += await this.#loadChunk(loading);
      chunks++;
      const { shard }: Loading = loading;
      loading = (await this.#o.store.loading()).find((each) => each.shard === shard);
      if (loading === undefined) {
        this.#began.delete(shard);
        this.#log.info("a shard is loaded", { shard, chunks, bytes, ms: Math.round(this.#o.time.monotonic() - began) });
        return;
      }
    }
  }

  /** One chunk from whoever has it. @returns bytes of its rows */
  async #loadChunk(loading: Loading): Promise<number> {
    const table = copyTables.find((each) => each.name === loading.table);
    if (table === undefined) throw new Error(`there is no table ${loading.table} to copy`);
    let failure: unknown = new Error("no other datacenter is there");
    for (const dc of this.#o.sources(loading.shard)) {
      // Where rows that should be equal are not, the whole range is fetched.
      for (const since of loading.since === null ? [null] : [loading.since, null]) {
        try {
          return await this.#loadFrom(dc, loading, table, since);
        } catch (error) {
          failure = error;
          if (!(error instanceof ChunkDiffers)) break;
          if (since !== null) continue;
          this.#o.onDiffers();
          this.#log.error("loaded rows differ from those of their source", {
            shard: loading.shard,
            table: table.name,
            dc,
          });
        }
      }
      if (this.#stop.signal.aborted) break;
    }
    await this.#o.time.sleep(pauseMs, this.#stop.signal);
    throw failure;
  }

  async #loadFrom(
    dc: SiteName,
    loading: Loading,
    table: (typeof copyTables)[number],
    since: Cut | null,
  ): Promise<number> {
    const { shard, after, attempt } = loading;
    const request: ChunkRequest = { kind: "chunk", shard, table: table.name, after, since };
    const ahead = this.#ahead.get(shard);
    this.#ahead.delete(shard);
    const chunk = await (ahead?.key === keyOf(dc, attempt, request) ? ahead.chunk : this.#ask<Chunk>(dc, request));
    // The next one comes while this one is stored.
    if (chunk.last !== null) {
      const next = { ...request, after: chunk.last, since: loading.since };
      const asked = this.#ask<Chunk>(dc, next);
      asked.catch(() => undefined);
      this.#ahead.set(shard, { key: keyOf(dc, attempt, next), chunk: asked });
    }
    const rows = await inflate(chunk.rows, { maxOutputLength: maxChunkBytes });
    if (!(await this.#o.store.store(loading, table, since, chunk, rows)))
      throw new Error(`the copy of ${dc} is not in the line of epochs that stands here, or this load was begun anew`);
    this.#o.onChunk(rows.length, chunk.count);
    return rows.length;
  }

  async #ask<T>(dc: SiteName, request: ChunkRequest | FoldRequest): Promise<T> {
    const parts = await this.#o.link.collect(
      snapshotSubject(this.#o.group, dc),
      pack(request),
      timeoutMs,
      (message) => message.data.length === 0,
    );
    const answer = unpack(Buffer.concat(parts.map((part) => part.data))) as { ok?: T; refused?: string };
    if (answer.ok === undefined) throw new Error(`${dc} gives no copy: ${answer.refused ?? "no reason"}`);
    return answer.ok;
  }
}

const keyOf = (dc: SiteName, attempt: string, request: ChunkRequest): string => JSON.stringify([dc, attempt, request]);
