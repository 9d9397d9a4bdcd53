import type { Client, Send } from "../infra/postgres/database.js";
import { comparePlaces, type Epoch, type Position, type ShardId } from "../shards/ids.js";
import type { ClusterRow, DocumentRow, JobRow, KeyRow, Placed, WorkerRow } from "./entities.js";
import { writeLoads, type PlacedLoad } from "./load.js";
import type { LogRecord } from "./record.js";
import type { Trace } from "./work.js";
import { shapes, supersedeStatement, upsert } from "./rows.js";

export interface RecordRequest extends Trace {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly type: string;
}

const requestsNamed = 200;

/** The newest version of each replicated row, gathered from many records. */
export class RowSet {
  readonly loads: PlacedLoad[] = [];
  readonly clusters = new Map<string, ClusterRow>();
  readonly jobs = new Map<string, JobRow>();
  readonly workers = new Map<string, WorkerRow>();
  readonly documents = new Map<string, DocumentRow>();
  readonly keys = new Map<string, KeyRow>();

  /** Which request each record came from, for logs: at most so many. */
  readonly requests: RecordRequest[] = [];

  add(record: LogRecord, shard: ShardId, epoch: Epoch, position: Position): void {
    if (record.trace !== undefined && this.requests.length < requestsNamed)
      this.requests.push({ ...record.trace, shard, epoch, position, type: record.type });
    const place: Placed = { changedEpoch: epoch, changedPosition: position };
    if (record.load !== undefined) {
      const { payload } = record.load;
      if (!(payload instanceof Uint8Array)) throw new TypeError("a load is fetched before it is applied");
      this.loads.push({ shard, epoch, position, load: { ...record.load, payload } });
    }
    if (record.cluster !== undefined)
      put(this.clusters, `${record.cluster.tenant}/${record.cluster.id}`, { ...record.cluster, ...place });
    if (record.job !== undefined) put(this.jobs, record.job.id, { ...record.job, ...place });
    if (record.worker !== undefined)
      put(this.workers, `${record.worker.tenant}/${record.worker.id}`, { ...record.worker, ...place });
    if (record.document !== undefined)
      put(this.documents, `${record.document.kind}/${record.document.id}`, { ...record.document, ...place });
    if (record.key !== undefined)
      put(this.keys, `${record.key.tenant}/${record.key.shard}/${record.key.key}`, { ...record.key, ...place });
  }

  /** Waits for the loads alone, whose COPY shares a connection with nothing; the other statements go to `send`. */
  async write(client: Client, send: Send): Promise<void> {
    if (this.loads.length > 0) await writeLoads(client, this.loads);
    const keys = [...this.keys.values()];
    for (const [shape, rows] of [
      [shapes.clusters, [...this.clusters.values()]],
      [shapes.jobs, [...this.jobs.values()]],
      [shapes.workers, [...this.workers.values()]],
      [shapes.documents, [...this.documents.values()]],
      [shapes.keys, keys],
    ] as const)
      if (rows.length > 0) send(upsert(client, shape, rows));
    if (keys.length > 0) send(supersede(client, keys));
  }
}

export async function supersede(client: Client, keys: readonly KeyRow[]): Promise<void> {
  await client.query({
    name: "supersede",
    text: supersedeStatement(1),
    values: [keys.map((row) => row.tenant), keys.map((row) => row.key), keys.map((row) => row.shard)],
  });
}

function put<T extends Placed>(rows: Map<string, T>, key: string, row: T): void {
  const before = rows.get(key);
  const older =
    before !== undefined &&
    comparePlaces(
      { epoch: before.changedEpoch, position: before.changedPosition },
      { epoch: row.changedEpoch, position: row.changedPosition },
    ) > 0;
  if (!older) rows.set(key, row);
}
