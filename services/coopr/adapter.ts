import type { Time } from "../../infra/clock.js";
import { asError, Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import type { Command, Reply, RequestContext } from "../api.js";
import type { Dispatcher } from "../jobs/dispatcher.js";
import { answerTo } from "../jobs/finish-forwarder.js";
import type { FinishCommand, FinishStore } from "../jobs/finish-store.js";
import type { ProvisionerKeeper } from "./keeper.js";
import {
  labelsOf,
  registrationOf,
  registrationTenant,
  tenantOf,
  wasSilent,
  type Provisioner,
  type Registered,
  type Registry,
} from "./registry.js";
import { check, CooprRefusal, type CooprAnswer, type CooprCall, type CooprRoute } from "./server.js";
import { configOf, type TaskInput } from "./task-config.js";
import type { TenantCalls } from "./tenant-calls.js";
import * as wire from "./wire.js";

export interface AdapterOptions {
  readonly registry: Registry;
  readonly calls: TenantCalls;
  readonly keeper: Pick<ProvisionerKeeper, "alive" | "gone">;
  readonly dispatcher: Pick<Dispatcher, "take">;
  readonly finishes: FinishStore;
  /** To the shard's owner. @throws Problem */
  readonly execute: (context: RequestContext, command: Command) => Promise<Reply>;
  /** Names of the catalog's tasks that a provisioner's worker knows. */
  readonly taskNames: () => readonly string[];
  readonly tenants: readonly string[];
  readonly silentMs: number;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
}

/** Milliseconds for a request to reach an owner. */
const ownerMs = 10_000;
/** A worker waits this long for its finish's answer; what is stored by then is forwarded later. */
const finishMs = 8_000;
/** A registration that was just made elsewhere may still be on its way. */
const graceMs = 500;

/** What provisioners ask, in the words of this group: README.md. */
export class Adapter {
  readonly #o: AdapterOptions;
  readonly #log: Logger;

  constructor(options: AdapterOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "coopr" });
  }

  get routes(): CooprRoute[] {
    const one = /^\/v2\/provisioners\/([^/]+)$/;
    return [
      { method: "PUT", path: one, handle: (call) => this.#register(call) },
      { method: "DELETE", path: one, handle: (call) => this.#unregister(call) },
      {
        method: "POST",
        path: /^\/v2\/provisioners\/([^/]+)\/heartbeat$/,
        handle: (call) => this.#heartbeat(call),
      },
      { method: "POST", path: /^\/v2\/tasks\/take$/, handle: (call) => this.#take(call) },
      { method: "POST", path: /^\/v2\/tasks\/finish$/, handle: (call) => this.#finish(call) },
    ];
  }

  async #register({ id, body }: CooprCall): Promise<CooprAnswer> {
    check(wire.provisionerId, id);
    const given = check(wire.registration, body);
    if (given.id !== undefined && given.id !== id) throw new CooprRefusal(400, `id: must be ${id}, as in the path`);
    const provisioner: Provisioner = { id, capacity: given.capacityTotal, host: given.host, port: given.port };
    // One that is known as it is needs no owner: it may come from a datacenter that has just died.
    if (!isSame(await this.#o.registry.find(id), provisioner)) {
      await this.#put(provisioner);
      await this.#seen(id, (found) => isSame(found, provisioner));
    }
    this.#o.keeper.alive(id);
    return { status: 200, body: {}, after: () => void this.#o.calls.assign(provisioner) };
  }

  async #unregister({ id }: CooprCall): Promise<CooprAnswer> {
    const provisioner = await this.#known(id);
    if (provisioner === undefined) throw new CooprRefusal(404, `there is no provisioner ${id}`);
    await this.#execute({ type: "worker.delete", workerId: registrationOf(id) });
    await this.#seen(id, (found) => found?.deleted !== false);
    this.#o.keeper.gone(id);
    return { status: 200, body: {}, after: () => void this.#o.calls.withdraw(provisioner) };
  }

  async #heartbeat({ id, body }: CooprCall): Promise<CooprAnswer> {
    const { usage } = check(wire.heartbeat, body ?? {});
    const found = await this.#seen(id, (each) => each !== undefined);
    if (found !== undefined && !found.deleted) {
      this.#o.keeper.alive(id);
      return { status: 200, body: {}, after: () => this.#o.calls.check(found, usage) };
    }
    // It was removed while it was silent, and not every provisioner registers anew when it is told so: it is taken back.
    const back = found?.removed === wasSilent ? () => void this.#takeBack(found) : () => undefined;
    return { status: 404, body: { error: `there is no provisioner ${id}` }, after: back };
  }

  async #take({ body, signal }: CooprCall): Promise<CooprAnswer> {
    const { provisionerId, workerId, tenantId } = check(wire.take, body);
    const { dispatcher, taskNames, tenants, silentMs, keeper } = this.#o;
    if (!tenants.includes(tenantId)) throw new CooprRefusal(403, `no provisioner works for the tenant ${tenantId}`);
    const registration = { tenant: registrationTenant, id: registrationOf(provisionerId) };
    try {
      const [task] = await dispatcher.take(
        {
          tenant: tenantOf(tenantId),
          workerId: holderOf(provisionerId, workerId),
          registration,
          leaseMs: silentMs,
          names: taskNames(),
          waitMs: 0,
          max: 1,
        },
        signal,
      );
      keeper.alive(provisionerId);
      if (task === undefined) return { status: 204 };
      const input = task.input as unknown as TaskInput & { readonly try: number };
      return {
        status: 200,
        body: {
          taskId: wire.taskIdFor({ id: task.id, token: task.token, try: input.try }),
          jobId: task.jobId,
          clusterId: task.clusterId,
          taskName: task.name.toUpperCase(),
          nodeId: task.node ?? "",
          config: configOf(task.name, input),
        },
      };
    } catch (error) {
      if (error instanceof Problem && error.code === "not_found") throw unknown(provisionerId);
      throw error;
    }
  }

  /** It comes once: it is stored before anything else is done, and kept until an owner has answered it. */
  async #finish({ body }: CooprCall): Promise<CooprAnswer> {
    const given = check(wire.finish, body);
    const { finishes, execute, time, random, keeper } = this.#o;
    const { provisionerId, workerId, tenantId } = given;
    const ids = wire.parseTaskIdFor(given.taskId);
    if (ids === undefined) throw await this.#notIts(provisionerId);
    const command: FinishCommand = {
      type: "task.finish",
      ...ids,
      workerId: holderOf(provisionerId, workerId),
      ...wire.outcomeOf(given),
    };
    const caller = { tenant: tenantOf(tenantId), principal: `provisioner ${provisionerId}` };
    const key = await finishes.keep(caller, command, 2 * finishMs).catch((error: unknown) => {
      this.#log.error("a finish can't be stored, it goes on without", { task: command.taskId, error: asError(error) });
      return undefined;
    });
    keeper.alive(provisionerId);
    let answer: string;
    try {
      const options = { deadline: time.monotonic() + finishMs, requestId: `coopr-${random.token(12)}` };
      answer = await answerTo({ caller, command }, (context, order) => execute(context, order), options);
    } catch (error) {
      const kept = key ?? (await finishes.keep(caller, command, 0).catch(() => undefined));
      if (kept === undefined) throw error;
      this.#log.warn("a finish waits for an owner", { task: command.taskId, error: asError(error) });
      await finishes.later(kept, 0).catch(() => undefined);
      return { status: 200, body: {} };
    }
    // One that stays is forwarded once more, which changes nothing.
    if (key !== undefined) await finishes.forget(key).catch(() => undefined);
    if (answer !== "ok") throw await this.#notIts(provisionerId);
    return { status: 200, body: {} };
  }

  async #notIts(provisionerId: string): Promise<CooprRefusal> {
    if ((await this.#known(provisionerId).catch(() => undefined)) === undefined) return unknown(provisionerId);
    return new CooprRefusal(417, "the task is not this worker's any more");
  }

  async #takeBack(provisioner: Registered): Promise<void> {
    try {
      await this.#put(provisioner);
      this.#o.keeper.alive(provisioner.id);
      void this.#o.calls.assign(provisioner);
      this.#log.info("a provisioner that was silent is back", { provisioner: provisioner.id });
    } catch (error) {
      this.#log.warn("a provisioner that was silent could not be taken back", {
        provisioner: provisioner.id,
        error: asError(error),
      });
    }
  }

  #put(provisioner: Provisioner): Promise<Reply> {
    return this.#execute({
      type: "worker.put",
      workerId: registrationOf(provisioner.id),
      capacity: provisioner.capacity,
      labels: labelsOf(provisioner),
    });
  }

  /** Replicated before it is answered: a provisioner registers once. */
  #execute(command: Command): Promise<Reply> {
    const { execute, time, random } = this.#o;
    return execute(
      {
        requestId: `coopr-${random.token(12)}`,
        caller: { tenant: registrationTenant, principal: "coopr" },
        deadline: time.monotonic() + ownerMs,
        durability: "replicated",
        consistency: "local",
      },
      command,
    );
  }

  async #known(id: string): Promise<Registered | undefined> {
    const found = await this.#seen(id, (each) => each !== undefined);
    return found?.deleted === false ? found : undefined;
  }

  /** What this datacenter's copy has, once that is what is waited for, or after a short while. */
  async #seen(id: string, wanted: (found: Registered | undefined) => boolean): Promise<Registered | undefined> {
    const until = this.#o.time.monotonic() + graceMs;
    for (;;) {
      const found = await this.#o.registry.find(id);
      if (wanted(found) || this.#o.time.monotonic() >= until) return found;
      await this.#o.time.sleep(10);
    }
  }
}

/** Of all workers in the group, this one. */
const holderOf = (provisionerId: string, workerId: string): string => `${registrationOf(provisionerId)}/${workerId}`;

const unknown = (id: string): CooprRefusal => new CooprRefusal(403, `there is no provisioner ${id}; register it first`);

function isSame(known: Registered | undefined, given: Provisioner): boolean {
  return (
    known !== undefined &&
    !known.deleted &&
    known.capacity === given.capacity &&
    known.host === given.host &&
    known.port === given.port
  );
}
