import type { Time } from "./clock.js";
import { asError } from "./errors.js";
import type { Logger } from "./logger.js";

export interface RoundsOptions {
  /** As in "could not <what>": told when a round fails. */
  readonly what: string;
  /** Before the first round, and between two. */
  readonly everyMs: number;
  /** May give the milliseconds until the next one, instead of `everyMs`. */
  readonly round: (stopped: AbortSignal) => Promise<number | void>;
  readonly time: Time;
  readonly log: Logger;
}

/** Does something again and again, one round after the other, until it is stopped. After a round that fails comes the next one. */
export class Rounds {
  readonly #o: RoundsOptions;
  readonly #stop = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: RoundsOptions) {
    this.#o = options;
  }

  start(): void {
    this.#loop = this.#run();
  }

  /** Waits for the round under way, which the signal tells to end early. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #run(): Promise<void> {
    const { what, everyMs, round, time, log } = this.#o;
    const { signal } = this.#stop;
    for (let waitMs = everyMs; ;) {
      await time.sleep(waitMs, signal);
      if (signal.aborted) return;
      try {
        waitMs = (await round(signal)) ?? everyMs;
      } catch (error) {
        waitMs = everyMs;
        log.warn(`could not ${what}`, { error: asError(error) });
      }
    }
  }
}
