import type { Database } from "../infra/postgres/database.js";
import { position as toPosition, type ShardId, type SiteName } from "../shards/ids.js";
import { fold } from "./fold.js";
import type { FullHead } from "./heads.js";
import { decodeRecord, isOfType } from "./record.js";
import type { Applied, Stretch } from "./replica-store.js";
import { RowSet } from "./row-set.js";
import { deltaOf, rowsParameter, shapes, supersedeStatement, writeParts, type TableShape } from "./rows.js";

/** The database is not what was thought when the statement was made: nothing was written. */
const mismatch = "22012"; // division_by_zero, raised on purpose

/**
 * The usual case in one statement: records of shards whose heads are known from the last transaction, no change of owner.
 * The statement checks that progress and heads are as thought, and writes nothing when they are not.
 * @returns undefined when this is not the usual case, or the database is not as thought
 */
export async function applyFast(
  database: Database,
  site: SiteName,
  known: Map<ShardId, FullHead>,
  stretches: readonly Stretch[],
): Promise<Applied | undefined> {
  const heads = new Map<ShardId, FullHead>();
  const advanced = new Map<ShardId, FullHead>();
  const marked = new Map<ShardId, FullHead>();
  const committedAt = new Map<ShardId, number>();
  const rows = new RowSet();
  for (const { from, messages } of stretches)
    for (const [index, message] of messages.entries()) {
      const head = heads.get(message.shard) ?? known.get(message.shard);
      const { header } = message;
      if (head === undefined || head.stopped !== null || header === null || header.kind !== "records") return undefined;
      if (message.sequence !== from + 1 + index) return undefined;
      // Of an own shard only the mark moves; its position is the writer's.
      const mine = head.owner === site;
      if (mine && message.batch !== null) return undefined;
      if (mine) {
        if (header.epoch !== head.epoch || header.owner !== site) return undefined;
        const published = toPosition(Math.max(head.published, header.first + header.count - 1));
        const next = { ...head, published };
        heads.set(head.shard, next);
        marked.set(head.shard, next);
        continue;
      }
      const step = fold(site, head, header, null);
      // Not even that there is nothing to do is believed of a head that no statement checks.
      if (step.kind !== "apply" || message.batch === null) return undefined;
      // Loads take a COPY, and digests are compared on the way: both take a transaction.
      if (message.batch.records.some((bytes) => isOfType(bytes, "cluster.load") || isOfType(bytes, "digest")))
        return undefined;
      try {
        message.batch.records
          .slice(step.skip)
          .forEach((bytes, n) =>
            rows.add(decodeRecord(bytes), head.shard, step.head.epoch, toPosition(head.position + 1 + n)),
          );
      } catch {
        return undefined;
      }
      const next = { ...head, ...step.head };
      heads.set(head.shard, next);
      advanced.set(head.shard, next);
      committedAt.set(head.shard, header.committedAt);
    }
  const { text, name, values } = statement(stretches, [...advanced.values()], [...marked.values()], known, rows);
  let digests: ReadonlyMap<number, number>;
  try {
    const { rows: found } = await database.pool.query<{ digests: [number, number][] | null }>({ name, text, values });
    digests = new Map(found[0]?.digests ?? []);
  } catch (error) {
    if ((error as { code?: string }).code !== mismatch) throw error;
    for (const shard of heads.keys()) known.delete(shard);
    return undefined;
  }
  for (const [shard, head] of heads) known.set(shard, { ...head, ...digestOf(digests.get(shard)) });
  return {
    heads: [...heads.values()],
    adoptions: [],
    stopped: [],
    committedAt,
    requests: rows.requests,
    jobs: [...rows.jobs.values()].map((job) => ({ id: job.id, status: job.status, shard: job.shard })),
  };
}

const digestOf = (digest: number | undefined): { readonly digest?: number } => (digest === undefined ? {} : { digest });

