import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Service } from "../infra/service.js";
import type { Partition, ShardId, SiteName } from "../shards/ids.js";
import type { Head, ShardMap } from "../shards/map.js";
import type { ShardStore } from "../shards/store.js";
import type { LogOwnership } from "./ownership.js";
import type { EpochEnd } from "./record.js";
import type { Publisher } from "./publisher.js";
import { nextInTurn } from "./turns.js";

export interface ResumeOptions {
  readonly site: SiteName;
  readonly time: Time;
  readonly log: Logger;
  readonly map: ShardMap;
  readonly store: ShardStore;
  readonly publisher: Publisher;
  readonly ownership: Pick<LogOwnership, "open" | "restate">;
  readonly restateMs: number;
  readonly epochEnds: (shard: ShardId) => Promise<readonly EpochEnd[]>;
  /** This node has a lease and is the datacenter's replicator. */
  readonly active: () => boolean;
  /** Shards whose move this process drives itself. */
  readonly moving: (shard: ShardId) => boolean;
}

const tickMs = 100;
const attemptMs = 3_000;
/** Shared out evenly: a partition without a leader holds its places for as long as an attempt takes. */
const atOnce = 256;
const mostOfPartition = 32;

/**
 * Settles shards that the log gives to this datacenter but that it may not serve (rules d, g, i): a suspended or moving one
 * is resumed by an own `open` with the next epoch, after the outbox of the old one was published; an owned one that this run
 * of the datacenter has not confirmed is restated. Decided by appends alone, never by a read.
 */
export class Resume implements Service {
  readonly name = "resume";
  readonly #o: ResumeOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #busy = new Map<ShardId, Partition>();
  /** In which turn a shard was last begun. */
  readonly #began = new Map<ShardId, number>();
  #turn = 0;
  readonly #restatedAt = new Map<ShardId, number>();
  #wake: () => void = () => undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: ResumeOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "resume" });
  }

  async start(): Promise<void> {
    this.#o.map.onChange(() => this.#wake());
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  /** States these shards anew, before their time. */
  restate(shards: readonly ShardId[]): void {
    for (const shard of shards) this.#restatedAt.set(shard, -Infinity);
    this.#wake();
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      if (this.#o.active())
        for (const head of this.#next()) {
          this.#busy.set(head.shard, head.partition);
          this.#began.set(head.shard, ++this.#turn);
          void this.#settle(head)
            .catch((error: unknown) =>
              this.#log.warn("settling a shard failed", {
                shard: head.shard,
                epoch: head.epoch,
                error: asError(error),
              }),
            )
            .finally(() => {
              this.#busy.delete(head.shard);
              this.#wake();
            });
        }
      const ended = new AbortController();
      const stop = (): void => ended.abort();
      this.#stop.signal.addEventListener("abort", stop, { once: true });
      // A change wakes the loop, yet not more often than every few milliseconds.
      await this.#o.time.sleep(5, this.#stop.signal);
      this.#wake = stop;
      await this.#o.time.sleep(tickMs, ended.signal);
      this.#stop.signal.removeEventListener("abort", stop);
    }
  }

  #next(): Head[] {
    const owned = this.#o.map.ownedBy(this.#o.site);
    const share = Math.floor(atOnce / new Set(owned.map(({ partition }) => partition)).size);
    return nextInTurn(
      owned.filter((head) => !this.#busy.has(head.shard) && head.stopped === null && this.#due(head)),
      {
        busy: this.#busy,
        lane: ({ partition }) => partition,
        most: Math.max(1, Math.min(mostOfPartition, share)),
        began: this.#began,
      },
    );
  }

  #due(head: Head): boolean {
    if (head.state === "suspended") return true;
    if (head.state === "moving") return !this.#o.moving(head.shard);
    if (head.state !== "owned") return false;
    if (!head.confirmed) return true;
    const last = this.#restatedAt.get(head.shard);
    const now = this.#o.time.monotonic();
    if (last === undefined) {
      // Spread over the interval, so that shards don't restate all at once.
      this.#restatedAt.set(head.shard, now - (this.#o.restateMs * (head.shard % 64)) / 64);
      return false;
    }
    return now - last >= this.#o.restateMs;
  }

  async #settle(seen: Head): Promise<void> {
    // The database says how far the epoch went: no write can be added while the shard is suspended or moving.
    const [head] = await this.#o.store.heads([seen.shard]);
    if (head === undefined || head.epoch !== seen.epoch || head.state !== seen.state) {
      if (head !== undefined) this.#o.map.adopt(head);
      return;
    }
    const deadline = this.#o.time.monotonic() + attemptMs;
    if (head.state === "owned") return this.#restate(head, deadline);
    if (head.state === "moving") {
      // Another process may still drive the move: once suspended it can't be called off, and the append alone decides.
      const suspended = await this.#o.store.suspendMove(head.shard, head.epoch);
      if (suspended !== undefined) this.#o.map.adopt(suspended);
      return;
    }
    const began = this.#o.time.monotonic();
    if (!(await this.#o.publisher.flush(head, deadline))) return;
    if (!this.#o.active()) return;
    const result = await this.#o.ownership.open(
      {
        shard: head.shard,
        against: head.epoch,
        from: this.#o.site,
        to: this.#o.site,
        kind: "takeover",
        reason: "resumed after a fence, or a move that did not end",
        by: this.#o.site,
        sameTenure: head.closing === 0,
        closing: head.closing,
        phasesMs: { flush: Math.round(this.#o.time.monotonic() - began) },
        since: head.published,
      },
      deadline,
    );
    this.#log.info("resumes a shard", { shard: head.shard, epoch: head.epoch, result: result.kind });
    if (result.kind === "moved") await this.#o.time.sleep(tickMs, this.#stop.signal);
  }

  async #restate(head: Head, deadline: number): Promise<void> {
    const ends = await this.#o.epochEnds(head.shard);
    const held = await this.#o.ownership.restate(
      { shard: head.shard, epoch: head.epoch, owner: this.#o.site, epochEnds: ends },
      deadline,
    );
    if (held === true) {
      this.#restatedAt.set(head.shard, this.#o.time.monotonic());
      if (!head.confirmed) {
        const confirmed = await this.#o.store.confirm(head.shard, head.epoch);
        if (confirmed !== undefined) this.#o.map.adopt(confirmed);
      }
    } else if (held === false) await this.#o.time.sleep(tickMs, this.#stop.signal);
  }
}
