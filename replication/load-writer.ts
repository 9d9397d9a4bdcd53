import { createHash } from "node:crypto";
import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { isTimeout, type Client, type Database } from "../infra/postgres/database.js";
import { isDataFault } from "../infra/postgres/faults.js";
import { position as toPosition, type Epoch, type ShardId, type SiteName } from "../shards/ids.js";
import type { ClusterRow, ClusterStatus, KeyRow } from "./entities.js";
import { loadLine, writeLines, type LoadRow } from "./load.js";
import { encodeRecord, type LogRecord } from "./record.js";
import { supersede } from "./row-set.js";
import { fromColumns, rowsParameter, shapes, writeParts } from "./rows.js";
import { lockOwned, type LockedHead } from "./owner-store.js";
import { failureOf, type Committed, type WriteGate, type WriterEvents } from "./writer.js";
import type { Trace, Written } from "./work.js";

/** Many clusters of one shard to create or replace, all or none, under one position. */
export interface LoadOperation {
  readonly shard: ShardId;
  readonly tenant: string;
  readonly rows: readonly LoadRow[];
  readonly key: { readonly key: string; readonly retentionMs: number };
  readonly trace: Trace;
}

/** Status and version of each row, in order: what a load answers. */
export type LoadOutcome = readonly (readonly [status: number, version: number])[];

interface Pending {
  readonly operation: LoadOperation;
  readonly fingerprint: string;
  readonly epoch: Epoch;
  readonly bytes: number;
  readonly deadline: number;
  readonly proven: boolean;
  readonly resolve: (written: Written) => void;
  readonly reject: (error: unknown) => void;
}

/** A load on its way through a transaction. */
interface Decided {
  readonly pending: Pending;
  readonly outcome: LoadOutcome;
  /** Of the rows that remain, by id: a cluster that comes twice is written once, with both changes counted. */
  readonly lines: ReadonlyMap<string, string>;
  readonly fresh: boolean;
  readonly head: LockedHead;
}

const maxBytes = 2_000_000;
const maxTransactions = 2;
const maxWaitingBytes = 64_000_000;

/**
 * The owner's transaction for loads: those that wait, one of each shard, are written together with COPY. The heads' locks serialise
 * them with all other writes; the statement that numbers the records checks epoch and state (invariant 1).
 */
export class LoadWriter {
  readonly #database: Database;
  readonly #gate: WriteGate;
  readonly #events: WriterEvents;
  readonly #site: SiteName;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #busy = new Set<ShardId>();
  #waiting: Pending[] = [];
  #waitingBytes = 0;
  #transactions = 0;

  constructor(options: {
    database: Database;
    gate: WriteGate;
    events: WriterEvents;
    site: SiteName;
    time: Time;
    log: Logger;
  }) {
    this.#database = options.database;
    this.#gate = options.gate;
    this.#events = options.events;
    this.#site = options.site;
    this.#time = options.time;
    this.#log = options.log.with({ component: "load-writer" });
  }

