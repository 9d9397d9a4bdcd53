import type { Client, Database, Send } from "../infra/postgres/database.js";
import type { Logger } from "../infra/logger.js";
import {
  position as toPosition,
  type Epoch,
  type Partition,
  type Position,
  type ShardId,
  type SiteName,
} from "../shards/ids.js";
import { CannotSetAside, restoringOf, setAside, voidCopies } from "./divergence.js";
import { dropCarried, readCarried, takeCarried } from "./carried.js";
import { insertHistory, type HistoryRow } from "./history.js";
import { applyFast } from "./fast-apply.js";
import { fold } from "./fold.js";
import { lockHeads, readDigests, storeHeads, storePositions, type FullHead } from "./heads.js";
import { decodeRecord, isOfType, UnreadableRecord, type Batch, type BatchHeader, type OpenBody } from "./record.js";
import { RowSet } from "./row-set.js";

/** A message of a partition, as the applier hands it on. */
export interface Incoming {
  readonly sequence: number;
  readonly shard: ShardId;
  /** Null when it can't be read (`fault` says why). */
  readonly header: BatchHeader | null;
  /** Null for an own append, whose records are here already. */
  readonly batch: Batch | null;
  readonly fault?: string;
}

export interface Adoption {
  readonly head: FullHead;
  readonly before: FullHead;
  readonly open: OpenBody;
  readonly divergent: number;
}

/** A change of owner whose rows are still to be stored. */
interface Opened extends HistoryRow {
  readonly ended: Epoch;
  readonly before: FullHead;
  /** A planned move to this datacenter: what was carried goes on. */
  readonly planned: boolean;
}

/** Messages of a partition that follow `from` without a gap. */
export interface Stretch {
  readonly partition: Partition;
  readonly from: number;
  readonly messages: readonly Incoming[];
}

/** A copy that does not equal the digest that the log gives. */
export interface Differing {
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly position: Position;
  readonly logged: number;
  readonly found: number;
}

/** What one transaction of the applier brought. */
export interface Applied {
  readonly heads: readonly FullHead[];
  readonly adoptions: readonly Adoption[];
  readonly stopped: readonly FullHead[];
  /** Types of the records that were applied, for events. */
  readonly jobs: readonly { readonly id: string; readonly status: string; readonly shard: ShardId }[];
  readonly differs?: readonly Differing[];
  /** Per shard the commit time (owner's clock, ms since 1970) of the last record applied. */
  readonly committedAt: ReadonlyMap<ShardId, number>;
  /** Which requests the records came from, as far as they are named. */
  readonly requests?: RowSet["requests"];
}

/** The own records of a message are needed after all: the database does not have them. */
export class NeedsRecords extends Error {
  constructor(
    readonly partition: Partition,
    readonly sequence: number,
  ) {
    super("the records of an own message are not in the database");
    this.name = "NeedsRecords";
  }
}

/** Another process of the datacenter has applied meanwhile. */
export class Overtaken extends Error {
  constructor() {
    super("the partition's progress is not what this process thought");
    this.name = "Overtaken";
  }
}

/** The datacenter's copy: rows and high-water mark change together (section 3, step 5). */
export interface ReplicaStore {
  progress(): Promise<Map<Partition, number>>;
  /** Folds the messages of several partitions in one transaction. @throws NeedsRecords, Overtaken */
  apply(stretches: readonly Stretch[]): Promise<Applied>;
}

export class PostgresReplicaStore implements ReplicaStore {
  readonly #log: Logger;
  /** Heads as the last transaction left them; only ever a guess that the next statement checks. */
  readonly #heads = new Map<ShardId, FullHead>();

  /** `piped`: the same database by pipelined connections. */
  constructor(
    private readonly database: Database,
    private readonly piped: Database,
    private readonly site: SiteName,
    log: Logger,
  ) {
    this.#log = log.with({ component: "replica-store" });
  }

  async progress(): Promise<Map<Partition, number>> {
    // Asked for when the database may not be as it was left.
    this.#heads.clear();
    const { rows } = await this.database.pool.query<{ partition: number; sequence: number }>(
      "SELECT partition, sequence FROM partition_progress",
    );
    return new Map(rows.map((row) => [row.partition as Partition, row.sequence]));
  }

