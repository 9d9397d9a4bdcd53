import type { Time } from "../../infra/clock.js";
import type { Service } from "../../infra/service.js";

const tickMs = 1_000;

/** One worker for each tenant that is known, since no worker sees another tenant's tasks. */
export class TenantWorkers implements Service {
  readonly name = "built-in workers";
  readonly #workers = new Map<string, Service>();
  readonly #stop = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(
    private readonly tenants: () => Iterable<string>,
    private readonly make: (tenant: string) => Service,
    private readonly time: Time,
  ) {}

  async start(): Promise<void> {
    await this.#look();
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.time.sleep(tickMs, this.#stop.signal);
        await this.#look();
      }
    })();
  }

  async drain(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    await Promise.all([...this.#workers.values()].map(async (worker) => worker.drain?.()));
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
    await Promise.all([...this.#workers.values()].map((worker) => worker.stop()));
  }

  async #look(): Promise<void> {
    for (const tenant of this.tenants())
      if (!this.#workers.has(tenant) && !this.#stop.signal.aborted) {
        const worker = this.make(tenant);
        this.#workers.set(tenant, worker);
        await worker.start();
      }
  }
}
