import type { Random } from "../infra/random.js";
import type { JsonObject } from "../replication/entities.js";
import type { Operation } from "../replication/work.js";
import type { Router } from "../routing/router.js";
import { shardOf, type ShardId, type SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import type { Command, Reply } from "./api.js";
import type { CommandContext } from "./executor.js";

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

/** Who asks for a document to be written, and until when. */
export interface DocumentContext {
  readonly requestId: string;
  readonly traceparent: string | null;
  /** Monotonic milliseconds. */
  readonly deadline: number;
}

/** Writes the group's documents by way of their shards' owners, and waits until a majority of sites has them. */
export class Documents {
  constructor(
    private readonly o: {
      readonly router: Router<Command, Reply>;
      readonly map: ShardMap;
      readonly shards: number;
      readonly site: SiteName;
      readonly random: Random;
    },
  ) {}

  /** Null removes it. @throws Problem as any write does */
  async put(kind: string, id: string, body: JsonObject | null, context: DocumentContext): Promise<Reply> {
    const { result } = await this.o.router.execute({
      shard: shardOf(id, this.o.shards),
      command: { type: "document.put", kind, id, body },
      context: {
        caller: { tenant: "", principal: "hothot" },
        durability: "replicated",
        requestId: context.requestId,
        traceparent: context.traceparent,
        key: null,
      } satisfies CommandContext,
      deadline: context.deadline,
      repeatable: true,
      write: true,
    });
    return result;
  }

  /** Of a shard that this datacenter owns, so that writing it is a matter of this datacenter and the log alone; any, if it owns none. */
  newId(prefix: string): string {
    const owned = new Set(this.o.map.ownedBy(this.o.site).map((head) => head.shard));
    let id = `${prefix}${this.o.random.token(12)}`;
    for (let tries = 0; owned.size > 0 && tries < 10_000 && !owned.has(shardOf(id, this.o.shards)); tries++)
      id = `${prefix}${this.o.random.token(12)}`;
    return id;
  }
}
