import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Service } from "../infra/service.js";
import type { ShardStore } from "../shards/store.js";

const termMs = 600;

/**
 * One process of a datacenter publishes and applies, by a lock in its Postgres that moves within a second when that process
 * dies. It saves work only: the compare-and-set and the progress check keep two of them from doing harm.
 */
export class ReplicatorLock implements Service {
  readonly name = "replicator-lock";
  readonly #o: {
    readonly store: ShardStore;
    readonly holder: string;
    readonly time: Time;
    readonly log: Logger;
    readonly onChange: (holding: boolean) => Promise<void>;
  };
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #holding = false;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: {
    store: ShardStore;
    holder: string;
    time: Time;
    log: Logger;
    onChange: (holding: boolean) => Promise<void>;
  }) {
    this.#o = options;
    this.#log = options.log.with({ component: "replicator-lock" });
  }

  get holding(): boolean {
    return this.#holding;
  }

  async start(): Promise<void> {
    this.#loop = this.#keep();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    if (this.#holding) await this.#o.store.unlock("replicator", this.#o.holder).catch(() => undefined);
  }

  async #keep(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        const lock = await this.#o.store.lock("replicator", this.#o.holder, termMs);
        if ((lock !== null) !== this.#holding) {
          await this.#o.onChange(lock !== null);
          this.#holding = lock !== null;
          this.#log.info(
            this.#holding ? "publishes and applies for the datacenter" : "another process publishes and applies",
          );
        }
      } catch (error) {
        this.#log.warn("the replicator's lock could not be renewed", { error: asError(error) });
      }
      await this.#o.time.sleep(termMs / 4, this.#stop.signal);
    }
  }
}
