import type { Time } from "../../infra/clock.js";
import { asError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Provisioner } from "./registry.js";

const tries = 2;
const apartMs = 500;
const tryMs = 3_000;
/** A provisioner that has been told starts its workers; it is told again only if they are missing after this time. */
const settleMs = 30_000;

/** Calls back to provisioners: which tenants they work for, with how many workers. Without that none of their workers starts. */
export class TenantCalls {
  readonly #tenants: readonly string[];
  readonly #time: Time;
  readonly #log: Logger;
  /** When a provisioner was told last, monotonic milliseconds; by its id and place. */
  readonly #told = new Map<string, number>();
  readonly #underWay = new Map<string, Promise<void>>();

  constructor(options: { readonly tenants: readonly string[]; readonly time: Time; readonly log: Logger }) {
    this.#tenants = options.tenants;
    this.#time = options.time;
    this.#log = options.log.with({ component: "coopr" });
  }

  /** The capacity, shared among the tenants; the first ones get what is left over. */
  workersOf(provisioner: Provisioner): Map<string, number> {
    const count = this.#tenants.length;
    return new Map(
      this.#tenants.map((tenant, index) => [
        tenant,
        Math.floor(provisioner.capacity / count) + (index < provisioner.capacity % count ? 1 : 0),
      ]),
    );
  }

  /** Tells it all its tenants, after those calls to it that are under way. Never rejects. */
  assign(provisioner: Provisioner): Promise<void> {
    return this.#inTurn(provisioner, async () => {
      let all = true;
      for (const [tenant, workers] of this.workersOf(provisioner))
        all = (await this.#call(provisioner, "PUT", tenant, { workers, resources: {} })) && all;
      if (all) this.#told.set(placeOf(provisioner), this.#time.monotonic());
    });
  }

  /** Takes its tenants away. Never rejects. */
  withdraw(provisioner: Provisioner): Promise<void> {
    return this.#inTurn(provisioner, async () => {
      this.#told.delete(placeOf(provisioner));
      for (const tenant of this.#tenants) await this.#call(provisioner, "DELETE", tenant);
    });
  }

  /** A heartbeat that misses a tenant: the provisioner was never told (its datacenter died meanwhile), or has forgotten. */
  check(provisioner: Provisioner, usage: Readonly<Record<string, number>> | undefined): void {
    if (usage === undefined || provisioner.capacity === 0) return;
    const told = this.#told.get(placeOf(provisioner));
    if (told !== undefined && this.#time.monotonic() - told < settleMs) return;
    const missing = [...this.workersOf(provisioner)].some(([tenant, workers]) => workers > 0 && !(usage[tenant] ?? 0));
    if (missing && !this.#underWay.has(placeOf(provisioner))) void this.assign(provisioner);
  }

  #inTurn(provisioner: Provisioner, action: () => Promise<void>): Promise<void> {
    const place = placeOf(provisioner);
    const turn = (this.#underWay.get(place) ?? Promise.resolve()).then(action).finally(() => {
      if (this.#underWay.get(place) === turn) this.#underWay.delete(place);
    });
    this.#underWay.set(place, turn);
    return turn;
  }

  async #call(provisioner: Provisioner, method: "PUT" | "DELETE", tenant: string, body?: object): Promise<boolean> {
    const { id, host, port } = provisioner;
    const url = addressOf(provisioner, tenant);
    if (url === undefined) {
      this.#log.warn("a provisioner's address is none: it is not called", { provisioner: id, host, port });
      return false;
    }
    let failure: unknown;
    for (let number = 1; number <= tries; number++) {
      if (number > 1) await this.#time.sleep(apartMs);
      const late = new AbortController();
      const timer = this.#time.after(tryMs, () => late.abort(new Error(`no answer within ${tryMs} ms`)));
      try {
        const answer = await fetch(url, {
          method,
          signal: late.signal,
          redirect: "error",
          ...(body === undefined
            ? {}
            : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
        });
        await answer.body?.cancel();
        if (answer.ok || (method === "DELETE" && answer.status === 404)) return true;
        failure = new Error(`it answered ${answer.status}`);
      } catch (error) {
        failure = error;
      } finally {
        timer.cancel();
      }
    }
    this.#log.warn("a provisioner could not be told about a tenant", {
      provisioner: id,
      tenant,
      method,
      error: asError(failure),
    });
    return false;
  }
}

/** Undefined for what is no host's name or address, or no port: a registration is what somebody once sent. */
export function addressOf({ host, port }: Pick<Provisioner, "host" | "port">, tenant: string): URL | undefined {
  const isName = /^[A-Za-z0-9._-]{1,255}$/.test(host);
  const isAddress6 = /^[0-9A-Fa-f:.]{2,45}$/.test(host) && host.includes(":");
  if (!(isName || isAddress6) || !Number.isInteger(port) || port < 1 || port > 65_535) return undefined;
  try {
    return new URL(`/v2/tenants/${encodeURIComponent(tenant)}`, `http://${isName ? host : `[${host}]`}:${port}`);
  } catch {
    return undefined;
  }
}

const placeOf = ({ id, host, port }: Provisioner): string => `${id} ${host} ${port}`;