function statement(
  stretches: readonly Stretch[],
  advanced: readonly FullHead[],
  marked: readonly FullHead[],
  known: ReadonlyMap<ShardId, FullHead>,
  rows: RowSet,
): { text: string; name: string; values: unknown[] } {
  const values: unknown[] = [
    stretches.map((s) => s.partition),
    stretches.map((s) => s.from),
    stretches.map((s) => s.messages.at(-1)?.sequence ?? s.from),
    advanced.map((head) => head.shard),
    advanced.map((head) => head.epoch),
    advanced.map((head) => known.get(head.shard)?.position ?? -1),
    advanced.map((head) => head.position),
    marked.map((head) => head.shard),
    marked.map((head) => head.epoch),
    marked.map((head) => head.published),
    advanced.map((head) => known.get(head.shard)?.digest ?? null),
  ];
  const parts: string[] = [];
  const letters: string[] = [];
  let name = "apply_";
  const tables: (readonly [string, TableShape, readonly object[]])[] = [
    ["c", shapes.clusters, [...rows.clusters.values()]],
    ["j", shapes.jobs, [...rows.jobs.values()]],
    ["w", shapes.workers, [...rows.workers.values()]],
    ["d", shapes.documents, [...rows.documents.values()]],
    ["k", shapes.keys, [...rows.keys.values()]],
  ];
  for (const [letter, shape, list] of tables) {
    if (list.length === 0) continue;
    name += letter;
    values.push(rowsParameter(shape, list));
    parts.push(...writeParts(shape, letter, `$${values.length}`));
    if (shape.digest !== undefined) letters.push(letter);
  }
  parts.push(
    // In the order in which the owner's transactions lock theirs: in any other one the two would wait for each other.
    `locked AS MATERIALIZED (SELECT shard FROM shard_head WHERE shard = ANY($4::int[] || $8::int[]) ORDER BY shard FOR NO KEY UPDATE)`,
    `p AS (UPDATE partition_progress p SET sequence = v.through FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS v(partition, since, through)
      WHERE p.partition = v.partition AND p.sequence = v.since RETURNING 1)`,
    // The digest that was known was compared: no other transaction has changed rows of the shard since, so the deltas are right.
    `h AS (UPDATE shard_head h SET position = v.last, published = v.last, digest = h.digest # ${deltaOf(letters, "v.shard")}
      FROM unnest($4::int[], $5::bigint[], $6::bigint[], $7::bigint[], $11::bigint[]) AS v(shard, epoch, since, last, digest)
      WHERE h.shard = v.shard AND h.epoch = v.epoch AND h.position = v.since AND h.digest = v.digest AND h.stopped IS NULL AND h.state = 'replica'
        AND (SELECT count(*) FROM locked) > 0
      RETURNING h.shard, h.digest)`,
    `m AS (UPDATE shard_head h SET published = greatest(h.published, v.mark) FROM unnest($8::int[], $9::bigint[], $10::bigint[]) AS v(shard, epoch, mark)
      WHERE h.shard = v.shard AND h.epoch = v.epoch AND v.mark <= h.position AND h.stopped IS NULL
        AND (SELECT count(*) FROM locked) > 0 RETURNING 1)`,
  );
  const keys = [...rows.keys.values()];
  if (keys.length > 0) {
    const at = values.length;
    values.push(
      keys.map((row) => row.tenant),
      keys.map((row) => row.key),
      keys.map((row) => row.shard),
    );
    parts.push(`s AS (${supersedeStatement(at + 1)})`);
  }
  const text = `WITH ${parts.join(", ")}
    SELECT 1 / (CASE WHEN (SELECT count(*) FROM p) = ${"cardinality($1::int[])"} AND (SELECT count(*) FROM h) = cardinality($4::int[])
      AND (SELECT count(*) FROM m) = cardinality($8::int[]) THEN 1 ELSE 0 END), (SELECT json_agg(json_build_array(h.shard, h.digest)) FROM h) AS digests`;
  return { text, name, values };
}