  /** @throws Problem as ShardWriter.write */
  async write(
    operation: LoadOperation,
    options: { readonly durability: "local" | "replicated"; readonly deadline: number },
  ): Promise<Written> {
    const room = this.#gate.room?.(operation.shard, options.durability, options.deadline);
    if (room !== undefined) await room;
    const epoch = this.#gate.enter(operation.shard);
    if (this.#waitingBytes > maxWaitingBytes) throw new Problem("overloaded", "too many loads are waiting");
    const bytes = operation.rows.reduce(
      (sum, row) => sum + row.spec.length + row.state.length + row.name.length + 200,
      0,
    );
    const fingerprint = fingerprintOf(operation.rows);
    const written = await new Promise<Written>((resolve, reject) => {
      const { deadline, durability } = options;
      const proven = durability === "replicated";
      this.#waiting.push({ operation, fingerprint, epoch, bytes, deadline, proven, resolve, reject });
      this.#waitingBytes += bytes;
      this.#time.soon(() => this.#next());
    });
    const settled = written.replayed && written.epoch < written.openEpoch;
    if (options.durability === "replicated" && !settled)
      await this.#events.published(operation.shard, written.epoch, written.position, options.deadline);
    return written;
  }

  #next(): void {
    if (this.#transactions >= maxTransactions) return;
    const batch: Pending[] = [];
    const shards = new Set<ShardId>();
    let bytes = 0;
    const left: Pending[] = [];
    for (const pending of this.#waiting) {
      const { shard } = pending.operation;
      if (this.#busy.has(shard) || shards.has(shard) || (batch.length > 0 && bytes + pending.bytes > maxBytes)) {
        left.push(pending);
        // What follows in the same shard stays behind it.
        shards.add(shard);
        continue;
      }
      shards.add(shard);
      batch.push(pending);
      bytes += pending.bytes;
    }
    this.#waiting = left;
    this.#waitingBytes -= bytes;
    if (batch.length === 0) return;
    const taken = batch.map((pending) => pending.operation.shard);
    for (const shard of taken) this.#busy.add(shard);
    this.#transactions++;
    void this.#run(batch).finally(() => {
      for (const shard of taken) this.#busy.delete(shard);
      this.#transactions--;
      this.#next();
    });
    if (this.#waiting.length > 0) this.#next();
  }

  async #run(batch: readonly Pending[]): Promise<void> {
    const now = this.#time.monotonic();
    const live = batch.filter((pending) => {
      if (now < pending.deadline) return true;
      pending.reject(new Problem("deadline_exceeded"));
      return false;
    });
    if (live.length === 0) return;
    let committing = false;
    let client: Client | undefined;
    let broken: Error | undefined;
    /** Those that were not refused before the transaction decided them. */
    let allowed = live;
    let apart = false;
    try {
      client = await this.#database.connect();
      const shards = live.map((pending) => pending.operation.shard).sort((a, b) => a - b);
      await client.query("BEGIN");
      const heads = await lockOwned(client, shards);
      allowed = live.filter((pending) => {
        const head = heads.get(pending.operation.shard);
        if (head?.epoch === pending.epoch && head.state === "owned") return true;
        pending.reject(
          head?.state === "moving"
            ? new Problem("shard_moving")
            : new Problem("not_owner", "the shard has moved", head?.owner == null ? {} : { owner: head.owner }),
        );
        return false;
      });
      const wall = this.#time.wall();
      const replayed = await replays(client, allowed, heads, wall);
      const open = allowed.filter((pending) => !replayed.has(pending));
      const decided = await decide(client, open, heads, wall);
      const records = await flush(client, decided, wall);
      committing = true;
      await client.query("COMMIT");
      const at = this.#time.monotonic();
      if (records.length > 0) this.#events.committed(records.map((record) => ({ ...record, at })));
      for (const [pending, answer] of replayed)
        if (answer instanceof Problem) pending.reject(answer);
        else this.#acknowledge(pending, answer);
      for (const [index, { pending, outcome, head }] of decided.entries())
        this.#acknowledge(pending, {
          outcome: { status: 200, body: outcome },
          epoch: head.epoch,
          position: records[index]?.position ?? head.position,
          replayed: false,
          openEpoch: head.epoch,
        });
    } catch (error) {
      broken = isTimeout(error) || committing ? asError(error) : undefined;
      if (client !== undefined && broken === undefined)
        await client.query("ROLLBACK").catch((failure: unknown) => {
          broken = asError(failure);
        });
      apart = !committing && isDataFault(error) && allowed.length > 1;
      if (!apart) this.#failed(live, asError(error), committing);
    } finally {
      client?.release(broken);
    }
    if (!apart) return;
    // Nothing took effect. Apart, only the one with the value that was refused fails.
    const half = Math.ceil(allowed.length / 2);
    await this.#run(allowed.slice(0, half));
    await this.#run(allowed.slice(half));
  }

  #acknowledge(pending: Pending, written: Written): void {
    if (!pending.proven && !this.#gate.mayAcknowledge(pending.operation.shard, pending.epoch))
      pending.reject(new Problem("outcome_unknown", "the lease ran out while the load was under way"));
    else pending.resolve(written);
  }

  #failed(batch: readonly Pending[], error: Error, committing: boolean): void {
    this.#log.warn("a transaction of loads failed", { error, committing, loads: batch.length, site: this.#site });
    for (const pending of batch) pending.reject(failureOf(error, committing));
    // It may be committed: whoever publishes looks into the outbox.
    if (committing) this.#events.uncertain(batch.map((pending) => pending.operation.shard));
  }
}

