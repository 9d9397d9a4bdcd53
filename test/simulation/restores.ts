import type { Awaited, CopyAnswer, CopyRequest, RestoreStore } from "../../replication/restore-store.js";
import { inLine } from "../../replication/restore-store.js";
import type { ShardId } from "../../shards/ids.js";
import type { MemoryDatabase } from "./database.js";
import { putRow } from "./replica.js";
import type { Process } from "./scheduler.js";

/** RestoreStore on a datacenter's tables. */
export class MemoryRestoreStore implements RestoreStore {
  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
  ) {}

  waiting(): Promise<readonly (Awaited & { readonly shard: ShardId })[]> {
    return this.database.run(this.process, "restores", (tables) =>
      [...tables.restores.values()].map(({ id, shard }) => ({
        kind: "cluster",
        tenant: "",
        id,
        shard: shard as ShardId,
      })),
    );
  }

  wanted(shard: ShardId, limit: number): Promise<readonly Awaited[]> {
    return this.database.run(this.process, "restores", (tables) =>
      [...tables.restores.values()]
        .filter((restore) => restore.shard === shard && restore.cut === null)
        .slice(0, limit)
        .map(({ id }) => ({ kind: "cluster", tenant: "", id })),
    );
  }

  take(shard: ShardId, rows: readonly Awaited[], copy: CopyAnswer): Promise<boolean> {
    return this.database.run(
      this.process,
      "restore",
      (tables) => {
        const head = tables.heads.get(shard);
        if (head === undefined || !inLine(head, copy)) return false;
        if (rows.some(({ id }) => tables.restores.get(id)?.cut !== null)) return false;
        for (const row of copy.clusters) putRow(tables, row);
        for (const { id } of rows)
          tables.restores.set(id, { id, shard, cut: { epoch: copy.epoch, position: copy.position } });
        return true;
      },
      [shard],
    );
  }

  settle(): Promise<void> {
    return this.database.run(this.process, "settle copies", (tables) => {
      for (const { id, shard, cut } of tables.restores.values()) {
        const head = tables.heads.get(shard);
        if (head === undefined || cut === null) continue;
        if (head.epoch > cut.epoch || (head.epoch === cut.epoch && head.position >= cut.position))
          tables.restores.delete(id);
      }
    });
  }

  copy(request: CopyRequest): Promise<CopyAnswer> {
    return this.database.run(this.process, "copy", (tables) => {
      const head = tables.heads.get(request.shard);
      if (head === undefined) throw new Error("there is no such shard");
      if ([...tables.restores.values()].some((restore) => restore.shard === request.shard))
        throw new Error("rows of this copy wait to be restored themselves");
      return {
        epoch: head.epoch,
        position: head.position,
        clusters: request.clusters.flatMap(({ id }) => tables.rows.get(id) ?? []),
        jobs: [],
        workers: [],
        documents: [],
      };
    });
  }
}