  async apply(stretches: readonly Stretch[]): Promise<Applied> {
    const fast = await applyFast(this.database, this.site, this.#heads, stretches);
    const applied = fast ?? (await this.#applyWhole(stretches));
    if ((applied.requests?.length ?? 0) > 0) this.#log.debug("applied", { requests: applied.requests });
    return applied;
  }

  async #applyWhole(stretches: readonly Stretch[]): Promise<Applied> {
    // What is known of other shards stays: forgotten, their next records would take this way, too, and so on for ever.
    for (const { messages } of stretches) for (const { shard } of messages) this.#heads.delete(shard);
    // A COPY shares its connection with no statement that was sent before it.
    const loads = stretches.some(({ messages }) =>
      messages.some(({ batch }) => batch?.records.some((bytes) => isOfType(bytes, "cluster.load"))),
    );
    const { finish } = await (loads ? this.database : this.piped).pipelined((client, send) =>
      this.#apply(client, send, stretches),
    );
    const applied = await finish();
    for (const head of applied.heads) this.#heads.set(head.shard, head);
    return applied;
  }

  /** Two round trips as a rule: what is read first is asked for at once, and what is written leaves together with the COMMIT. */
  async #apply(
    client: Client,
    send: Send,
    stretches: readonly Stretch[],
  ): Promise<{ readonly finish: () => Promise<Applied> }> {
    const messages = stretches.flatMap((stretch) => stretch.messages);
    const openings = messages.flatMap(({ header, shard }) => (header?.kind === "open" ? [{ ...header, shard }] : []));
    const advance = client.query({
      name: "advance_progress",
      text: `UPDATE partition_progress p SET sequence = v.through FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS v(partition, since, through)
        WHERE p.partition = v.partition AND p.sequence = v.since`,
      values: [
        stretches.map((s) => s.partition),
        stretches.map((s) => s.from),
        stretches.map((s) => s.messages.at(-1)?.sequence ?? s.from),
      ],
    });
    // The reads lie behind the locks: nobody else changes what they find.
    const [moved, heads, restoring, carried] = await Promise.all([
      advance,
      lockHeads(client, [...new Set(messages.map((m) => m.shard))]),
      restoringOf(
        client,
        openings.map(({ shard }) => shard),
      ),
      readCarried(
        client,
        openings.filter(({ owner }) => owner === this.site),
      ),
    ]);
    if (moved.rowCount !== stretches.length) throw new Overtaken();
    for (const { from, messages } of stretches)
      if (messages.some((message, index) => message.sequence !== from + 1 + index))
        throw new Error("a stretch of the log has a gap");
    const full = new Set<ShardId>();
    const advanced = new Set<ShardId>();
    const adoptions: Adoption[] = [];
    const stopped: FullHead[] = [];
    const unread: [ShardId, number][] = [];
    const committedAt = new Map<ShardId, number>();
    const compared: Promise<readonly Differing[]>[] = [];
    const jobs: Applied["jobs"][number][] = [];
    const requests: Applied["requests"] & unknown[] = [];
    let rows = new RowSet();
    const write = async (): Promise<void> => {
      await rows.write(client, send);
      for (const job of rows.jobs.values()) jobs.push({ id: job.id, status: job.status, shard: job.shard });
      requests.push(...rows.requests);
      rows = new RowSet();
    };
    // Changes of owner are stored together: a takeover brings those of hundreds of shards at once.
    const opens = new Map<ShardId, Opened>();
    const adopt = async (): Promise<void> => {
      await write();
      const all = [...opens.values()];
      opens.clear();
      for (const { shard, ended, last } of all) if (restoring.has(shard)) await voidCopies(client, shard, ended, last);
      const tenures = takeCarried(
        client,
        send,
        carried.filter((part) =>
          all.some((each) => each.planned && each.shard === part.shard && each.epoch === part.epoch),
        ),
      );
      send(dropCarried(client, all));
      send(insertHistory(client, all));
      for (const { shard, before, open, divergent } of all) {
        const opened = heads.get(shard);
        if (opened === undefined) continue;
        const tenure = tenures.get(shard);
        const head = tenure === undefined ? opened : { ...opened, tenure };
        heads.set(shard, head);
        adoptions.push({ head, before, open, divergent });
      }
    };
    for (const message of messages) {
      // What an epoch brings must not be undone with what the one before it had.
      if (opens.has(message.shard)) await adopt();
      const head = heads.get(message.shard);
      if (head === undefined || head.stopped !== null) continue;
      const stop = (why: string): void => {
        const next = { ...head, stopped: why, revision: head.revision + 1 };
        heads.set(head.shard, next);
        full.add(head.shard);
        stopped.push(next);
        this.#log.error("a shard stopped: its log can't be applied", {
          shard: head.shard,
          epoch: head.epoch,
          position: head.position,
          sequence: message.sequence,
          why,
        });
      };
      const stopUnread = (why: string): void => {
        stop(why);
        unread.push([head.shard, message.sequence]);
      };
      if (message.header === null) {
        stopUnread(message.fault ?? "unreadable");
        continue;
      }
      const step = fold(this.site, head, message.header, message.batch?.open ?? null);
      switch (step.kind) {
        case "none":
          break;
        case "stop":
          stop(step.why);
          break;
        case "mark":
          heads.set(head.shard, { ...head, ...step.head });
          advanced.add(head.shard);
          break;
        case "apply": {
          if (message.batch === null) throw new NeedsRecords(head.partition, message.sequence);
          try {
            const records = message.batch.records.slice(step.skip).map((bytes) => decodeRecord(bytes));
            for (const [index, record] of records.entries()) {
              const position = toPosition(head.position + 1 + index);
              if (record.type === "digest" && record.digest !== undefined) {
                await write();
                const place = { shard: head.shard, epoch: step.head.epoch, position, logged: record.digest };
                const comparison = compareDigest(client, place);
                send(comparison);
                compared.push(comparison);
              }
              rows.add(record, head.shard, step.head.epoch, position);
            }
          } catch (error) {
            if (!(error instanceof UnreadableRecord)) throw error;
            stopUnread(error.message);
            break;
          }
          heads.set(head.shard, { ...head, ...step.head });
          advanced.add(head.shard);
          committedAt.set(head.shard, message.header.committedAt);
          break;
        }
        case "adopt": {
          const open = message.batch?.open;
          if (open === null || open === undefined) throw new NeedsRecords(head.partition, message.sequence);
          let divergent = 0;
          if (step.divergentAbove !== null) {
            await adopt();
            restoring.add(head.shard);
            await client.query("SAVEPOINT divergence");
            try {
              divergent = await setAside(client, this.site, head, step.divergentAbove);
            } catch (error) {
              if (!(error instanceof CannotSetAside)) throw error;
              // One shard that can't be undone must not hold up the others of its partition.
              await client.query("ROLLBACK TO SAVEPOINT divergence");
              stop(`its divergent operations can't be set aside: ${error.message}`);
              break;
            }
          }
          opens.set(head.shard, {
            shard: head.shard,
            epoch: step.head.epoch,
            ended: head.epoch,
            before: head,
            planned: step.head.owner === this.site && head.owner !== this.site && open.sameTenure,
            at: message.header.committedAt,
            from: head.owner,
            to: message.header.owner,
            open,
            divergent,
            last: step.head.position,
          });
          const next: FullHead = {
            ...head,
            ...step.head,
            confirmed: step.head.owner === this.site,
            since: new Date(message.header.committedAt).toISOString(),
            kind: open.kind,
            reason: open.reason,
            revision: head.revision + 1,
          };
          heads.set(head.shard, next);
          full.add(head.shard);
          this.#log.info(step.why, {
            shard: head.shard,
            epoch: next.epoch,
            owner: next.owner,
            state: next.state,
            position: next.position,
            kind: open.kind,
            reason: open.reason,
            divergent,
          });
        }
      }
    }
    await adopt();
    send(
      storeHeads(
        client,
        [...full].flatMap((shard) => heads.get(shard) ?? []),
      ),
    );
    for (const [shard, sequence] of unread)
      send(client.query("UPDATE shard_head SET unread = $2 WHERE shard = $1", [shard, sequence]));
    send(
      storePositions(
        client,
        [...advanced].filter((shard) => !full.has(shard)).flatMap((shard) => heads.get(shard) ?? []),
      ),
    );
    const digests = readDigests(client, [...heads.keys()]);
    send(digests);
    const finish = async (): Promise<Applied> => {
      const found = await digests;
      return {
        heads: [...heads].map(([shard, head]) => ({ ...head, digest: found.get(shard) ?? 0 })),
        adoptions,
        stopped,
        committedAt,
        requests,
        differs: (await Promise.all(compared)).flat(),
        jobs,
      };
    };
    return { finish };
  }
}

/** Compares the shard's digest in this transaction with the logged one; not while its rows are being restored. */
async function compareDigest(client: Client, place: Omit<Differing, "found">): Promise<readonly Differing[]> {
  const { rows } = await client.query<{ digest: number }>(
    `UPDATE shard_head h SET compared_epoch = $3, compared_position = $4, compared_equal = digest = $2
     WHERE shard = $1 AND NOT EXISTS (SELECT 1 FROM restores r WHERE r.shard = h.shard) RETURNING digest`,
    [place.shard, place.logged, place.epoch, place.position],
  );
  const found = rows[0]?.digest;
  return found === undefined || found === place.logged ? [] : [{ ...place, found }];
}

export type { Epoch };
