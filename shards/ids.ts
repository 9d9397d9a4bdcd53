/** Branded numbers: they can't be swapped, and stay within 2^53 (checked where they come in). */
declare const brand: unique symbol;
type Branded<Name extends string> = number & { readonly [brand]: Name };

/** Number of a fixed hash bucket of cluster ids, from 0. */
export type ShardId = Branded<"ShardId">;
/** Raised at each ownership change of a shard; the fencing token. Starts at 1; 0 means none. */
export type Epoch = Branded<"Epoch">;
/** Dense number of a record in its shard, from 1; 0 means none. */
export type Position = Branded<"Position">;
/** Number of a log partition (one JetStream stream), from 0. */
export type Partition = Branded<"Partition">;
/** A site's name: a datacenter or a witness. */
export type SiteName = string;

function whole<T>(value: number, what: string): T {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new RangeError(`${what} must be a whole number from 0, got ${value}`);
  return value as T;
}

export const shardId = (value: number): ShardId => whole(value, "shard");
export const epoch = (value: number): Epoch => whole(value, "epoch");
export const position = (value: number): Position => whole(value, "position");
export const partition = (value: number): Partition => whole(value, "partition");
export const nextEpoch = (value: Epoch): Epoch => epoch(value + 1);

/** FNV-1a over UTF-8, 32 bits, with a final mix so that the low bits depend on all of the text. Fixed for ever. */
export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  const bytes = Buffer.from(text, "utf8");
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  hash ^= hash >>> 16;
  hash = Math.imul(hash, 0x85ebca6b);
  hash ^= hash >>> 13;
  hash = Math.imul(hash, 0xc2b2ae35);
  hash ^= hash >>> 16;
  return hash >>> 0;
}

/** The shard of a cluster id (or of a worker's), of `shards` in the group. */
export const shardOf = (id: string, shards: number): ShardId => shardId(hashText(id) % shards);
/** The log partition that holds a shard. */
export const partitionOf = (shard: ShardId, partitions: number): Partition => partition(shard % partitions);

/** Of two (epoch, position) pairs: below zero when `a` is older, epoch first. */
export function comparePlaces(a: { epoch: number; position: number }, b: { epoch: number; position: number }): number {
  return a.epoch - b.epoch || a.position - b.position;
}
