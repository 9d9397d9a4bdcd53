import type { ColumnType, Generated } from "kysely";

/**
 * The tables of a datacenter's database. Replicated tables (clusters, jobs, workers, documents, idempotency_keys) are written by the
 * owner's transaction and by the applier alone; each row keeps (changed_epoch, changed_position) of its last change.
 * Names in TypeScript are camelCase (CamelCasePlugin); times are read as RFC 3339 with milliseconds.
 */
export interface Tables {
  meta: MetaTable;
  shardHead: ShardHeadTable;
  partitionProgress: PartitionProgressTable;
  clusters: ClustersTable;
  jobs: JobsTable;
  tasks: TasksTable;
  workers: WorkersTable;
  documents: DocumentsTable;
  idempotencyKeys: KeysTable;
  auditPending: AuditPendingTable;
  outbox: OutboxTable;
  history: HistoryTable;
  divergentOperations: DivergentTable;
  restores: RestoresTable;
  snapshots: SnapshotsTable;
  siteVotes: SiteVotesTable;
  siteIncarnations: SiteIncarnationsTable;
  nodes: NodesTable;
  locks: LocksTable;
  carriedProgress: CarriedProgressTable;
  storedFinishes: StoredFinishesTable;
  operations: OperationsTable;
}

type Json<T = unknown> = ColumnType<T, string, string>;
type Time = ColumnType<string, string, string>;
type TimeOrNull = ColumnType<string | null, string | null, string | null>;

interface PlacedColumns {
  changedEpoch: number;
  changedPosition: number;
  /** Of the row as it was last written; a row that does not equal it was damaged at rest (replication/digest.ts). */
  digest: Generated<number>;
}

export interface MetaTable {
  /** Always true: one row. */
  singleton: Generated<boolean>;
  groupName: string;
  datacenter: string;
  generation: number;
  shards: number;
  partitions: number;
  /** Identity of the database as it is now (rule i): what it was when last met, and since. */
  systemId: string;
  /** Raised (by hand, or by a new system identifier) when an older copy was put back. */
  restoreNumber: number;
  /** The restore number under which the database was last met. */
  metRestoreNumber: number;
  timeline: number;
  /** When the first process of the datacenter started, after none was left: owned shards are confirmed anew in each run. */
  run: string;
}

export interface ShardHeadTable {
  shard: number;
  partition: number;
  owner: string | null;
  epoch: number;
  state: "replica" | "owned" | "moving" | "suspended";
  /** Owner: last committed. Replica: high-water mark. */
  position: number;
  /** Last position in the log, as far as known here; the log's tail decides. */
  published: number;
  /** First epoch of this datacenter's unbroken ownership; 0 when it isn't the owner. */
  tenure: number;
  fencedThrough: number;
  /** Other than 0: only an own open that was sent knowing this closing brings the shard back (rule i). */
  closing: number;
  /** The log has confirmed the ownership in this run of the datacenter (rule g). */
  confirmed: boolean;
  since: Time;
  kind: string;
  reason: string;
  epochEnds: Json<readonly { epoch: number; owner: string; last: number }[]>;
  /** Why no record is applied any more; null: all is well. */
  stopped: string | null;
  /** It stopped at this message of its partition, which this program could not read; null: for another reason. */
  unread: number | null;
  /** It stopped, and shall be copied again. */
  recopy: Generated<boolean>;
  /** Where a digest of the log was last compared with this copy's, and whether they were equal. */
  comparedEpoch: Generated<number>;
  comparedPosition: Generated<number>;
  comparedEqual: Generated<boolean>;
  /** Exclusive-or of the digests of the shard's rows, kept with each change of them: what should be here. */
  digest: Generated<number>;
  /** Grows with each change of owner, epoch, state or confirmation: a node's view only moves forward. */
  revision: number;
}

export interface PartitionProgressTable {
  partition: number;
  /** Every message of the stream up to this one is folded in. */
  sequence: number;
}

export interface ClustersTable extends PlacedColumns {
  tenant: string;
  id: string;
  shard: number;
  status: string;
  name: string;
  spec: Json<Record<string, unknown>>;
  state: Json<Record<string, unknown>>;
  labels: Json<Record<string, string>>;
  expiresAt: TimeOrNull;
  version: number;
  createdAt: Time;
  updatedAt: Time;
  deleted: boolean;
}

export interface JobsTable extends PlacedColumns {
  id: string;
  shard: number;
  tenant: string;
  clusterId: string;
  type: string;
  input: Json<Record<string, unknown>>;
  status: string;
  attempt: number;
  epoch: number;
  stage: string | null;
  stages: Json<string[]>;
  checkpoint: Json<{ stages: number; results: Record<string, unknown> } | null>;
  startedIn: string;
  runsIn: string;
  notBefore: TimeOrNull;
  createdAt: Time;
  finishedAt: TimeOrNull;
  error: string | null;
}