/** Loads whose key was used: the first answer again, or a refusal. */
async function replays(
  client: Client,
  batch: readonly Pending[],
  heads: ReadonlyMap<ShardId, LockedHead>,
  now: number,
): Promise<Map<Pending, Written | Problem>> {
  const { rows } = await client.query<Record<string, unknown>>({
    name: "load_keys_of_loads",
    text: "SELECT i.* FROM unnest($1::text[], $2::text[], $3::int[]) AS k(tenant, key, shard) JOIN idempotency_keys i ON i.tenant = k.tenant AND i.key = k.key AND i.shard = k.shard",
    values: [
      batch.map(({ operation }) => operation.tenant),
      batch.map(({ operation }) => operation.key.key),
      batch.map(({ operation }) => operation.shard),
    ],
  });
  const found = rows.map((row) => fromColumns<KeyRow>(row));
  const out = new Map<Pending, Written | Problem>();
  for (const pending of batch) {
    const { tenant, key, shard } = pending.operation;
    const row = found.find((r) => r.shard === shard && r.key === key.key && r.tenant === tenant);
    if (row === undefined || Date.parse(row.createdAt) + key.retentionMs <= now) continue;
    if (row.fingerprint !== pending.fingerprint) out.set(pending, new Problem("idempotency_key_reused"));
    else
      out.set(pending, {
        outcome: { status: row.status, body: row.body },
        epoch: row.changedEpoch,
        position: row.changedPosition,
        replayed: true,
        openEpoch: heads.get(shard)?.epoch ?? row.changedEpoch,
      });
  }
  return out;
}

interface Known {
  readonly tenant: string;
  readonly id: string;
  readonly status: ClusterStatus;
  readonly version: number;
  readonly created_at: string;
  readonly deleted: boolean;
}

async function decide(
  client: Client,
  batch: readonly Pending[],
  heads: ReadonlyMap<ShardId, LockedHead>,
  now: number,
): Promise<Decided[]> {
  const wanted = batch.flatMap(({ operation }) => operation.rows.map((row) => [operation.tenant, row.id] as const));
  const { rows } = await client.query<Known>({
    name: "known_of_loads",
    text: "SELECT c.tenant, c.id, c.status, c.version, c.created_at, c.deleted FROM unnest($1::text[], $2::text[]) AS k(tenant, id) JOIN clusters c ON c.tenant = k.tenant AND c.id = k.id",
    values: [wanted.map(([tenant]) => tenant), wanted.map(([, id]) => id)],
  });
  const known = new Map(rows.map((row) => [`${row.tenant}/${row.id}`, row]));
  const at = new Date(now).toISOString();
  return batch.flatMap((pending): Decided[] => {
    const { operation } = pending;
    const head = heads.get(operation.shard);
    if (head === undefined) return [];
    const lines = new Map<string, string>();
    const seen = new Map<string, Pick<Known, "status" | "version" | "created_at">>();
    let fresh = true;
    const outcome = operation.rows.map((row): readonly [number, number] => {
      const stored = known.get(`${operation.tenant}/${row.id}`);
      if (stored !== undefined) fresh = false;
      const before = seen.get(row.id) ?? (stored?.deleted === false ? stored : undefined);
      const next = {
        status: before?.status ?? ("active" as const),
        version: (before?.version ?? 0) + 1,
        created_at: before?.created_at ?? at,
      };
      seen.set(row.id, next);
      const cluster: Omit<ClusterRow, "spec" | "state" | "labels"> = {
        tenant: operation.tenant,
        id: row.id,
        shard: operation.shard,
        status: next.status,
        name: row.name,
        expiresAt: row.expiresAt,
        version: next.version,
        createdAt: next.created_at,
        updatedAt: at,
        deleted: false,
        changedEpoch: head.epoch,
        changedPosition: toPosition(head.position + 1),
      };
      lines.set(row.id, loadLine({ ...cluster, spec: row.spec, state: row.state, labels: row.labels }));
      return [before === undefined ? 201 : 200, next.version];
    });
    return [{ pending, outcome, lines, fresh, head }];
  });
}

