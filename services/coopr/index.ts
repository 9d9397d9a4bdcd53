import type { Service } from "../../infra/service.js";
import type { Command, Reply, RequestContext } from "../api.js";
import type { DatacenterParts } from "../datacenter.js";
import type { FinishStore } from "../jobs/finish-store.js";
import { Adapter } from "./adapter.js";
import { ProvisionerKeeper } from "./keeper.js";
import { registrationOf, registrationTenant, Registry, wasSilent } from "./registry.js";
import { CooprServer } from "./server.js";
import { knownTasks } from "./task-config.js";
import { TenantCalls } from "./tenant-calls.js";

/**
 * The adapter for Coopr's provisioners: the keeper in every process, since a provisioner's tasks may be owned anywhere; the
 * listener where a port is set.
 */
export function createCoopr(
  parts: DatacenterParts,
  execute: (context: RequestContext, command: Command) => Promise<Reply>,
  finishes: FinishStore,
): Service[] {
  const { config, time, random, log, dispatcher } = parts;
  const registry = new Registry(parts.data);
  const calls = new TenantCalls({ tenants: config.cooprTenants, time, log });
  const keeper = new ProvisionerKeeper({
    group: config.group,
    messenger: parts.links.main,
    registry,
    calls,
    time,
    log,
    silentMs: config.cooprSilentMs,
    active: () => parts.replicator.holding,
    owns: (shard) => {
      const head = parts.map.get(shard);
      return head?.owner === config.site && head.state === "owned" && head.confirmed && parts.leases.valid;
    },
    lease: (registration, leaseMs) => dispatcher.heard(registration, leaseMs),
    remove: async ({ id }) => {
      await execute(
        {
          requestId: `coopr-${random.token(12)}`,
          caller: { tenant: registrationTenant, principal: "coopr" },
          deadline: time.monotonic() + 5_000,
          durability: "local",
          consistency: "local",
        },
        { type: "worker.delete", workerId: registrationOf(id), why: wasSilent },
      );
    },
  });
  if (config.cooprPort === undefined || !config.roles.includes("api")) return [keeper];
  const adapter = new Adapter({
    registry,
    calls,
    keeper,
    dispatcher,
    finishes,
    execute,
    taskNames: () => taskNamesOf(parts),
    tenants: config.cooprTenants,
    silentMs: config.cooprSilentMs,
    time,
    random,
    log,
  });
  const server = new CooprServer({
    host: config.cooprHost,
    port: config.cooprPort,
    drainMs: config.drainMs,
    routes: adapter.routes,
    time,
    log,
  });
  return [keeper, server];
}

function taskNamesOf(parts: DatacenterParts): string[] {
  const names = [...parts.catalog.current.operations.values()].flatMap(({ stages }) =>
    stages.flatMap(({ tasks }) => tasks),
  );
  return [...new Set(names)].filter((name) => knownTasks.has(name.toUpperCase()));
}
