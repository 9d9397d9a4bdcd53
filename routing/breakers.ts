import type { Time } from "../infra/clock.js";
import type { Logger } from "../infra/logger.js";
import type { SiteName } from "../shards/ids.js";
import { Breaker } from "./breaker.js";

/** While nobody listens there, one request in so many milliseconds goes to see. */
const scoutMs = 25;

/** A circuit breaker for each datacenter that requests are forwarded to. */
export class Breakers {
  readonly #breakers = new Map<SiteName, Breaker>();
  /** Where nobody listens on any way, and when the next request may go there. */
  readonly #absent = new Map<SiteName, number>();

  constructor(
    private readonly o: {
      readonly time: Time;
      readonly log: Logger;
      /** Asks for nothing but an answer. Rejects when there was none in time. */
      readonly probe: (to: SiteName) => Promise<unknown>;
    },
  ) {}

  /** Whether a request may go there now. Sends a probe when it is time for one. */
  allows(to: SiteName): boolean {
    const now = this.o.time.monotonic();
    const next = this.#absent.get(to);
    // All that wait for a datacenter that is gone would else ask again and again, just when the others have most to do.
    if (next !== undefined) {
      if (now < next) return false;
      this.#absent.set(to, now + scoutMs);
    }
    const breaker = this.#of(to);
    if (breaker.wantsProbe(now)) this.#probe(to, breaker);
    return breaker.allows;
  }

  /** Nobody listens there, on any way: until somebody does, few requests go. */
  absent(to: SiteName): void {
    this.#absent.set(to, this.o.time.monotonic() + scoutMs);
  }

  /** Call what comes back once, when the request is over. One that nobody took says nothing of whoever takes them. */
  sent(to: SiteName): (end: "answered" | "nobody" | "silent") => void {
    const breaker = this.#of(to);
    breaker.sent(this.o.time.monotonic());
    return (end) => {
      breaker.done();
      if (end === "answered") this.#absent.delete(to);
      if (end !== "silent") this.#answered(to, breaker);
    };
  }

  #of(to: SiteName): Breaker {
    let breaker = this.#breakers.get(to);
    if (breaker === undefined) this.#breakers.set(to, (breaker = new Breaker()));
    return breaker;
  }

  #probe(to: SiteName, breaker: Breaker): void {
    this.o.probe(to).then(
      () => this.#answered(to, breaker),
      () => {
        const before = breaker.allows;
        breaker.silent(this.o.time.monotonic());
        if (before && !breaker.allows)
          this.o.log.warn("requests are held: a datacenter takes them and does not answer", { to });
      },
    );
  }

  #answered(to: SiteName, breaker: Breaker): void {
    if (!breaker.allows) this.o.log.info("requests go again to a datacenter that did not answer", { to });
    breaker.answered(this.o.time.monotonic());
  }
}
