import { Problem } from "../infra/errors.js";
import type { ClusterRow } from "../replication/entities.js";
import { decodeRecord } from "../replication/record.js";
import type { Command, Reply, RequestContext } from "./api.js";
import type { DatacenterParts } from "./datacenter.js";
import type { Face } from "./face.js";
import { loadKeyPrefix } from "./bulk.js";

interface Row {
  readonly id: string;
  readonly status: string;
  readonly type: string;
  readonly tenant: string;
  readonly clusterId: string;
  readonly version: number | null;
  readonly idempotencyKey: string | null;
  readonly value: unknown;
  /** As it stood in the outbox. */
  readonly record: Buffer;
}

/** What an operator does with an operation that a former owner committed and never published (section 6). */
export class DivergentOperations {
  readonly #p: DatacenterParts;
  readonly #face: Face;

  constructor(parts: DatacenterParts, face: Face) {
    this.#p = parts;
    this.#face = face;
  }

  /**
   * Writes it again, on condition that the cluster still is at the version that the operation saw.
   * @throws Problem not_found, invalid_transition, version_mismatch
   */
  async replay(context: RequestContext, id: string): Promise<Reply> {
    const row = await this.#open(id);
    const { key, fingerprint } = keyOf(row);
    const reply = await this.#face.execute(
      {
        ...context,
        caller: { ...context.caller, tenant: row.tenant },
        idempotencyKey: key,
        consistency: "owner",
      },
      commandOf(row),
      fingerprint,
    );
    reply.confirm?.();
    await this.#settle(id, reply.replayed === true ? ["open"] : ["open", "superseded"], "replayed");
    const { replayed: _ofTheWrite, ...rest } = reply;
    return { ...rest, status: 200, body: await this.#face.divergentById(id) };
  }

  /** @throws Problem not_found, invalid_transition */
  async discard(_context: RequestContext, id: string): Promise<Reply> {
    await this.#open(id);
    await this.#settle(id, ["open"], "discarded");
    return { status: 200, body: await this.#face.divergentById(id), servedBy: this.#p.servedBy };
  }

  async #open(id: string): Promise<Row> {
    const row = (await this.#p.data.db
      .selectFrom("divergentOperations")
      .select(["id", "status", "type", "tenant", "clusterId", "version", "idempotencyKey", "value", "record"])
      .where("id", "=", id)
      .executeTakeFirst()) as Row | undefined;
    if (row === undefined) throw new Problem("not_found", `There is no divergent operation ${id} here.`);
    if (row.status !== "open") throw new Problem("invalid_transition", `The operation is ${row.status} already.`);
    return row;
  }

  /** @param from its own write with its own key may have superseded it already */
  async #settle(id: string, from: readonly string[], status: "replayed" | "discarded"): Promise<void> {
    await this.#p.data.db
      .updateTable("divergentOperations")
      .set({ status })
      .where("id", "=", id)
      .where("status", "in", from)
      .execute();
  }
}

/**
 * Twice asked for, or asked for while the first answer is on its way, it takes effect once. It is the same request as the caller's: who
 * repeats that gets this answer. The key of a load is that of many operations.
 */
function keyOf(row: Row): { readonly key: string; readonly fingerprint?: string } {
  if (row.idempotencyKey === null || row.idempotencyKey.startsWith(loadKeyPrefix))
    return { key: `divergent-${row.id}` };
  const first = decodeRecord(row.record).key;
  return { key: row.idempotencyKey, ...(first === undefined ? {} : { fingerprint: first.fingerprint }) };
}

function commandOf(row: Row): Command {
  const cluster = (row.value as { readonly cluster?: ClusterRow }).cluster;
  if (cluster === undefined || row.version === null || (row.type !== "cluster.put" && row.type !== "cluster.delete"))
    throw new Problem(
      "invalid_transition",
      `An operation of type ${row.type} can't be replayed: start the job again, or discard it.`,
    );
  const seen = row.version - 1;
  const condition = seen === 0 ? { absent: true } : { version: seen };
  if (row.type === "cluster.delete") return { type: "cluster.delete", id: row.clusterId, condition };
  const { name, spec, state, labels, expiresAt } = cluster;
  return { type: "cluster.put", id: row.clusterId, fields: { name, spec, state, labels, expiresAt }, condition };
}
