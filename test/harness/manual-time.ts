import type { Time, Timer } from "../../infra/clock.js";

/** Time that stands still until a test moves it. Timers that fall due run in order, each at its own time. */
export class ManualTime implements Time {
  #now: number;
  #sequence = 0;
  readonly #timers = new Map<number, { readonly at: number; readonly action: () => void }>();

  /** @param start milliseconds since 1970 */
  constructor(start = Date.parse("2026-01-01T00:00:00Z")) {
    this.#now = start;
  }

  monotonic(): number {
    return this.#now;
  }

  wall(): number {
    return this.#now;
  }

  after(ms: number, action: () => void): Timer {
    const id = ++this.#sequence;
    this.#timers.set(id, { at: this.#now + Math.max(0, ms), action });
    return { cancel: () => void this.#timers.delete(id) };
  }

  soon(action: () => void): void {
    setImmediate(action);
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted === true) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = this.after(ms, () => {
        signal?.removeEventListener("abort", stop);
        resolve();
      });
      const stop = (): void => {
        timer.cancel();
        resolve();
      };
      signal?.addEventListener("abort", stop, { once: true });
    });
  }

  /** Without running timers. */
  set(now: number): void {
    this.#now = now;
  }

  /** Moves on by `ms`; promises that timers settle have run their reactions before the next timer. */
  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    for (;;) {
      await settled();
      const due = [...this.#timers]
        .filter(([, timer]) => timer.at <= end)
        .sort(([a, x], [b, y]) => x.at - y.at || a - b)[0];
      if (due === undefined) break;
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1].at);
      due[1].action();
    }
    this.#now = end;
    await settled();
  }
}

/** Lets everything run that is ready. */
export async function settled(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}
