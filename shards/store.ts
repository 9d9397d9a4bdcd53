import type { Epoch, ShardId, SiteName } from "./ids.js";
import type { Head } from "./map.js";

/** How often a site has voted against a target, and against which epochs: on disk before a vote is given (rule a). */
export interface Vote {
  readonly number: number;
  /** Largest epoch voted against, by shard. */
  readonly epochs: Readonly<Record<string, number>>;
}

/** Where a site keeps its votes: a datacenter's Postgres, a witness's file. */
export interface VoteStore {
  /** By target. */
  load(): Promise<Map<SiteName, Vote>>;
  /** Counts one more vote against the target and keeps the largest epochs. Durable when it resolves. */
  vote(target: SiteName, epochs: Readonly<Record<string, number>>): Promise<Vote>;
}

export interface Lock {
  /** The holder was another one before (or nobody). */
  readonly fresh: boolean;
}

/**
 * The ownership side of a datacenter's database. Each call is one transaction; statements that were meant for an older
 * incarnation of the database fail.
 */
export interface ShardStore {
  /** Of all shards, or of these. */
  heads(only?: readonly ShardId[]): Promise<Head[]>;
  /**
   * Stores that epochs up to these were voted against, and suspends what is owned at or below them (rule d); remembers the
   * voter's incarnation, and closes the datacenter when that is a newer one than was known (rule i).
   * @param closing a number never used before, in case of a closing
   */
  fence(
    epochs: Readonly<Record<string, number>>,
    voter: { readonly site: SiteName; readonly incarnation: number },
    closing: number,
  ): Promise<Head[]>;
  /** Incarnations of other sites, as far as met. */
  incarnations(): Promise<Map<SiteName, number>>;
  /** Takes or renews a lock with a time-bound lease by the database's clock; null: another one holds it. */
  lock(name: string, holder: string, termMs: number): Promise<Lock | null>;
  unlock(name: string, holder: string): Promise<void>;
  /** The log has shown that the epoch goes on here (rule g). */
  confirm(shard: ShardId, epoch: Epoch): Promise<Head | undefined>;
  /** The canary: a write that also keeps this node listed (rule h). Nodes silent for `goneMs` are gone. @returns the others. */
  refreshNode(node: string, url: string, goneMs: number): Promise<string[]>;
  removeNode(node: string): Promise<void>;
  /**
   * Sets `moving` (rule g), after which no write of the epoch can commit; null: the shard is not owned in this epoch.
   * @returns the head with its final position, and the datacenter's other live nodes as of this statement (rule h)
   */
  beginMove(
    shard: ShardId,
    epoch: Epoch,
    node: string,
    goneMs: number,
  ): Promise<{ readonly head: Head; readonly nodes: readonly string[] } | null>;
  /** The move was called off before its append was tried: the same epoch goes on, unless a fence came meanwhile (rule d). */
  endMove(shard: ShardId, epoch: Epoch): Promise<Head | undefined>;
  /** A move that nobody drives any more: from now on it can't be called off, an own append settles the shard (rule g). */
  suspendMove(shard: ShardId, epoch: Epoch): Promise<Head | undefined>;
  /** Fences the shard through this epoch without a vote: it is not served here at or below it again, also if it is heard of later. */
  renounce(shard: ShardId, epoch: Epoch): Promise<Head | undefined>;
}
