import type { Operation } from "../../replication/work.js";
import type { ShardId } from "../../shards/ids.js";

export interface Put {
  readonly shard: ShardId;
  readonly id: string;
  /** Names the write; it is the cluster's new name. */
  readonly mark: string;
  /** Idempotency key. */
  readonly key?: string;
}

/** A write of one cluster. */
export function put({ shard, id, mark, key }: Put): Operation {
  return {
    shard,
    needs: { clusters: [{ tenant: "", id }] },
    ...(key === undefined ? {} : { key: { tenant: "", key, fingerprint: `${id}`, retentionMs: 86_400_000 } }),
    decide: (work) => {
      const before = work.cluster("", id);
      const at = new Date(work.now).toISOString();
      work.record({
        type: "cluster.put",
        cluster: {
          tenant: "",
          id,
          shard,
          status: "active",
          name: mark,
          spec: {},
          state: {},
          labels: {},
          expiresAt: null,
          version: (before?.version ?? 0) + 1,
          createdAt: before?.createdAt ?? at,
          updatedAt: at,
          deleted: false,
        },
      });
      return { status: 200, body: { mark } };
    },
  };
}
