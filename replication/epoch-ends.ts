import type { Time } from "../infra/clock.js";
import { gather } from "../infra/gather.js";
import type { Database } from "../infra/postgres/database.js";
import type { ShardId } from "../shards/ids.js";
import type { EpochEnd } from "./record.js";

/** Where the shards' former epochs ended, as the database has it: what is asked in one turn takes one statement. */
export const epochEndsIn = (database: Database, time: Time): ((shard: ShardId) => Promise<readonly EpochEnd[]>) =>
  gather(time, async (shards) => {
    const { rows } = await database.pool.query<{ shard: number; ends: EpochEnd[] }>({
      name: "epoch_ends",
      text: "SELECT shard, epoch_ends AS ends FROM shard_head WHERE shard = ANY($1::int[])",
      values: [shards],
    });
    const found = new Map(rows.map(({ shard, ends }) => [shard, ends]));
    return shards.map((shard) => found.get(shard) ?? []);
  });
