import type { Epoch, Partition, Position, ShardId, SiteName } from "./ids.js";
import type { ShardState } from "./states.js";

/** A row of `shard_head`, as a node sees it. */
export interface Head {
  readonly shard: ShardId;
  readonly partition: Partition;
  readonly owner: SiteName | null;
  readonly epoch: Epoch;
  readonly state: ShardState;
  readonly position: Position;
  /** Last position that the log is known to hold; lags behind a little. */
  readonly published: Position;
  readonly tenure: Epoch;
  readonly closing: number;
  readonly confirmed: boolean;
  readonly since: string;
  readonly kind: string;
  readonly reason: string;
  readonly stopped: string | null;
  readonly revision: number;
  /** As read from the database: rows of the shard wait to be restored. */
  readonly waits?: boolean;
}

/**
 * A node's view of who owns what: a copy of its database's fold of the log. It only moves forward: a late answer never
 * brings an older epoch or state back (rule h), which `revision` decides.
 */
export class ShardMap {
  readonly #heads: (Head | undefined)[];
  readonly #listeners = new Set<(head: Head, before: Head | undefined) => void>();
  /** How many shards each owner has. */
  readonly #owned = new Map<SiteName, number>();

  constructor(readonly shards: number) {
    this.#heads = new Array<Head | undefined>(shards).fill(undefined);
  }

  get(shard: ShardId): Head | undefined {
    return this.#heads[shard];
  }

  all(): Head[] {
    return this.#heads.filter((head) => head !== undefined);
  }

  ownedBy(site: SiteName): Head[] {
    return this.all().filter((head) => head.owner === site);
  }

  /** Whoever owns a shard. */
  owners(): SiteName[] {
    return [...this.#owned.keys()];
  }

  /** Takes the head over unless a newer one is known. */
  adopt(head: Head): boolean {
    const before = this.#heads[head.shard];
    if (before !== undefined && head.revision <= before.revision) return false;
    this.#heads[head.shard] = head;
    if (before?.owner !== head.owner) {
      this.#count(before?.owner, -1);
      this.#count(head.owner, 1);
    }
    for (const listener of this.#listeners) listener(head, before);
    return true;
  }

  /** After a new incarnation of the own database: what was known may have been forgotten there. */
  reset(): void {
    for (const head of this.all()) {
      const suspended: Head = {
        ...head,
        state: head.state === "replica" ? "replica" : "suspended",
        confirmed: false,
        revision: -1,
      };
      this.#heads[head.shard] = suspended;
      for (const listener of this.#listeners) listener(suspended, head);
    }
  }

  /** Calls `listener` after each change until the returned function is called. */
  onChange(listener: (head: Head, before: Head | undefined) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #count(owner: SiteName | null | undefined, by: number): void {
    if (owner == null) return;
    const count = (this.#owned.get(owner) ?? 0) + by;
    if (count === 0) this.#owned.delete(owner);
    else this.#owned.set(owner, count);
  }
}
