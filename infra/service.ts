/**
 * What runs has three calls, in this order. `drain` stops taking new work and finishes what was accepted;
 * `stop` releases everything. Both may be called twice and by several callers, who share one promise.
 */
export interface Service {
  readonly name: string;
  start(): Promise<void>;
  drain?(): Promise<void>;
  stop(): Promise<void>;
}

/** Starts services in order; drains and stops them in reverse. A start that fails stops what had been started. */
export class ServiceGroup implements Service {
  readonly name = "group";
  readonly #services: readonly Service[];
  readonly #started: Service[] = [];
  #stopping: Promise<void> | undefined;
  #draining: Promise<void> | undefined;

  constructor(services: readonly Service[]) {
    this.#services = services;
  }

  async start(): Promise<void> {
    for (const service of this.#services) {
      this.#started.push(service);
      try {
        await service.start();
      } catch (error) {
        await this.stop();
        throw error;
      }
    }
  }

  drain(): Promise<void> {
    return (this.#draining ??= (async () => {
      for (const service of [...this.#started].reverse()) await service.drain?.();
    })());
  }

  stop(): Promise<void> {
    return (this.#stopping ??= (async () => {
      const failures: unknown[] = [];
      for (const service of this.#started.reverse()) {
        try {
          await service.stop();
        } catch (error) {
          failures.push(error);
        }
      }
      if (failures.length > 0) throw new AggregateError(failures, "some services failed to stop");
    })());
  }
}
