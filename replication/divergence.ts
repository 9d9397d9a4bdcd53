import { asError } from "../infra/errors.js";
import { isRefusal, type Client } from "../infra/postgres/database.js";
import { position as toPosition, type Epoch, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import { resetDigest } from "./digest.js";
import type { FullHead } from "./heads.js";
import { readLoad } from "./load.js";
import { voidSnapshots } from "./loading.js";
import { decodeRecord, encodeRecord, type LogRecord } from "./record.js";

/** Records that are looked at together, and bytes beyond which no further one joins them. */
const atOnce = 200;
const bytesAtOnce = 4_000_000;
/** Operations are stored in statements of about so many bytes, and rows removed so many at a time: each is to end in its time. */
const statementBytes = 4_000_000;
const removedAtOnce = 10_000;

/** The tail can't be undone, however often that is tried: anything else that goes wrong may go well the next time. */
export class CannotSetAside extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause });
    this.name = "CannotSetAside";
  }
}

/**
 * Sets the divergent tail aside, whole, and undoes all that it wrote (section 6): in the transaction that adopts the newer
 * epoch. Clusters and workers that it touched are removed until they are restored from a current copy.
 * @returns how many operations
 * @throws CannotSetAside
 */
export async function setAside(client: Client, site: SiteName, head: FullHead, last: Position): Promise<number> {
  const touched: Touched = { clusters: new Map(), workers: new Map(), documents: new Map() };
  let found = 0;
  let operations = 0;
  // In pieces: a tail of loads may be long.
  for (let after = last; ;) {
    const { rows } = await client.query<OutboxRow>(
      `SELECT epoch, position, record, committed_at FROM (
         SELECT *, sum(octet_length(record)) OVER (ORDER BY position) - octet_length(record) AS bytes_before
         FROM (SELECT * FROM outbox WHERE shard = $1 AND epoch = $2 AND position > $3 ORDER BY position LIMIT $4) AS tail
       ) AS tail WHERE bytes_before < $5 ORDER BY position`,
      [head.shard, head.epoch, after, atOnce, bytesAtOnce],
    );
    const tail = rows.at(-1);
    if (tail === undefined) break;
    const aside = rows.flatMap((row) => readAside(row, site, head.shard, touched));
    for (const piece of inPieces(aside.map((each) => JSON.stringify(each)))) await insertAside(client, piece);
    found += rows.length;
    operations += aside.length;
    after = toPosition(tail.position);
  }
  if (found !== head.position - last)
    throw new CannotSetAside(
      `the outbox of shard ${head.shard} holds ${found} of ${head.position - last} divergent operations`,
    );
  await client.query("DELETE FROM idempotency_keys WHERE shard = $1 AND changed_epoch = $2 AND changed_position > $3", [
    head.shard,
    head.epoch,
    last,
  ]);
  for (const [kind, keys] of [
    ["cluster", [...touched.clusters.values()]],
    ["worker", [...touched.workers.values()]],
    ["document", [...touched.documents.values()]],
  ] as const)
    for (let at = 0; at < keys.length; at += removedAtOnce)
      await remove(client, head.shard, kind, keys.slice(at, at + removedAtOnce));
  await resetDigest(client, head.shard);
  await client.query("DELETE FROM outbox WHERE shard = $1 AND epoch = $2 AND position > $3", [
    head.shard,
    head.epoch,
    last,
  ]);
  return operations;
}

/** Of texts, as many at a time as stay below the bytes of a statement; at least one. */
function* inPieces(texts: readonly string[]): Generator<readonly string[]> {
  let piece: string[] = [];
  let bytes = 0;
  for (const text of texts) {
    if (piece.length > 0 && bytes + text.length > statementBytes) {
      yield piece;
      piece = [];
      bytes = 0;
    }
    piece.push(text);
    bytes += text.length;
  }
  if (piece.length > 0) yield piece;
}

async function insertAside(client: Client, piece: readonly string[]): Promise<void> {
  try {
    await client.query(
      `INSERT INTO divergent_operations SELECT (jsonb_populate_record(null::divergent_operations, v || jsonb_build_object('set_aside_at', now()))).*
       FROM jsonb_array_elements($1::jsonb) AS v ON CONFLICT (shard, epoch, position, item) DO NOTHING`,
      [`[${piece.join(",")}]`],
    );
  } catch (error) {
    // Class 22 says that the values are no values of their types: they never will be.
    if (isRefusal(error) && (error as { code?: string }).code?.startsWith("22") === true)
      throw new CannotSetAside(error.message, error);
    throw error;
  }
}

interface OutboxRow {
  readonly epoch: number;
  readonly position: number;
  readonly record: Buffer;
  readonly committed_at: string;
}

type Keys = Map<string, { readonly tenant: string; readonly id: string }>;
interface Touched {
  readonly clusters: Keys;
  readonly workers: Keys;
  readonly documents: Keys;
}

function readAside(row: OutboxRow, site: SiteName, shard: ShardId, touched: Touched): object[] {
  try {
    return asideOf(row, site, shard, touched);
  } catch (error) {
    throw new CannotSetAside(`position ${row.position} can't be read: ${asError(error).message}`, error);
  }
}

