import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";

/** Requests that begin in one turn of the event loop: some milliseconds of work. */
const perTurn = 16;
const waitMs = 2_000;

interface Waiting {
  readonly since: number;
  readonly enter: () => void;
  readonly refuse: (problem: Problem) => void;
}

/**
 * Few requests begin in one turn of the event loop, so that heartbeats, the database's answers and other datacenters' messages have
 * theirs in between, however many clients there are: load must never cost a lease. Who has waited for too long is refused before any
 * work is done for it, so that a process which can't keep up answers those that it takes in time.
 */
export class Entrance {
  readonly #time: Time;
  readonly #room: number;
  readonly #waiting: Waiting[] = [];
  #begun = 0;
  #scheduled = false;

  /** @param room requests that may wait */
  constructor(time: Time, room: number) {
    this.#time = time;
    this.#room = room;
  }

  /** Undefined: it may begin now. Else resolves when it may. @throws Problem overloaded */
  pass(): Promise<void> | undefined {
    this.#schedule();
    if (this.#waiting.length === 0 && this.#begun < perTurn) {
      this.#begun++;
      return undefined;
    }
    if (this.#waiting.length >= this.#room) throw tooBusy();
    return new Promise((enter, refuse) => {
      this.#waiting.push({ since: this.#time.monotonic(), enter, refuse });
    });
  }

  /** Once in each turn in which a request came or waits. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#time.soon(() => {
      this.#scheduled = false;
      this.#begun = 0;
      this.#next();
    });
  }

  #next(): void {
    const now = this.#time.monotonic();
    for (; this.#begun < perTurn; this.#begun++) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      if (now - next.since > waitMs) next.refuse(tooBusy());
      else next.enter();
    }
    this.#schedule();
  }
}

const tooBusy = (): Problem =>
  new Problem("overloaded", "This process has more requests than it can begin.", { retryAfterSeconds: 1 });
