import { asError } from "../../infra/errors.js";
import type { Service } from "../../infra/service.js";
import type { DatacenterParts } from "../datacenter.js";
import { Documents } from "../documents.js";
import type { Extensions } from "../http/index.js";
import type { LongOperation } from "../operation-store.js";
import { Access } from "./access.js";
import { Administration } from "./administration.js";
import { AuditTrail, type AuditEntry } from "./audit.js";
import { audited, auditIdOf } from "./audited.js";
import { AccessBook } from "./book.js";
import { ForbiddenNotes } from "./forbidden.js";
import { ClusterQuotas } from "./quotas.js";
import { WriteRates } from "./write-rates.js";

export { TenantWorkers } from "./tenant-workers.js";

const publisher = "audit";

/** Who may do what, and who did: tokens, tenants, quotas, the audit trail. Wired to a datacenter's process. */
export function createAccess(parts: DatacenterParts) {
  const { config, control, data, time, random, log, router, map, shards, site, servedBy } = parts;
  const documents = new Documents({ router, map, shards, site, random });
  const book = new AccessBook(control, time, log);
  const audit = new AuditTrail({
    database: control,
    time,
    log,
    publish: async (id, body, timeoutMs) => {
      const deadline = time.monotonic() + timeoutMs;
      await documents.put("audit", id, body, { requestId: publisher, traceparent: null, deadline });
    },
    active: () => parts.replicator.holding,
  });
  const note = (entry: AuditEntry): Promise<void> => audit.note(entry);
  const newId = (): string => documents.newId("a-");
  const wall = (): number => time.wall();
  const forbidden = new ForbiddenNotes({ dc: site, note, newId, time });
  const writes = new WriteRates(book, time);
  const access = new Access({
    config,
    book,
    writes,
    time,
    random,
    log,
    onForbidden: (caller, need, request) => forbidden.refused(caller, need, request),
  });
  const administration = new Administration({ book, documents, time, random, servedBy });
  const services: Service[] = [book, audit];
  return {
    access,
    book,
    audit,
    services,
    quotas: new ClusterQuotas(book, data, time),
    writes,
    /** The features of an operator, each with its entry in the audit trail, and those of an administrator. */
    extend: (extensions: Extensions): Extensions =>
      audited(
        {
          ...extensions,
          audit: (page) => audit.list(page),
          addToken: (context, wanted) => administration.addToken(context, wanted),
          listTokens: (page) => administration.listTokens(page),
          removeToken: (context, id) => administration.removeToken(context, id),
          putTenant: (context, name, limits) => administration.putTenant(context, name, limits),
          listTenants: (page) => administration.listTenants(page),
        },
        { dc: site, begin: (entry) => audit.begin(entry), note, newId, wall },
      ),
    /** The end of a long operation stands where its beginning was noted. */
    ended: (operation: LongOperation): void => {
      const { id, kind, startedAt: at, by: who, status: result, error } = operation;
      audit
        .ended(
          { id: auditIdOf(id), at, who, dc: site, action: kind, target: { operation: id }, result, requestId: null },
          error,
        )
        .catch((error: unknown) => log.warn("an audit entry was not completed", { error: asError(error) }));
    },
  };
}
