import type { JsonObject } from "../replication/entities.js";
import type { Operation } from "../replication/work.js";
import type { ShardId } from "../shards/ids.js";

/** Writes a document of the group, or removes it (null). 200. */
export function putDocument(
  target: { readonly kind: string; readonly id: string; readonly shard: ShardId },
  body: JsonObject | null,
): Operation {
  return {
    shard: target.shard,
    needs: {},
    decide: (work) => {
      const updatedAt = new Date(work.now).toISOString();
      work.record({
        type: "document.put",
        document: { ...target, body: body ?? {}, updatedAt, deleted: body === null },
      });
      return { status: 200, body: { updatedAt } };
    },
  };
}
