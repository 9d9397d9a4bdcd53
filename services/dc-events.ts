import type { DcEvent } from "./api.js";
import type { DatacenterParts } from "./datacenter.js";
import { shownState } from "./group-view.js";

/** What happens in this process, for whoever listens to `/v1/events`. */
export class DcEvents {
  readonly #listeners = new Set<(event: DcEvent) => void>();

  constructor(parts: Pick<DatacenterParts, "map" | "leases" | "jobEvents" | "site" | "node" | "state">) {
    parts.map.onChange((head, before) => {
      if (before === undefined || before.epoch !== head.epoch || before.state !== head.state)
        this.#emit({
          type: "ownership",
          data: {
            shard: head.shard,
            owner: head.owner,
            epoch: head.epoch,
            state: shownState(head.state),
            reason: head.reason,
          },
        });
    });
    parts.leases.onChange((valid) =>
      this.#emit({ type: "health", data: { dc: parts.site, node: parts.node, state: parts.state(), lease: valid } }),
    );
    parts.jobEvents.on({ jobChanged: (job, tenant) => this.#emit({ type: "job", tenant, data: job }) });
  }

  /** @returns a function that ends it */
  on(listener: (event: DcEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #emit(event: DcEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
}