/** Writes rows, heads, outbox and keys. @throws Problem not_owner; roll back then */
async function flush(client: Client, decided: readonly Decided[], now: number): Promise<Omit<Committed, "at">[]> {
  if (decided.length === 0) return [];
  const lines = function* (): Generator<string> {
    for (const load of decided) yield `${[...load.lines.values()].join("\n")}\n`;
  };
  const { digests, deltas } = await writeLines(
    client,
    lines(),
    decided.every(({ fresh }) => fresh),
  );
  const keys: KeyRow[] = [];
  const records = decided.map(({ pending, outcome, lines: texts, fresh, head }): Omit<Committed, "at"> => {
    const { operation, fingerprint } = pending;
    const payload = [...texts]
      .map(([id, line]) => `${line}\t${digests.get(`${operation.tenant}/${id}`) ?? 0}\n`)
      .join("");
    const position = toPosition(head.position + 1);
    const key = {
      tenant: operation.tenant,
      key: operation.key.key,
      shard: operation.shard,
      fingerprint,
      status: 200,
      body: outcome,
      version: null,
      createdAt: new Date(now).toISOString(),
    };
    keys.push({ ...key, changedEpoch: head.epoch, changedPosition: position });
    const record: LogRecord = {
      type: "cluster.load",
      at: now,
      key,
      trace: operation.trace,
      load: { rows: texts.size, fresh, delta: deltas.get(operation.shard) ?? 0, payload: Buffer.from(payload) },
    };
    return { shard: operation.shard, epoch: head.epoch, position, record: encodeRecord(record) };
  });
  const { rows } = await client.query<{ shard: number }>({
    name: "flush_loads",
    text: `WITH ${writeParts(shapes.keys, "k", "$1").join(", ")},
      h AS (UPDATE shard_head s SET position = v.position, digest = s.digest # v.delta
        FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[]) AS v(shard, epoch, position, delta)
        WHERE s.shard = v.shard AND s.epoch = v.epoch AND s.position = v.position - 1 AND s.state = 'owned' RETURNING s.shard),
      o AS (INSERT INTO outbox (shard, epoch, position, record, committed_at)
        SELECT s, e, p, r, to_timestamp($7::float8 / 1000) FROM unnest($2::int[], $3::bigint[], $4::bigint[], $6::bytea[]) AS v(s, e, p, r))
      SELECT shard FROM h`,
    values: [
      rowsParameter(shapes.keys, keys),
      records.map((r) => r.shard),
      records.map((r) => r.epoch),
      records.map((r) => r.position),
      records.map((r) => deltas.get(r.shard) ?? 0),
      records.map((r) => Buffer.from(r.record.buffer, r.record.byteOffset, r.record.byteLength)),
      now,
    ],
  });
  if (rows.length !== records.length) throw new Problem("not_owner", "a shard moved during the load");
  await supersede(client, keys);
  return records;
}

function fingerprintOf(rows: readonly LoadRow[]): string {
  const hash = createHash("sha256");
  for (const row of rows)
    hash.update(JSON.stringify([row.id, row.name, row.spec, row.state, row.labels, row.expiresAt]));
  return hash.digest("base64url").slice(0, 32);
}
