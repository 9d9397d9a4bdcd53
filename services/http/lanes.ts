import { Problem } from "../../infra/errors.js";
import type { HttpLimits, Lane } from "./types.js";

/** Counts requests at work, and refuses those above their lane's bound. */
export class Lanes {
  readonly #limits: HttpLimits["lanes"];
  readonly #busy: Record<Lane, number> = { work: 0, poll: 0, stream: 0, events: 0, admin: 0, probe: 0 };
  readonly #waiting: (() => void)[] = [];
  #open = 0;

  constructor(limits: HttpLimits["lanes"]) {
    this.#limits = limits;
  }

  /** Before the body is read, so that a refusal costs little. @throws Problem overloaded */
  admit(lane: Lane): void {
    if (lane !== "probe" && this.#busy[lane] >= this.#limits[lane])
      throw new Problem("overloaded", `This process has ${this.#limits[lane]} requests of this kind at work already.`, {
        retryAfterSeconds: 1,
      });
  }

  /** Once the body is there. @throws Problem overloaded */
  enter(lane: Lane): void {
    this.admit(lane);
    this.#busy[lane]++;
  }

  leave(lane: Lane): void {
    this.#busy[lane]--;
  }

  /** An accepted request, whose body may still arrive. */
  opened(): void {
    this.#open++;
  }

  answered(): void {
    this.#open--;
    if (this.#open === 0) for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** Accepted and not answered yet. */
  get open(): number {
    return this.#open;
  }

  /** Resolves when all that was accepted is answered. */
  idle(): Promise<void> {
    return this.#open === 0 ? Promise.resolve() : new Promise((resolve) => this.#waiting.push(resolve));
  }
}
