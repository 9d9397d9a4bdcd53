import type { Time } from "../infra/clock.js";
import type { Logger } from "../infra/logger.js";
import type { SiteName } from "../shards/ids.js";
import { Breaker } from "./breaker.js";

/** A circuit breaker for each datacenter that requests are forwarded to. */
export class Breakers {
  readonly #breakers = new Map<SiteName, Breaker>();

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
    const breaker = this.#of(to);
    if (breaker.wantsProbe(this.o.time.monotonic())) this.#probe(to, breaker);
    return breaker.allows;
  }

  /** Call what comes back once, when the request is over: with true when it was answered. */
  sent(to: SiteName): (answered: boolean) => void {
    const breaker = this.#of(to);
    breaker.sent(this.o.time.monotonic());
    return (answered) => {
      breaker.done();
      if (answered) this.#answered(to, breaker);
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