/** What a record of the tail holds as operations, one for each cluster of a load; notes what it touched. */
function asideOf(row: OutboxRow, site: SiteName, shard: ShardId, touched: Touched): object[] {
  const whole = decodeRecord(row.record);
  return operationsOf(whole, row.record).map(({ record, bytes }, item) => {
    const { cluster, job, worker, document } = record;
    if (cluster !== undefined) touched.clusters.set(`${cluster.tenant}/${cluster.id}`, cluster);
    if (job !== undefined)
      touched.clusters.set(`${job.tenant}/${job.clusterId}`, { tenant: job.tenant, id: job.clusterId });
    if (worker !== undefined) touched.workers.set(`${worker.tenant}/${worker.id}`, worker);
    if (document !== undefined) {
      const id = `${document.kind}/${document.id}`;
      touched.documents.set(id, { tenant: "", id });
    }
    const subject = subjectOf(record);
    return {
      id: `${site}-${shard}-${row.epoch}-${row.position}${whole.load === undefined ? "" : `.${item}`}`,
      dc: site,
      shard,
      epoch: row.epoch,
      position: row.position,
      item,
      tenant: subject.tenant,
      cluster_id: subject.id,
      type: record.type,
      version: cluster?.version ?? null,
      value: valueOf(record),
      idempotency_key: record.key?.key ?? null,
      record: `\\x${Buffer.from(bytes).toString("hex")}`,
      committed_at: row.committed_at,
      set_aside_at: new Date(0).toISOString(),
      status: "open",
    };
  });
}

function operationsOf(record: LogRecord, bytes: Uint8Array): { record: LogRecord; bytes: Uint8Array }[] {
  const payload = record.load?.payload;
  if (!(payload instanceof Uint8Array)) return [{ record, bytes }];
  return readLoad(payload).map((cluster) => {
    const put: LogRecord = { type: "cluster.put", at: record.at, cluster };
    return { record: { ...put, ...(record.key === undefined ? {} : { key: record.key }) }, bytes: encodeRecord(put) };
  });
}

/**
 * Copies whose cut lies in an epoch that ended below it hold what its owner never published: they are void, and fetched again.
 */
export async function voidCopies(client: Client, shard: ShardId, ended: Epoch, last: Position): Promise<void> {
  const { rows } = await client.query<{ tenant: string; cluster_id: string; kind: string }>(
    "SELECT tenant, cluster_id, kind FROM restores WHERE shard = $1 AND cut_epoch = $2 AND cut_position > $3",
    [shard, ended, last],
  );
  await voidSnapshots(client, shard, ended, last);
  for (const kind of ["cluster", "worker", "document"])
    await remove(
      client,
      shard,
      kind,
      rows.filter((row) => row.kind === kind).map((row) => ({ tenant: row.tenant, id: row.cluster_id })),
    );
  if (rows.length > 0) await resetDigest(client, shard);
}

/** Of these shards, those of which something is being restored: usually none. */
export async function restoringOf(client: Client, shards: readonly ShardId[]): Promise<Set<ShardId>> {
  if (shards.length === 0) return new Set();
  const { rows } = await client.query<{ shard: ShardId }>({
    name: "restoring_shards",
    text: "SELECT DISTINCT shard FROM restores WHERE shard = ANY($1::int[])",
    values: [shards],
  });
  return new Set(rows.map(({ shard }) => shard));
}

async function remove(
  client: Client,
  shard: ShardId,
  kind: string,
  rows: readonly { readonly tenant: string; readonly id: string }[],
): Promise<void> {
  if (rows.length === 0) return;
  const keys = [rows.map((row) => row.tenant), rows.map((row) => row.id)];
  if (kind === "cluster") {
    await client.query(
      "DELETE FROM tasks USING unnest($1::text[], $2::text[]) AS k(tenant, id) WHERE tasks.tenant = k.tenant AND tasks.cluster_id = k.id",
      keys,
    );
    await client.query(
      "DELETE FROM jobs USING unnest($1::text[], $2::text[]) AS k(tenant, id) WHERE jobs.tenant = k.tenant AND jobs.cluster_id = k.id",
      keys,
    );
    await client.query(
      "DELETE FROM clusters USING unnest($1::text[], $2::text[]) AS k(tenant, id) WHERE clusters.tenant = k.tenant AND clusters.id = k.id",
      keys,
    );
  } else if (kind === "document") {
    await client.query("DELETE FROM documents WHERE kind || '/' || id = ANY($1::text[])", [rows.map((row) => row.id)]);
  } else {
    await client.query(
      "DELETE FROM workers USING unnest($1::text[], $2::text[]) AS k(tenant, id) WHERE workers.tenant = k.tenant AND workers.id = k.id",
      keys,
    );
  }
  await client.query(
    `INSERT INTO restores (shard, tenant, cluster_id, kind) SELECT $3, k.tenant, k.id, $4 FROM unnest($1::text[], $2::text[]) AS k(tenant, id)
     ON CONFLICT (shard, tenant, kind, cluster_id) DO UPDATE SET cut_epoch = null, cut_position = null`,
    [...keys, shard, kind],
  );
}

function subjectOf(record: LogRecord): { tenant: string; id: string } {
  if (record.cluster !== undefined) return record.cluster;
  if (record.job !== undefined) return { tenant: record.job.tenant, id: record.job.clusterId };
  if (record.worker !== undefined) return record.worker;
  if (record.document !== undefined) return { tenant: "", id: `${record.document.kind}/${record.document.id}` };
  if (record.key !== undefined) return { tenant: record.key.tenant, id: "" };
  return { tenant: "", id: "" };
}

/** What an operator is shown, and what a replay writes again. */
function valueOf(record: LogRecord): unknown {
  const { cluster, job, worker, document, audit } = record;
  return {
    ...(cluster === undefined ? {} : { cluster }),
    ...(job === undefined ? {} : { job }),
    ...(worker === undefined ? {} : { worker }),
    ...(document === undefined ? {} : { document }),
    ...(audit === undefined ? {} : { audit }),
  };
}
