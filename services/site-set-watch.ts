import type { Time } from "../infra/clock.js";
import { asError, FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { LogStreams } from "../infra/nats/log-streams.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "../shards/ids.js";
import { decodeSiteSet, encodeSiteSet, type SiteSet } from "../shards/site-set.js";

const tickMs = 2_000;

/** Keeps the newest site set that the log shows, and changes it by compare-and-set. */
export class SiteSetWatch implements Service {
  readonly name = "site-set";
  readonly #streams: LogStreams;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #current: { readonly set: SiteSet; readonly sequence: number } | undefined;
  readonly #listeners: ((set: SiteSet) => void)[] = [];
  #loop: Promise<void> = Promise.resolve();
  #reading: Promise<void> | undefined;
  #readAt = -Infinity;

  constructor(streams: LogStreams, time: Time, log: Logger) {
    this.#streams = streams;
    this.#time = time;
    this.#log = log.with({ component: "site-set" });
  }

  /** @throws FatalError not_initialised */
  async first(waitMs: number): Promise<SiteSet> {
    const deadline = this.#time.monotonic() + waitMs;
    for (;;) {
      await this.refresh();
      if (this.#current !== undefined) return this.#current.set;
      if (this.#time.monotonic() > deadline)
        throw new FatalError(
          "not_initialised",
          `the group's log can't be found in NATS`,
          "Run `hothot init` once for the group; if that was done, check HOTHOT_GROUP and that a majority of the sites' nats-servers run.",
        );
      await this.#time.sleep(200);
    }
  }

  /** Undefined before the log could be read. */
  get known(): SiteSet | undefined {
    return this.#current?.set;
  }

  get set(): SiteSet {
    if (this.#current === undefined) throw new Error("the site set is not known yet");
    return this.#current.set;
  }

  /** When the last look at the log began that was answered (monotonic milliseconds): the set is not older. */
  get readAt(): number {
    return this.#readAt;
  }

  async start(): Promise<void> {
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.refresh();
        await this.#time.sleep(tickMs, this.#stop.signal);
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  /** Resolves when the set is seen not to hold the site (any more). */
  gone(site: SiteName): Promise<void> {
    return new Promise((resolve) => {
      const look = (set: SiteSet): void => {
        if (!set.sites.some((each) => each.name === site)) resolve();
      };
      this.#listeners.push(look);
      if (this.#current !== undefined) look(this.#current.set);
    });
  }

  refresh(): Promise<void> {
    return (this.#reading ??= this.#read().finally(() => (this.#reading = undefined)));
  }

  /**
   * Changes the set when nobody else has meanwhile.
   * @param make undefined: nothing is to be changed any more
   * @returns the new set, or undefined when it was not changed, or that is not known
   */
  async change(make: (set: SiteSet) => SiteSet | undefined): Promise<SiteSet | undefined> {
    await this.refresh();
    const current = this.#current;
    const made = current === undefined ? undefined : make(current.set);
    if (current === undefined || made === undefined) return undefined;
    const next = { ...made, number: current.set.number + 1 };
    const answer = await this.#streams.appendControl(encodeSiteSet(next), current.sequence, 3_000, 0);
    await this.refresh();
    return answer.kind === "stored" ? next : undefined;
  }

  async #read(): Promise<void> {
    const began = this.#time.monotonic();
    for (let route = 0; route < this.#streams.routes; route++) {
      try {
        const found = await this.#streams.readControl(500, route);
        if (found === undefined) continue;
        this.#readAt = began;
        if (this.#current === undefined || found.sequence > this.#current.sequence) {
          this.#current = { set: decodeSiteSet(found.data), sequence: found.sequence };
          this.#log.info("site set", {
            number: this.#current.set.number,
            sites: this.#current.set.sites.map((site) => site.name),
            paused: this.#current.set.failoverPaused,
            changing: this.#current.set.changing !== undefined,
          });
          for (const listener of this.#listeners) listener(this.#current.set);
        }
        return;
      } catch (error) {
        this.#log.debug("reading the site set failed", { route, error: asError(error) });
      }
    }
  }
}
