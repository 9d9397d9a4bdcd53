import type { Service } from "../../infra/service.js";
import { route } from "../../routing/route.js";
import { shardId, type SiteName } from "../../shards/ids.js";
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
  const { config, catalog, data: database, metrics, time, random, log, map, peers, leases } = parts;
  const active = (): boolean => parts.replicator.holding;
  /** A datacenter whose nodes all say that they have no lease answers for nothing. */
  const owner = (shard: number): SiteName | null => {
    const head = map.get(shardId(shard));
    if (head?.owner == null) return null;
    const ownerState = peers.state(head.owner);
    const where = route({ self: config.site, head, leaseValid: leases.valid, ownerState });
    if (where.kind === "wait" || (where.kind === "forward" && ownerState === "fenced")) return null;
    return head.owner;
  };
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
    new FinishForwarder({ store, send, owner, time, random, log, active }),
    new TaskRetention({ database, keepMs: config.taskRetentionMs, time, log, active }),
  ];
}
