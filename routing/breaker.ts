/** Requests go; go, while it is asked whether anybody is there; wait; wait, while it is asked again. */
export type BreakerState = "closed" | "doubted" | "open" | "probing";

export interface BreakerSettings {
  /** Silence that raises a doubt, while requests are under way. Milliseconds. */
  readonly silentMs: number;
  /** Unanswered requests that it takes. */
  readonly unanswered: number;
  /** The first pause before it is asked again; each that brings nothing doubles it. */
  readonly pauseMs: number;
  readonly longestPauseMs: number;
}

export const breakerSettings: BreakerSettings = { silentMs: 500, unanswered: 4, pauseMs: 250, longestPauseMs: 4_000 };

/**
 * Circuit breaker for one datacenter that is heard and does not answer: it would let each request hang in the forwarder
 * until its deadline. Whether somebody is there is found out by probes that ask for nothing but an answer, so that requests
 * which are slow for a reason of their own (the log elects) are not taken for a dead owner.
 *
 * | state | event | next |
 * | --- | --- | --- |
 * | closed | silent for so long, with so many unanswered | doubted: a probe goes out |
 * | doubted, probing | the probe got no answer | open, each time for twice as long |
 * | open | the pause is over | probing: a probe goes out |
 * | any | an answer, to whatever was sent | closed |
 *
 * Pure but for its own state; times are monotonic milliseconds and come in.
 */
export class Breaker {
  #state: BreakerState = "closed";
  #under = 0;
  /** Sent since the last answer and not answered: under way or given up. */
  #unanswered = 0;
  #silentSince = 0;
  #until = 0;
  #pauseMs: number;

  constructor(private readonly settings: BreakerSettings = breakerSettings) {
    this.#pauseMs = settings.pauseMs;
  }

  get state(): BreakerState {
    return this.#state;
  }

  /** Whether requests may be sent. */
  get allows(): boolean {
    return this.#state === "closed" || this.#state === "doubted";
  }

  /** Whether a probe has to be sent now; whoever is told so sends it, and tells what came of it. */
  wantsProbe(now: number): boolean {
    if (this.#state === "closed") {
      const { unanswered, silentMs } = this.settings;
      if (this.#unanswered < unanswered || now - this.#silentSince < silentMs) return false;
      this.#state = "doubted";
      return true;
    }
    if (this.#state !== "open" || now < this.#until) return false;
    this.#state = "probing";
    return true;
  }

  sent(now: number): void {
    if (this.#unanswered === 0) this.#silentSince = now;
    this.#under++;
    this.#unanswered++;
  }

  /** Nothing is to be expected of this request any more, answered or not. */
  done(): void {
    this.#under--;
  }

  /** An answer came, to a request or a probe, be it a refusal: somebody is there. */
  answered(now: number): void {
    this.#unanswered = this.#under;
    this.#silentSince = now;
    this.#state = "closed";
    this.#pauseMs = this.settings.pauseMs;
  }

  /** The probe got no answer. */
  silent(now: number): void {
    // Something else was answered meanwhile.
    if (this.#state === "closed") return;
    const again = this.#state === "probing";
    this.#pauseMs = again ? Math.min(this.#pauseMs * 2, this.settings.longestPauseMs) : this.settings.pauseMs;
    this.#state = "open";
    this.#until = now + this.#pauseMs;
  }
}
