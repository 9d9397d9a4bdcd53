import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Service } from "../infra/service.js";
import type { Epoch, ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import type { CopyAnswer, CopyRequest, RestoreStore } from "./restore-store.js";

/** Asks a datacenter for its copy of some rows. */
export const copySubject = (group: string, dc: SiteName): string => `hothot.${group}.dc.${dc}.copy`;

export interface RestorerOptions {
  readonly group: string;
  readonly site: SiteName;
  readonly store: RestoreStore;
  readonly messenger: Messenger;
  readonly map: ShardMap;
  readonly time: Time;
  readonly log: Logger;
  readonly datacenters: () => readonly SiteName[];
  /** Nothing of the shard waits any more, or it has become known that nothing does. */
  readonly cleared: (shard: ShardId) => void;
  /** This process is the datacenter's replicator. */
  readonly active: () => boolean;
}

const atOnce = 64;
const tickMs = 200;
const timeoutMs = 2_000;

/**
 * Brings back the rows that a divergent tail had touched (section 6): from the shard's owner, cut at one position. The copy
 * counts once the own mark has reached the cut in the same line of epochs: what an owner never published must not live on in a copy.
 */
export class Restorer implements Service {
  readonly name = "restorer";
  readonly #o: RestorerOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #waiting = new Map<ShardId, Set<string>>();
  /** Shards whose copy as a whole does not count yet (snapshot.ts loads it). */
  #loading = new Set<ShardId>();
  /** Shards of whose newest epoch it isn't known yet what waits: the refresh that will have told. */
  readonly #doubtful = new Map<ShardId, number>();
  /** What the next change of these shards is known not to bring. */
  readonly #sure = new Map<ShardId, { readonly before: Epoch; readonly after: Epoch }>();
  #renewing = false;
  #asked = 0;
  /** The newest refresh that was answered; 0: none was. */
  #taken = 0;
  #unsubscribe: (() => void) | undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: RestorerOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "restorer" });
    // Whoever hears of a newer epoch first: rows may have been undone in the transaction that adopted it.
    options.map.onChange((head, before) => {
      const sure = this.#sure.get(head.shard);
      this.#sure.delete(head.shard);
      if (before !== undefined && sure !== undefined && sure.before === before.epoch && sure.after === head.epoch)
        return;
      if (before === undefined || before.epoch < head.epoch) this.#doubt(head.shard);
    });
  }

  async start(): Promise<void> {
    await this.refresh();
    this.#unsubscribe = this.#o.messenger.subscribe(
      copySubject(this.#o.group, this.#o.site),
      (message) => {
        void this.#o.store
          .copy(unpack(message.data) as CopyRequest)
          .then((answer) => message.respond(pack(answer)))
          .catch((error: unknown) => this.#log.warn("a copy could not be given", { error: asError(error) }));
      },
      { queue: "copy" },
    );
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    await this.#loop;
  }

  /** The transaction that led the shard from one epoch to another has undone nothing: told before others hear of the new one. */
  sure(shard: ShardId, before: Epoch, after: Epoch): void {
    this.#sure.set(shard, { before, after });
  }

  /** Rows that this datacenter must not serve now. */
  isWaiting(shard: ShardId, tenant: string, id: string): boolean {
    return this.#loading.has(shard) || (this.#waiting.get(shard)?.has(`${tenant}/${id}`) ?? false);
  }

  /** Such a shard can't be opened here. */
  shardWaits(shard: ShardId): boolean {
    return this.#taken === 0 || this.#waiting.has(shard) || this.#loading.has(shard) || this.#doubtful.has(shard);
  }

  /** Some shard's copy as a whole does not count yet. */
  get loads(): boolean {
    return this.#loading.size > 0;
  }

  get count(): number {
    let sum = this.#loading.size;
    for (const set of this.#waiting.values()) sum += set.size;
    return sum;
  }

  /**
   * Reads what waits again; whoever hears of a newer epoch calls it before the shard is seen by others. An answer that was
   * asked for before one that has come already says nothing new.
   */
  async refresh(): Promise<void> {
    const asked = ++this.#asked;
    const rows = await this.#o.store.waiting();
    if (asked < this.#taken) return;
    this.#taken = asked;
    const before = [...this.#waiting.keys(), ...this.#loading];
    this.#loading = new Set(rows.flatMap((row) => (row.kind === "shard" ? [row.shard] : [])));
    const waiting = new Map<ShardId, Set<string>>();
    for (const row of rows) {
      if (row.kind === "shard") continue;
      const set = waiting.get(row.shard) ?? new Set();
      set.add(`${row.tenant}/${row.id}`);
      waiting.set(row.shard, set);
    }
    this.#waiting = waiting;
    const cleared = new Set(before);
    for (const [shard, needed] of this.#doubtful)
      if (asked >= needed) {
        this.#doubtful.delete(shard);
        cleared.add(shard);
      }
    for (const shard of cleared) if (!this.shardWaits(shard)) this.#o.cleared(shard);
  }

  #doubt(shard: ShardId): void {
    this.#doubtful.set(shard, this.#asked + 1);
    if (this.#renewing) return;
    this.#renewing = true;
    void (async () => {
      while (this.#doubtful.size > 0 && !this.#stop.signal.aborted)
        await this.refresh().catch(async (error: unknown) => {
          this.#log.warn("what waits to be restored can't be read", { error: asError(error) });
          await this.#o.time.sleep(50, this.#stop.signal);
        });
      this.#renewing = false;
    })();
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        if (this.count > 0) {
          if (this.#o.active()) {
            // A shard whose owner is silent must not hold up the others.
            for (const shard of [...this.#waiting.keys()])
              await this.#restore(shard).catch((error: unknown) =>
                this.#log.warn("restoring rows failed", { shard, error: asError(error) }),
              );
            await this.#o.store.settle();
          }
          await this.refresh();
        } else await this.refresh();
      } catch (error) {
        this.#log.warn("restoring rows failed", { error: asError(error) });
      }
      await this.#o.time.sleep(this.count > 0 ? tickMs : 5 * tickMs, this.#stop.signal);
    }
  }

  async #restore(shard: ShardId): Promise<void> {
    const owner = this.#o.map.get(shard)?.owner;
    if (owner === undefined || owner === null) return;
    // An own `open` can cut off the own tail: then the other datacenters have the current copies.
    const sources = owner === this.#o.site ? this.#o.datacenters().filter((dc) => dc !== this.#o.site) : [owner];
    let failure: unknown;
    for (const source of sources) {
      try {
        if (await this.#restoreFrom(shard, source)) return;
      } catch (error) {
        failure = error;
      }
    }
    throw asError(failure ?? new Error("nobody has a copy that counts here"));
  }

  /** @returns false when the copy is older than what it is for */
  async #restoreFrom(shard: ShardId, owner: SiteName): Promise<boolean> {
    for (let limit = atOnce; ;) {
      const rows = await this.#o.store.wanted(shard, limit);
      if (rows.length === 0 || this.#stop.signal.aborted) return true;
      const keysOf = (kind: string): { tenant: string; id: string }[] =>
        rows.filter((r) => r.kind === kind).map((r) => ({ tenant: r.tenant, id: r.id }));
      const request: CopyRequest = {
        shard,
        clusters: keysOf("cluster"),
        workers: keysOf("worker"),
        documents: keysOf("document").map(({ id }) => id),
      };
      let answer: CopyAnswer;
      try {
        answer = unpack(
          await this.#o.messenger.request(copySubject(this.#o.group, owner), pack(request), timeoutMs),
        ) as CopyAnswer;
      } catch (error) {
        // The answer may be too large for one message: ask for less.
        if (limit === 1) throw error;
        limit = Math.ceil(limit / 8);
        continue;
      }
      if (!(await this.#o.store.take(shard, rows, answer))) return false;
      this.#log.info("rows restored from the owner", {
        shard,
        rows: rows.length,
        owner,
        epoch: answer.epoch,
        position: answer.position,
      });
    }
  }
}
