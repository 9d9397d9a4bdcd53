import type { Clock } from "../infra/clock.js";
import type { Epoch, ShardId, SiteName } from "./ids.js";
import type { OpenRequest, OpenResult, OwnershipLog } from "./ownership-log.js";

/** Told of an `open` that the log has: phases that came with its append or after it, milliseconds. */
export type Followed = (shard: ShardId, epoch: Epoch, phasesMs: Readonly<Record<string, number>>) => void;

/** An owner that does not serve by then is given up (`replication/give-away.ts`). */
const servedMs = 5_000;

/** The log as the registry, and what its records can't say of themselves: how long the append took, and then the opening. */
export class FollowedOpens implements OwnershipLog {
  constructor(
    private readonly o: {
      readonly ownership: OwnershipLog;
      readonly time: Pick<Clock, "monotonic">;
      /** Whether the datacenter serves the shard in this epoch, in time. */
      readonly served: (dc: SiteName, shard: ShardId, epoch: Epoch, timeoutMs: number) => Promise<boolean>;
      readonly followed: Followed;
    },
  ) {}

  async open(request: OpenRequest, deadline: number): Promise<OpenResult> {
    const began = this.o.time.monotonic();
    const result = await this.o.ownership.open(request, deadline);
    if (result.kind === "opened") void this.#follow(request, Math.round(this.o.time.monotonic() - began));
    return result;
  }

  async #follow({ shard, against, to }: OpenRequest, open: number): Promise<void> {
    const epoch = (against + 1) as Epoch;
    const opened = this.o.time.monotonic();
    const served = await this.o.served(to, shard, epoch, servedMs).catch(() => false);
    const serve = Math.round(this.o.time.monotonic() - opened);
    this.o.followed(shard, epoch, served ? { open, serve } : { open });
  }
}
