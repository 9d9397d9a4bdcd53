import { pack, unpack } from "msgpackr";
import type { Time } from "../../infra/clock.js";
import { asError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Messenger } from "../../infra/nats/messaging.js";
import type { Service } from "../../infra/service.js";
import type { ShardId } from "../../shards/ids.js";
import { registrationOf, type Registered, type Registry } from "./registry.js";
import type { TenantCalls } from "./tenant-calls.js";

export interface ProvisionerKeeperOptions {
  readonly group: string;
  readonly messenger: Messenger;
  readonly registry: Registry;
  readonly calls: TenantCalls;
  readonly time: Time;
  readonly log: Logger;
  /** How long a provisioner may be silent, milliseconds. */
  readonly silentMs: number;
  /** This process acts for its datacenter. */
  readonly active: () => boolean;
  readonly owns: (shard: ShardId) => boolean;
  /** Gives the tasks of its workers in the own shards this much lease; 0: they are offered again. */
  readonly lease: (registration: string, leaseMs: number) => Promise<number>;
  /** At the owner of its shard. */
  readonly remove: (provisioner: Registered) => Promise<void>;
}

/** Sent to all datacenters: any of them may own the tasks that its workers do. */
interface Sign {
  readonly id: string;
  /** False: it has left, its tasks are free. */
  readonly alive: boolean;
}

/** Calls of a busy provisioner come many times a second. */
const signEveryMs = 2_000;

/**
 * Signs of life of provisioners. Their workers have no heartbeat of their own, so each sign holds the leases of all their
 * tasks, in every datacenter. Who stays silent is removed by the owner of the registration's shard. Nothing of this is in
 * the log: after a takeover or a restart everybody is thought to have been heard a moment ago.
 */
export class ProvisionerKeeper implements Service {
  readonly name = "provisioner keeper";
  readonly #o: ProvisionerKeeperOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #heard = new Map<string, number>();
  readonly #signed = new Map<string, number>();
  #unsubscribe: (() => void) | undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: ProvisionerKeeperOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "coopr" });
  }

  async start(): Promise<void> {
    this.#unsubscribe = this.#o.messenger.subscribe(this.#subject, (message) => {
      const sign = unpack(message.data) as Sign;
      if (sign.alive) this.#heard.set(sign.id, this.#o.time.monotonic());
      else this.#heard.delete(sign.id);
      if (this.#o.active()) void this.#hold(sign);
    });
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    await this.#loop;
  }

  /** Tells all datacenters, unless they were told a moment ago. */
  alive(id: string): void {
    const now = this.#o.time.monotonic();
    if (now - (this.#signed.get(id) ?? -Infinity) < Math.min(signEveryMs, this.#o.silentMs / 10)) return;
    this.#signed.set(id, now);
    this.#o.messenger.publish(this.#subject, pack({ id, alive: true } satisfies Sign));
  }

  gone(id: string): void {
    this.#signed.delete(id);
    this.#o.messenger.publish(this.#subject, pack({ id, alive: false } satisfies Sign));
  }

  get #subject(): string {
    return `hothot.${this.#o.group}.coopr.signs`;
  }

  async #hold({ id, alive }: Sign): Promise<void> {
    try {
      const tasks = await this.#o.lease(registrationOf(id), alive ? this.#o.silentMs : 0);
      if (!alive && tasks > 0) this.#log.info("tasks of a provisioner are free", { provisioner: id, tasks });
    } catch (error) {
      // The next sign of life is seconds away; without one the leases run out.
      this.#log.warn("leases of a provisioner's tasks could not be set", { provisioner: id, error: asError(error) });
    }
  }

  async #run(): Promise<void> {
    const { time, silentMs } = this.#o;
    const everyMs = Math.min(5_000, silentMs / 8);
    let last = time.monotonic();
    while (!this.#stop.signal.aborted) {
      await time.sleep(everyMs, this.#stop.signal);
      // A process that stood still has signs of life waiting at its door.
      if (time.monotonic() - last > 3 * everyMs) this.#heard.clear();
      last = time.monotonic();
      if (this.#stop.signal.aborted || !this.#o.active()) continue;
      try {
        await this.#look();
      } catch (error) {
        this.#log.warn("provisioners could not be looked at", { error: asError(error) });
      }
    }
  }

  async #look(): Promise<void> {
    const { registry, time, silentMs, owns } = this.#o;
    const now = time.monotonic();
    const mine = (await registry.all()).filter(({ shard }) => owns(shard as ShardId));
    const known = new Set(mine.map(({ id }) => id));
    for (const id of this.#heard.keys()) if (!known.has(id)) this.#heard.delete(id);
    for (const provisioner of mine) {
      const heard = this.#heard.get(provisioner.id);
      // Just registered, or just ours: it gets the whole time.
      if (heard === undefined) this.#heard.set(provisioner.id, now);
      else if (now - heard > silentMs) await this.#remove(provisioner, now - heard);
    }
  }

  async #remove(provisioner: Registered, silentMs: number): Promise<void> {
    const { id } = provisioner;
    try {
      this.#log.warn("a silent provisioner is removed", { provisioner: id, silentMs });
      await this.#o.remove(provisioner);
      this.gone(id);
      void this.#o.calls.withdraw(provisioner);
    } catch (error) {
      // The next look tries again; meanwhile the others have their turn.
      this.#log.warn("a silent provisioner could not be removed", { provisioner: id, error: asError(error) });
    }
  }
}
