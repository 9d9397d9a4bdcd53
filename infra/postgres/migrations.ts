/** The steps that make the tables of `schema.ts`, ordered for ever: a new version adds a step, none is changed. */
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
  `
ALTER TABLE shard_head ADD COLUMN unread bigint, ADD COLUMN recopy boolean NOT NULL DEFAULT false;
`,
  `
ALTER TABLE operations ADD COLUMN node text, ADD COLUMN cancelled boolean NOT NULL DEFAULT false, ADD COLUMN fingerprint text;
`,
  `
DROP INDEX idempotency_keys_by_age;
`,
];
