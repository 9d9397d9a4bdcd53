import type { Time } from "../infra/clock.js";
import type { Database } from "../infra/postgres/database.js";
import type { ShardId } from "../shards/ids.js";
import type { EpochEnd } from "./record.js";

/** Where the shards' former epochs ended, as the database has it: what is asked in one turn takes one statement. */
export function epochEndsIn(database: Database, time: Time): (shard: ShardId) => Promise<readonly EpochEnd[]> {
  let asked: Set<ShardId> | undefined;
  let found: Promise<ReadonlyMap<number, readonly EpochEnd[]>> = Promise.resolve(
    new Map<number, readonly EpochEnd[]>(),
  );
  const read = async (shards: readonly ShardId[]): Promise<ReadonlyMap<number, readonly EpochEnd[]>> => {
    const { rows } = await database.pool.query<{ shard: number; ends: EpochEnd[] }>({
      name: "epoch_ends",
      text: "SELECT shard, epoch_ends AS ends FROM shard_head WHERE shard = ANY($1::int[])",
      values: [shards],
    });
    return new Map(rows.map(({ shard, ends }) => [shard, ends]));
  };
  return async (shard) => {
    if (asked === undefined) {
      const mine = (asked = new Set<ShardId>());
      found = new Promise<void>((resolve) => time.soon(resolve)).then(() => {
        asked = undefined;
        return read([...mine]);
      });
    }
    asked.add(shard);
    return (await found).get(shard) ?? [];
  };
}