export interface TasksTable {
  id: string;
  jobId: string;
  shard: number;
  tenant: string;
  clusterId: string;
  name: string;
  node: string | null;
  service: string | null;
  stage: string;
  stageIndex: number;
  attempt: number;
  status: string;
  tries: number;
  workerId: string | null;
  leaseUntil: TimeOrNull;
  deadline: TimeOrNull;
  notBefore: TimeOrNull;
  result: Json<Record<string, unknown> | null>;
  stdout: string | null;
  stderr: string | null;
  finishedAt: TimeOrNull;
}

export interface WorkersTable extends PlacedColumns {
  id: string;
  shard: number;
  tenant: string;
  capacity: number;
  labels: Json<Record<string, string>>;
  registeredAt: Time;
  deleted: boolean;
}

export interface DocumentsTable extends PlacedColumns {
  kind: string;
  id: string;
  shard: number;
  body: Json<Record<string, unknown>>;
  updatedAt: Time;
  deleted: boolean;
}

/** Entries of the audit trail that are not in the log yet: this datacenter's own. */
export interface AuditPendingTable {
  id: string;
  body: Json<Record<string, unknown>>;
  /** Grows with each change of the entry. */
  version: number;
  notedAt: ColumnType<string, never, never>;
}

export interface KeysTable extends Omit<PlacedColumns, "digest"> {
  tenant: string;
  key: string;
  shard: number;
  fingerprint: string;
  status: number;
  body: Json;
  version: number | null;
  createdAt: Time;
}

export interface OutboxTable {
  shard: number;
  epoch: number;
  position: number;
  record: Buffer;
  committedAt: Time;
}

export interface HistoryTable {
  shard: number;
  epoch: number;
  at: Time;
  fromDc: string | null;
  toDc: string;
  kind: string;
  reason: string;
  by: string;
  phasesMs: Json<Record<string, number>>;
  drained: number;
  divergent: number;
  lastPosition: number;
}

export interface DivergentTable {
  id: string;
  dc: string;
  shard: number;
  epoch: number;
  position: number;
  /** Which of the record's operations; more than one only of a load. */
  item: Generated<number>;
  tenant: string;
  clusterId: string;
  type: string;
  version: number | null;
  value: Json;
  idempotencyKey: string | null;
  record: Buffer;
  committedAt: Time;
  setAsideAt: Time;
  status: string;
}

/** Rows that a divergent tail touched, until they are restored from a current copy. */
export interface RestoresTable {
  shard: number;
  tenant: string;
  clusterId: string;
  kind: string;
  /** Where the copy was cut; null until it was fetched. It counts once the own mark has reached it. */
  cutEpoch: number | null;
  cutPosition: number | null;
}

/**
 * Shards whose copy is being loaded. Beside it stands a row of `restores` of kind `shard`: what is not loaded is not served,
 * and counts only once the own mark has reached the highest cut.
 */
export interface SnapshotsTable {
  shard: number;
  /** What the copy had: only rows changed behind it are fetched; null: all are. */
  sinceEpoch: number | null;
  sincePosition: number | null;
  /** The log is replayed from here: no chunk may be older. */
  fromEpoch: number;
  fromPosition: number;
  /** The table under way, and the page of the last row that was loaded; null: none yet. */
  tableName: string;
  after: Json<readonly (string | number)[] | null>;
  /** The highest cut so far. */
  cutEpoch: number | null;
  cutPosition: number | null;
  rows: number;
  /** Names this attempt: a chunk that was asked for in another one is dropped. */
  attempt: string;
}

export interface SiteVotesTable {
  target: string;
  number: number;
  /** Per shard the largest epoch voted against. */
  epochs: Json<Record<string, number>>;
}

export interface SiteIncarnationsTable {
  site: string;
  incarnation: number;
}

export interface NodesTable {
  node: string;
  seenAt: ColumnType<string, never, never>;
  url: string;
  startedAt: ColumnType<string, never, never>;
}

export interface LocksTable {
  name: string;
  holder: string;
  until: ColumnType<string, never, never>;
}

/** Task progress that a planned move brought along, tied to the epoch that it is for; void if that comes otherwise. */
export interface CarriedProgressTable {
  shard: number;
  epoch: number;
  part: number;
  /** The former owner's: attempts that began since then go on. */
  tenure: number;
  tasks: Json<object[]>;
  /** Stage by job id. */
  stages: Json<Record<string, string | null>>;
}

/** Finishes of tasks that this datacenter has accepted without an answer of the shard's owner: forwarded until there is one. */
export interface StoredFinishesTable {
  key: string;
  tenant: string;
  principal: string;
  command: Json;
  receivedAt: ColumnType<string, never, never>;
  nextAt: ColumnType<string, never, never>;
  tries: number;
}

/** Long operations that this datacenter was asked for. */
export interface OperationsTable {
  id: string;
  body: Json<Record<string, unknown>>;
  startedAt: ColumnType<string, never, never>;
  /** The process that carries it out. */
  node: string | null;
  /** Somebody has asked for its end. */
  cancelled: boolean;
  /** Of the request, where it had an idempotency key. */
  fingerprint: string | null;
}
