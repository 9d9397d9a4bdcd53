import { Problem } from "../../infra/errors.js";
import type { Operation } from "../../replication/work.js";
import type { ShardId } from "../../shards/ids.js";
import { timeOf } from "./rows.js";
import { workerView, type WorkerState } from "./views.js";

export interface Registration {
  readonly tenant: string;
  readonly id: string;
  /** hash(id) mod shards. */
  readonly shard: ShardId;
  /** How many tasks it may have at once. */
  readonly capacity: number;
  readonly labels: Readonly<Record<string, string>>;
}

/** 200 with the registration. One that changes nothing makes no record, so workers may repeat it as they like. */
export function putWorker(registration: Registration): Operation {
  const { tenant, id, shard, capacity, labels } = registration;
  return {
    shard,
    needs: { workers: [{ tenant, id }] },
    decide: (work) => {
      const known = work.worker(tenant, id);
      if (known !== undefined && !known.deleted && known.capacity === capacity && sameLabels(known.labels, labels)) {
        return { status: 200, body: workerView(known) };
      }
      const registeredAt = known === undefined || known.deleted ? timeOf(work.now) : known.registeredAt;
      const worker: WorkerState = { id, shard, tenant, capacity, labels, registeredAt, deleted: false };
      work.record({ type: "worker.put", worker });
      return { status: 200, body: workerView(worker) };
    },
  };
}

/** 204; its tasks are offered again when their leases run out. `why` stays with the tombstone. @throws (in `decide`) Problem not_found. */
export function deleteWorker(tenant: string, id: string, shard: ShardId, why?: string): Operation {
  return {
    shard,
    needs: { workers: [{ tenant, id }] },
    decide: (work) => {
      const known = work.worker(tenant, id);
      if (known === undefined || known.deleted) throw unknownWorker(id);
      const { changedEpoch: _epoch, changedPosition: _position, ...rest } = known;
      const labels = why === undefined ? rest.labels : { ...rest.labels, removed: why };
      work.record({ type: "worker.delete", worker: { ...rest, labels, deleted: true } });
      return { status: 204, body: null };
    },
  };
}

/** 200 `{}`; changes nothing. @throws (in `decide`) Problem not_found. */
export function heartbeatWorker(tenant: string, id: string, shard: ShardId): Operation {
  return {
    shard,
    needs: { workers: [{ tenant, id }] },
    decide: (work) => {
      const known = work.worker(tenant, id);
      if (known === undefined || known.deleted) throw unknownWorker(id);
      return { status: 200, body: {} };
    },
  };
}

export const unknownWorker = (id: string): Problem =>
  new Problem("not_found", `There is no worker ${id}; register it first.`);

function sameLabels(a: Readonly<Record<string, string>>, b: Readonly<Record<string, string>>): boolean {
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
}
