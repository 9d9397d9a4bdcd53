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
}

/** Ordered for ever: a new version adds a step, none is changed. */
export const migrations: readonly string[] = [
  `
CREATE TABLE meta (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  group_name text NOT NULL,
  datacenter text NOT NULL,
  generation bigint NOT NULL,
  shards int NOT NULL,
  partitions int NOT NULL,
  system_id text NOT NULL,
  restore_number bigint NOT NULL DEFAULT 0,
  met_restore_number bigint NOT NULL DEFAULT 0,
  timeline bigint NOT NULL,
  run text NOT NULL DEFAULT ''
);
CREATE TABLE shard_head (
  shard int PRIMARY KEY,
  partition int NOT NULL,
  owner text,
  epoch bigint NOT NULL DEFAULT 0,
  state text NOT NULL DEFAULT 'replica' CHECK (state IN ('replica', 'owned', 'moving', 'suspended')),
  position bigint NOT NULL DEFAULT 0,
  published bigint NOT NULL DEFAULT 0,
  tenure bigint NOT NULL DEFAULT 0,
  fenced_through bigint NOT NULL DEFAULT 0,
  closing bigint NOT NULL DEFAULT 0,
  confirmed boolean NOT NULL DEFAULT false,
  since timestamptz NOT NULL DEFAULT now(),
  kind text NOT NULL DEFAULT 'initial',
  reason text NOT NULL DEFAULT '',
  epoch_ends jsonb NOT NULL DEFAULT '[]',
  stopped text,
  digest bigint NOT NULL DEFAULT 0,
  compared_epoch bigint NOT NULL DEFAULT 0,
  compared_position bigint NOT NULL DEFAULT 0,
  compared_equal boolean NOT NULL DEFAULT true,
  revision bigint NOT NULL DEFAULT 0,
  CONSTRAINT owned_is_not_fenced CHECK (state <> 'owned' OR (epoch > fenced_through AND closing = 0)),
  CHECK (published <= position)
) WITH (fillfactor = 50);
CREATE TABLE partition_progress (
  partition int PRIMARY KEY,
  sequence bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE clusters (
  tenant text NOT NULL,
  id text COLLATE "C" NOT NULL,
  shard int NOT NULL,
  status text NOT NULL,
  name text NOT NULL,
  spec jsonb NOT NULL,
  state jsonb NOT NULL,
  labels jsonb NOT NULL,
  expires_at timestamptz,
  version bigint NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  deleted boolean NOT NULL,
  changed_epoch bigint NOT NULL,
  changed_position bigint NOT NULL,
  digest bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, id)
);
CREATE INDEX clusters_by_shard ON clusters (shard, tenant, id);
CREATE INDEX clusters_by_expiry ON clusters (expires_at) WHERE expires_at IS NOT NULL AND NOT deleted;
CREATE TABLE jobs (
  id text COLLATE "C" PRIMARY KEY,
  shard int NOT NULL,
  tenant text NOT NULL,
  cluster_id text COLLATE "C" NOT NULL,
  type text NOT NULL,
  input jsonb NOT NULL,
  status text NOT NULL,
  attempt int NOT NULL,
  epoch bigint NOT NULL,
  stage text,
  stages jsonb NOT NULL,
  checkpoint jsonb,
  started_in text NOT NULL,
  runs_in text NOT NULL,
  not_before timestamptz,
  created_at timestamptz NOT NULL,
  finished_at timestamptz,
  error text,
  changed_epoch bigint NOT NULL,
  changed_position bigint NOT NULL,
  digest bigint NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_cluster ON jobs (tenant, cluster_id, created_at);
CREATE INDEX jobs_unfinished ON jobs (shard, epoch) WHERE status IN ('queued', 'running', 'paused');
CREATE TABLE tasks (
  id text COLLATE "C" PRIMARY KEY,
  job_id text COLLATE "C" NOT NULL,
  shard int NOT NULL,
  tenant text NOT NULL,
  cluster_id text NOT NULL,
  name text NOT NULL,
  node text,
  service text,
  stage text NOT NULL,
  stage_index int NOT NULL,
  attempt int NOT NULL,
  status text NOT NULL,
  tries int NOT NULL,
  worker_id text,
  lease_until timestamptz,
  deadline timestamptz,
  not_before timestamptz,
  result jsonb,
  stdout text,
  stderr text,
  finished_at timestamptz
);
CREATE INDEX tasks_by_job ON tasks (job_id);
CREATE INDEX tasks_by_end ON tasks (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX tasks_open ON tasks (shard, status) WHERE status IN ('waiting', 'taken');
CREATE TABLE workers (
  tenant text NOT NULL,
  id text COLLATE "C" NOT NULL,
  shard int NOT NULL,
  capacity int NOT NULL,
  labels jsonb NOT NULL,
  registered_at timestamptz NOT NULL,
  deleted boolean NOT NULL,
  changed_epoch bigint NOT NULL,
  changed_position bigint NOT NULL,
  digest bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, id)
);
CREATE TABLE documents (
  kind text NOT NULL,
  id text COLLATE "C" NOT NULL,
  shard int NOT NULL,
  body jsonb NOT NULL,
  updated_at timestamptz NOT NULL,
  deleted boolean NOT NULL,
  changed_epoch bigint NOT NULL,
  changed_position bigint NOT NULL,
  digest bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (kind, id)
);
CREATE INDEX documents_by_shard ON documents (shard, kind, id);
CREATE INDEX documents_audit ON documents ((body ->> 'at') DESC, id DESC) WHERE kind = 'audit';
CREATE TABLE audit_pending (
  id text PRIMARY KEY,
  body jsonb NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  noted_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE idempotency_keys (
  tenant text NOT NULL,
  key text NOT NULL,
  shard int NOT NULL,
  fingerprint text NOT NULL,
  status int NOT NULL,
  body json,
  version bigint,
  created_at timestamptz NOT NULL,
  changed_epoch bigint NOT NULL,
  changed_position bigint NOT NULL,
  PRIMARY KEY (tenant, key, shard)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
CREATE INDEX idempotency_keys_by_place ON idempotency_keys (shard, changed_position);
CREATE TABLE outbox (
  shard int NOT NULL,
  epoch bigint NOT NULL,
  position bigint NOT NULL,
  record bytea NOT NULL,
  committed_at timestamptz NOT NULL,
  PRIMARY KEY (shard, epoch, position)
);
-- Compressing large records once more costs more than their bytes.
ALTER TABLE outbox ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE TABLE history (
  shard int NOT NULL,
  epoch bigint NOT NULL,
  at timestamptz NOT NULL,
  from_dc text,
  to_dc text NOT NULL,
  kind text NOT NULL,
  reason text NOT NULL,
  by text NOT NULL,
  phases_ms jsonb NOT NULL DEFAULT '{}',
  drained bigint NOT NULL DEFAULT 0,
  divergent bigint NOT NULL DEFAULT 0,
  last_position bigint NOT NULL,
  PRIMARY KEY (shard, epoch)
);
CREATE INDEX history_by_time ON history (at, shard);
CREATE TABLE divergent_operations (
  id text PRIMARY KEY,
  dc text NOT NULL,
  shard int NOT NULL,
  epoch bigint NOT NULL,
  position bigint NOT NULL,
  item int NOT NULL DEFAULT 0,
  tenant text NOT NULL,
  cluster_id text NOT NULL,
  type text NOT NULL,
  version bigint,
  value jsonb NOT NULL,
  idempotency_key text,
  record bytea NOT NULL,
  committed_at timestamptz NOT NULL,
  set_aside_at timestamptz NOT NULL,
  status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replayed', 'discarded', 'superseded')),
  UNIQUE (shard, epoch, position, item)
);
CREATE INDEX divergent_open_keys ON divergent_operations (idempotency_key) WHERE status = 'open';
CREATE TABLE restores (
  shard int NOT NULL,
  tenant text NOT NULL,
  cluster_id text COLLATE "C" NOT NULL,
  kind text NOT NULL,
  cut_epoch bigint,
  cut_position bigint,
  PRIMARY KEY (shard, tenant, kind, cluster_id)
);
CREATE TABLE snapshots (
  shard int PRIMARY KEY,
  since_epoch bigint,
  since_position bigint,
  from_epoch bigint NOT NULL,
  from_position bigint NOT NULL,
  table_name text NOT NULL,
  after jsonb,
  cut_epoch bigint,
  cut_position bigint,
  rows bigint NOT NULL DEFAULT 0,
  attempt text NOT NULL
);
CREATE TABLE site_votes (
  target text PRIMARY KEY,
  number bigint NOT NULL,
  epochs jsonb NOT NULL
);
CREATE TABLE site_incarnations (
  site text PRIMARY KEY,
  incarnation bigint NOT NULL
);
CREATE TABLE nodes (
  node text PRIMARY KEY,
  seen_at timestamptz NOT NULL,
  url text NOT NULL,
  started_at timestamptz NOT NULL
);
CREATE TABLE carried_progress (
  shard int NOT NULL,
  epoch bigint NOT NULL,
  part int NOT NULL,
  tenure bigint NOT NULL,
  tasks jsonb NOT NULL,
  stages jsonb NOT NULL,
  PRIMARY KEY (shard, epoch, part)
);
CREATE TABLE stored_finishes (
  key text PRIMARY KEY,
  tenant text NOT NULL,
  principal text NOT NULL,
  command jsonb NOT NULL,
  received_at timestamptz NOT NULL DEFAULT now(),
  next_at timestamptz NOT NULL,
  tries int NOT NULL DEFAULT 0
);
CREATE INDEX stored_finishes_due ON stored_finishes (next_at);
CREATE TABLE operations (
  id text PRIMARY KEY,
  body jsonb NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE locks (
  name text PRIMARY KEY,
  holder text NOT NULL,
  until timestamptz NOT NULL
);
`,
];
