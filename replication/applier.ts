import { within, type Time, type Timer } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { partition as toPartition, type Partition } from "../shards/ids.js";
import { ByteBudget } from "./byte-budget.js";
import { PartitionFeed, readLimits } from "./partition-feed.js";
import type { BatchHeader } from "./record.js";
import {
  NeedsRecords,
  Overtaken,
  type Applied,
  type Incoming,
  type ReplicaStore,
  type Stretch,
} from "./replica-store.js";
import type { LogTransport, StoredMessage } from "./shard-log.js";

/** How long marks of own appends may wait for other work to go along with. */
const lazyMs = 200;
const safetyMs = 500;
/** Pause after a transaction while there is more: what comes meanwhile shares the next one. */
const gatherMs = 3;
/** Of what was pushed and waits for its turn, over all partitions. */
const pushedBytes = 8_000_000;
/** A round goes on without the partitions whose read takes longer. */
const slowReadMs = 20;

/**
 * Log -> the datacenter's tables: each partition from a replica in the own site, all partitions that have something new in
 * one transaction, each shard in order. Woken by the publishers' hints; a slow look around is the safety net.
 */
export class Applier {
  readonly #store: ReplicaStore;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #whole: (messages: readonly Incoming[]) => Promise<readonly Incoming[]>;
  readonly #onApplied: (applied: Applied, messages: readonly Incoming[], ms: number) => void;
  readonly #feeds: readonly PartitionFeed[];
  readonly #stop = new AbortController();
  #active = false;
  #wake: () => void = () => undefined;
  #woken = false;
  #lazy: Timer | undefined;
  #ownDue = false;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: {
    transport: LogTransport;
    store: ReplicaStore;
    partitions: number;
    time: Time;
    log: Logger;
    /** `ms`: how long the transaction took. */
    onApplied: (applied: Applied, messages: readonly Incoming[], ms: number) => void;
    /** Brings the payloads that messages refer to; it may give fewer messages than it was given. */
    whole?: (messages: readonly Incoming[]) => Promise<readonly Incoming[]>;
  }) {
    this.#whole = options.whole ?? ((messages) => Promise.resolve(messages));
    this.#store = options.store;
    this.#time = options.time;
    this.#log = options.log.with({ component: "applier" });
    this.#onApplied = options.onApplied;
    const budget = new ByteBudget(pushedBytes);
    this.#feeds = Array.from(
      { length: options.partitions },
      (_, p) =>
        new PartitionFeed({
          partition: toPartition(p),
          transport: options.transport,
          time: options.time,
          log: this.#log,
          budget,
          aborted: () => this.#stop.signal.aborted,
        }),
    );
  }

  /** Only the process that holds the replicator's lock applies; the progress check would refuse a second one anyway. */
  async setActive(active: boolean): Promise<void> {
    if (active && !this.#active) {
      for (const feed of this.#feeds) feed.begin();
      await this.reload();
    }
    this.#active = active;
    this.#notify();
  }

  async start(): Promise<void> {
    this.#loop = this.#run();
  }

  /** Reads the progress again from the database. */
  async reload(): Promise<void> {
    const progress = await this.#store.progress();
    for (const feed of this.#feeds) feed.reload(progress.get(feed.partition) ?? 0);
  }

  /** A publisher says that the log holds this message. */
  hint(partition: Partition, sequence: number): void {
    if (this.#feeds[partition]?.hint(sequence) === true) this.#notify();
  }

  /**
   * A publisher says that the log holds this message, and what it is: what comes in order needs no read. It is the log's, as
   * its append was stored there; what was lost on the way or comes too early is read.
   */
  push(partition: Partition, message: StoredMessage): void {
    if (this.#active && this.#feeds[partition]?.push(message) === true) this.#notify();
  }

  /** An own append: nothing of it needs to be read, and its mark can wait for more of its kind. */
  ownAppend(partition: Partition, sequence: number, header: BatchHeader): void {
    if (!this.#active || this.#feeds[partition]?.ownAppend(sequence, header) !== true) return;
    this.#lazy ??= this.#time.after(lazyMs, () => {
      this.#lazy = undefined;
      this.#ownDue = true;
      this.#notify();
    });
  }

  /** Partitions whose next message the log does not have any more. */
  get lost(): Partition[] {
    return this.#active ? this.#feeds.filter((feed) => feed.lost).map((feed) => feed.partition) : [];
  }

  /** Reads nothing more of the partition until `release`. */
  hold(partition: Partition): void {
    const feed = this.#feeds[partition];
    if (feed !== undefined) feed.held = true;
  }

  /** Goes on from where the database says. */
  async release(partition: Partition): Promise<void> {
    const feed = this.#feeds[partition];
    if (feed === undefined) return;
    try {
      await this.reload();
    } finally {
      // From a place that is not the database's the next transaction finds back by itself.
      feed.held = false;
      feed.lost = false;
      this.#notify();
    }
  }

  /** Every partition was seen to its end since this process began to apply. */
  get caughtUp(): boolean {
    return this.#active && this.#feeds.every((feed) => feed.seenEnd);
  }

  get active(): boolean {
    return this.#active;
  }

  /** Of each partition, from 0: the last message that is folded in; empty while another process applies. */
  get applied(): number[] {
    return this.#active ? this.#feeds.map((feed) => feed.cursor) : [];
  }

  /** Messages that the log is said to hold and that are not folded in. */
  get behind(): number {
    return this.#feeds.reduce((sum, feed) => sum + feed.behind, 0);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#active = false;
    this.#lazy?.cancel();
    this.#notify();
    await this.#loop;
  }

  #notify(): void {
    this.#woken = true;
    this.#wake();
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      if (!this.#woken) {
        await new Promise<void>((resolve) => {
          const safety = this.#time.after(safetyMs, resolve);
          this.#wake = () => (safety.cancel(), resolve());
        });
        this.#wake = () => undefined;
      }
      this.#woken = false;
      if (!this.#active) continue;
      try {
        await this.#round();
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (!(error instanceof Overtaken)) {
          this.#log.warn("applying failed", { error: asError(error) });
          await this.#time.sleep(100, this.#stop.signal);
        }
        await this.reload().catch(() => undefined);
        this.#woken = true;
      }
    }
  }

  /** Reads what is new in every partition, and applies what has come; one that can't be read holds up none of the others. */
  async #round(): Promise<void> {
    const ownDue = this.#ownDue;
    this.#ownDue = false;
    const reads = this.#feeds.flatMap((feed) => feed.reading ?? this.#startRead(feed, ownDue) ?? []);
    if (reads.length > 0) await within(this.#time, slowReadMs, Promise.all(reads), undefined);
    const stretches: Stretch[] = [];
    for (const feed of this.#feeds) {
      const messages = feed.fetched;
      feed.fetched = [];
      // A read that began before the progress was reloaded is of no use.
      if (messages[0]?.sequence === feed.cursor + 1)
        stretches.push({ partition: feed.partition, from: feed.cursor, messages });
    }
    if (stretches.length > 0) await this.#apply(stretches);
    const more = stretches.some((stretch) => stretch.messages.length >= readLimits.batch);
    const behind = this.#feeds.some((feed) => feed.reading === null && feed.pending);
    if (behind || more) {
      this.#woken = true;
      if (!more) await this.#time.sleep(gatherMs, this.#stop.signal);
    }
  }

  #startRead(feed: PartitionFeed, ownDue: boolean): Promise<void> | null {
    if (!feed.wants(ownDue)) return null;
    feed.reading = feed
      .next()
      .then((messages) => (messages.length === 0 ? messages : this.#whole(messages)))
      .then((messages) => {
        feed.fetched = messages;
      })
      .catch(async (error: unknown) => {
        if (this.#stop.signal.aborted) return;
        this.#log.warn("a partition can't be read", { partition: feed.partition, error: asError(error) });
        await this.#time.sleep(100, this.#stop.signal);
      })
      .finally(() => {
        feed.reading = null;
        this.#notify();
      });
    return feed.reading;
  }

  async #apply(stretches: readonly Stretch[]): Promise<void> {
    let applied: Applied;
    const began = this.#time.monotonic();
    try {
      applied = await this.#store.apply(stretches);
    } catch (error) {
      if (!(error instanceof NeedsRecords)) throw error;
      this.#log.warn("own records are read back from the log", {
        partition: error.partition,
        sequence: error.sequence,
      });
      this.#feeds[error.partition]?.forgetOwn();
      this.#woken = true;
      return;
    }
    for (const { partition, messages } of stretches) this.#feeds[partition]?.applied(messages);
    this.#onApplied(
      applied,
      stretches.flatMap((stretch) => stretch.messages),
      this.#time.monotonic() - began,
    );
  }
}
