import { monitorEventLoopDelay, type IntervalHistogram } from "node:perf_hooks";
import type { Time } from "./clock.js";
import type { Service } from "./service.js";

const resolutionMs = 20;
const windowMs = 1_000;

/** How late this process's event loop was in the last second, milliseconds. */
export interface LoopLag {
  readonly medianMs: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

/** Measures the event loop's lag: what every timer and every answer of this process comes too late. */
export class EventLoop implements Service {
  readonly name = "event-loop";
  readonly #histogram: IntervalHistogram = monitorEventLoopDelay({ resolution: resolutionMs });
  readonly #stop = new AbortController();
  #lag: LoopLag = { medianMs: 0, p99Ms: 0, maxMs: 0 };

  constructor(private readonly time: Time) {}

  get lag(): LoopLag {
    return this.#lag;
  }

  async start(): Promise<void> {
    this.#histogram.enable();
    void (async () => {
      while (!this.#stop.signal.aborted) {
        await this.time.sleep(windowMs, this.#stop.signal);
        // What is measured is the time between two ticks, nanoseconds.
        const late = (ns: number): number => Math.max(0, ns / 1e6 - resolutionMs);
        const { max } = this.#histogram;
        this.#lag = {
          medianMs: late(this.#histogram.percentile(50)),
          p99Ms: late(this.#histogram.percentile(99)),
          maxMs: late(max),
        };
        this.#histogram.reset();
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#histogram.disable();
  }
}
