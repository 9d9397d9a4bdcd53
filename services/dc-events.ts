import { pack, unpack } from "msgpackr";
import { asError } from "../infra/errors.js";
import type { JsonObject } from "../replication/entities.js";
import { datacentersOf } from "../shards/site-set.js";
import type { DcEvent } from "./api.js";
import type { DatacenterParts } from "./datacenter.js";
import { shownState } from "./group-view.js";

/** How often the datacenters' states are looked at while somebody listens. */
const lookMs = 200;

/** A job's event on its way to the group's other processes. */
interface JobMessage {
  readonly tenant: string;
  readonly data: JsonObject;
}

/** What happens in the group, for whoever listens to `/v1/events` at this process. Nothing is kept: who listens later, hears less. */
export class DcEvents {
  readonly #parts: DatacenterParts;
  readonly #listeners = new Set<(event: DcEvent) => void>();
  /** Ends what is done only while somebody listens. */
  #listening: AbortController | undefined;

  constructor(parts: DatacenterParts) {
    this.#parts = parts;
    const { map, leases, jobEvents, links } = parts;
    map.onChange((head, before) => {
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
    leases.onChange((valid) =>
      this.#emit({ type: "health", data: { dc: parts.site, node: parts.node, state: parts.state(), lease: valid } }),
    );
    // A job changes where its shard is owned, in one process.
    jobEvents.on({
      jobChanged: (data, tenant) => {
        this.#emit({ type: "job", tenant, data });
        const message: JobMessage = { tenant, data };
        try {
          links.main.publish(`${this.#subject}.${parts.site}.${parts.node}`, pack(message));
        } catch (error) {
          parts.log.warn("other processes could not be told of a job", { error: asError(error) });
        }
      },
    });
  }

  /** @returns a function that ends it */
  on(listener: (event: DcEvent) => void): () => void {
    this.#listeners.add(listener);
    this.#listening ??= this.#listen();
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size > 0) return;
      this.#listening?.abort();
      this.#listening = undefined;
    };
  }

  get #subject(): string {
    return `hothot.${this.#parts.config.group}.jobs`;
  }

  #listen(): AbortController {
    const over = new AbortController();
    const { links, site, node } = this.#parts;
    const own = `${this.#subject}.${site}.${node}`;
    const end = links.main.subscribe(`${this.#subject}.>`, (message) => {
      if (message.subject === own) return;
      const { tenant, data } = unpack(message.data) as JobMessage;
      this.#emit({ type: "job", tenant, data });
    });
    over.signal.addEventListener("abort", end, { once: true });
    void this.#watch(over.signal);
    return over;
  }

  /** What the datacenters' states become, the own one's with them. */
  async #watch(signal: AbortSignal): Promise<void> {
    const { siteSets, peers, site, time } = this.#parts;
    const known = new Map<string, string>();
    while (!signal.aborted) {
      for (const dc of datacentersOf(siteSets.set)) {
        const state = dc === site ? this.#parts.state() : peers.state(dc);
        const before = known.get(dc);
        known.set(dc, state);
        if (before !== undefined && before !== state) this.#emit({ type: "health", data: { dc, state } });
      }
      await time.sleep(lookMs, signal);
    }
  }

  #emit(event: DcEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
}
