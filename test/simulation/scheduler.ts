import type { Time, Timer } from "../../infra/clock.js";
import { seededRandom, type Random } from "../../infra/random.js";

interface Event {
  time: number;
  readonly order: number;
  readonly process: Process | null;
  readonly timer: boolean;
  readonly action: () => void;
  cancelled: boolean;
}

/** The one source of time, order and chance of a run: the same seed gives the same events. Times are virtual milliseconds. */
export class Scheduler {
  now = 0;
  events = 0;
  readonly random: Random;
  #order = 0;
  #heap: Event[] = [];
  #stopped = false;

  constructor(seed: number) {
    this.random = seededRandom(seed);
  }

  /** How often things went wrong in this run, by what. */
  readonly happened = new Map<string, number>();

  count(what: string): void {
    this.happened.set(what, (this.happened.get(what) ?? 0) + 1);
  }

  chance(probability: number): boolean {
    return this.random.next() < probability;
  }

  between(low: number, high: number): number {
    return low + this.random.next() * (high - low);
  }

  pick<T>(list: readonly T[]): T {
    const found = list[Math.floor(this.random.next() * list.length)];
    if (found === undefined) throw new RangeError("nothing to pick from");
    return found;
  }

  /** Runs `action` after `delay`: in a process only while that lives, and when it is paused after its pause. */
  after(delay: number, process: Process | null, action: () => void, timer = false): Event {
    const event: Event = { time: this.now + delay, order: this.#order++, process, timer, action, cancelled: false };
    this.#push(event);
    return event;
  }

  stop(): void {
    this.#stopped = true;
  }

  /** A suspended machine's monotonic clock stands still: its timers fall due that much later. */
  shiftTimers(process: Process, by: number): void {
    const events = this.#heap;
    this.#heap = [];
    for (const event of events) {
      if (event.timer && event.process === process) event.time += by;
      this.#push(event);
    }
  }

  /**
   * Runs events in order until `until`, or `stop`. Between two events all microtasks run: a tick that is asked for
   * within a microtask comes only after the queue of microtasks is empty.
   */
  async run(until: number): Promise<void> {
    for (;;) {
      const event = this.#heap[0];
      if (event === undefined || event.time > until || this.#stopped) break;
      this.#pop();
      if (event.cancelled || event.process?.dead === true) continue;
      this.now = Math.max(this.now, event.time);
      if (event.process !== null && event.process.pausedUntil > this.now) {
        event.time = event.process.pausedUntil;
        this.#push(event);
        continue;
      }
      event.action();
      await new Promise<void>(drained);
      if (++this.events % 4096 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    if (!this.#stopped) this.now = Math.max(this.now, until);
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const up = (at - 1) >> 1;
      const parent = heap[up];
      if (parent === undefined || !before(event, parent)) break;
      heap[at] = parent;
      at = up;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      let below = heap[child];
      if (below === undefined) break;
      const other = heap[child + 1];
      if (other !== undefined && before(other, below)) {
        child++;
        below = other;
      }
      if (!before(below, last)) break;
      heap[at] = below;
      at = child;
    }
    heap[at] = last;
  }
}

const drained = (resolve: () => void): void => process.nextTick(resolve);
const before = (a: Event, b: Event): boolean => a.time < b.time || (a.time === b.time && a.order < b.order);

/** One life of a process. After a crash nothing of it runs any more; a restart is another one. */
export class Process {
  dead = false;
  pausedUntil = 0;
  /** Milliseconds that its machine was suspended. */
  suspended = 0;
  /** Incarnation of its database that it knows. */
  knows = 0;
  /** Epochs in which it last held shards; only where a rule is removed. */
  held: Map<number, number> | undefined;
  onIncarnation: () => void = () => undefined;
  readonly time: SimTime;

  constructor(
    readonly scheduler: Scheduler,
    readonly site: string,
    readonly name: string,
    readonly rate: number,
  ) {
    this.time = new SimTime(this);
  }
}

const wallStart = Date.parse("2026-01-01T00:00:00Z");

/** A process's clocks: the monotonic one runs at its own rate. */
export class SimTime implements Time {
  readonly #process: Process;

  constructor(process: Process) {
    this.#process = process;
  }

  monotonic(): number {
    const { scheduler, suspended, rate } = this.#process;
    return 1_000 + (scheduler.now - suspended) * rate;
  }

  wall(): number {
    return wallStart + this.#process.scheduler.now;
  }

  after(ms: number, action: () => void): Timer {
    const { scheduler, rate } = this.#process;
    const event = scheduler.after((Math.max(1, ms) + 1e-6) / rate, this.#process, action, true);
    return {
      cancel: () => {
        event.cancelled = true;
      },
    };
  }

  soon(action: () => void): void {
    const { scheduler } = this.#process;
    scheduler.after(0, this.#process, action);
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
}
