import type { Service } from "../../infra/service.js";
import type { Command, Reply, RequestContext } from "../api.js";
import type { DatacenterParts } from "../datacenter.js";
import { CatalogWatch } from "./catalog-watch.js";
import { FinishForwarder } from "./finish-forwarder.js";
import type { FinishStore } from "./finish-store.js";
import { TaskRetention } from "./task-retention.js";

/** What jobs need beside requests and the dispatcher: stored finishes, the catalog's file (also read on SIGHUP), old tasks. */
export function createUpkeep(
  parts: DatacenterParts,
  send: (context: RequestContext, command: Command) => Promise<Reply>,
  store: FinishStore,
): Service[] {
  const { config, catalog, data: database, metrics, time, random, log } = parts;
  const active = (): boolean => parts.replicator.holding;
  const watch = new CatalogWatch({
    file: config.catalog,
    catalog,
    time,
    log,
    onFault: () => metrics.catalogFaults.inc(),
  });
  if (config.catalog !== undefined) process.on("SIGHUP", () => watch.look());
  return [
    watch,
    new FinishForwarder({ store, send, time, random, log, active }),
    new TaskRetention({ database, keepMs: config.taskRetentionMs, time, log, active }),
  ];
}
