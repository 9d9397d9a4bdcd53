import { comparePlaces, position as toPosition, type Partition, type ShardId } from "../../shards/ids.js";
import type { ClusterRow, KeyRow } from "../../replication/entities.js";
import { fold, type FoldStep } from "../../replication/fold.js";
import type { FullHead } from "../../replication/heads.js";
import { decodeRecord, type BatchHeader, type OpenBody } from "../../replication/record.js";
import {
  NeedsRecords,
  Overtaken,
  type Adoption,
  type Applied,
  type Incoming,
  type ReplicaStore,
  type Stretch,
} from "../../replication/replica-store.js";
import type { MemoryDatabase, OutboxEntry, Tables } from "./database.js";
import type { Process } from "./scheduler.js";

export interface ReplicaHooks {
  applied(site: string, message: Incoming, before: FullHead, step: FoldStep): void;
}

export interface ReplicaFaults {
  /** The applier takes records of any epoch, and rows compare by position alone. */
  ignoresEpochs?: boolean;
}

const copied = ["heads", "rows", "keys", "outbox", "divergent", "restores"] as const;

/** ReplicaStore on a datacenter's tables: the real fold, and around it what replication/replica-store.ts does in SQL. */
export class MemoryReplicaStore implements ReplicaStore {
  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
    private readonly hooks: ReplicaHooks,
    private readonly faults: ReplicaFaults,
  ) {}

  progress() {
    return this.database.run(this.process, "progress", (tables) => new Map(tables.progress as Map<Partition, number>));
  }

  apply(stretches: readonly Stretch[]): Promise<Applied> {
    return this.database.run(
      this.process,
      "apply",
      (tables) => {
        for (const { from, messages } of stretches)
          if (messages.some((message, index) => message.sequence !== from + 1 + index))
            throw new Error("a stretch of the log has a gap");
        for (const { partition, from } of stretches)
          if ((tables.progress.get(partition) ?? 0) !== from) throw new Overtaken();
        // A transaction: what it changed counts only if nothing of it fails.
        const draft: Tables = { ...tables };
        for (const name of copied) Object.assign(draft, { [name]: new Map<unknown, unknown>(tables[name]) });
        const told: [Incoming, FullHead, FoldStep][] = [];
        const applied = this.#fold(
          draft,
          stretches.flatMap((stretch) => stretch.messages),
          told,
        );
        for (const { partition, from, messages } of stretches)
          tables.progress.set(partition, messages.at(-1)?.sequence ?? from);
        for (const name of copied) replace(tables[name] as Map<never, never>, draft[name]);
        for (const [message, before, step] of told) this.hooks.applied(this.database.site, message, before, step);
        return applied;
      },
      [...new Set(stretches.flatMap((stretch) => stretch.messages.map((message) => message.shard)))],
    );
  }

  #fold(tables: Tables, messages: readonly Incoming[], told: [Incoming, FullHead, FoldStep][]): Applied {
    const site = this.database.site;
    const adoptions: Adoption[] = [];
    const stopped: FullHead[] = [];
    const touched = new Set<number>();
    const committedAt = new Map<ShardId, number>();
    const stop = (head: FullHead, why: string): void => {
      const next = { ...head, stopped: why, revision: head.revision + 1 };
      tables.heads.set(head.shard, next);
      stopped.push(next);
    };
    for (const message of messages) {
      touched.add(message.shard);
      const head = tables.heads.get(message.shard);
      if (head === undefined || head.stopped !== null) continue;
      let step: FoldStep =
        message.header === null
          ? { kind: "stop" as const, why: message.fault ?? "unreadable" }
          : this.#step(head, message.header, message.batch?.open ?? null);
      switch (step.kind) {
        case "none":
          break;
        case "stop":
          stop(head, step.why);
          break;
        case "mark":
          tables.heads.set(head.shard, { ...head, ...step.head });
          break;
        case "apply": {
          if (message.batch === null) throw new NeedsRecords(head.partition, message.sequence);
          const { epoch } = step.head;
          message.batch.records.slice(step.skip).forEach((bytes, index) => {
            const record = decodeRecord(bytes);
            const place = { changedEpoch: epoch, changedPosition: toPosition(head.position + 1 + index) };
            if (record.cluster !== undefined)
              putRow(tables, { ...record.cluster, ...place }, this.faults.ignoresEpochs === true);
            if (record.key !== undefined) putKey(tables, { ...record.key, ...place });
          });
          tables.heads.set(head.shard, { ...head, ...step.head });
          if (message.header !== null) committedAt.set(head.shard, message.header.committedAt);
          break;
        }
        case "adopt": {
          const open = message.batch?.open;
          if (open === null || open === undefined) throw new NeedsRecords(head.partition, message.sequence);
          let divergent = 0;
          const why = step.divergentAbove === null ? undefined : cannotSetAside(tables, head, step.divergentAbove);
          if (why !== undefined) {
            step = { kind: "stop", why };
            stop(head, why);
            break;
          }
          if (step.divergentAbove !== null) divergent = setAside(tables, head, step.divergentAbove);
          voidCopies(tables, head.shard, head.epoch, step.head.position);
          const next: FullHead = {
            ...head,
            ...step.head,
            confirmed: step.head.owner === site,
            kind: open.kind,
            reason: open.reason,
            revision: head.revision + 1,
          };
          tables.heads.set(head.shard, next);
          adoptions.push({ head: next, before: head, open, divergent });
        }
      }
      told.push([message, head, step]);
    }
    return {
      heads: [...touched].flatMap((shard) => tables.heads.get(shard) ?? []),
      adoptions,
      stopped,
      committedAt,
      jobs: [],
    };
  }

  #step(head: FullHead, header: BatchHeader, open: OpenBody | null): FoldStep {
    if (this.faults.ignoresEpochs !== true || header.kind === "open")
      return fold(this.database.site, head, header, open);
    return fold(this.database.site, head, { ...header, epoch: head.epoch, owner: head.owner ?? header.owner }, open);
  }
}

/** An upsert: of two versions of a row the larger (epoch, position) stays. */
export function putRow(tables: Tables, row: ClusterRow, byPositionAlone = false): void {
  const before = tables.rows.get(row.id);
  const epochOf = (of: ClusterRow): number => (byPositionAlone ? 0 : of.changedEpoch);
  const newer =
    before === undefined ||
    comparePlaces(
      { epoch: epochOf(before), position: before.changedPosition },
      { epoch: epochOf(row), position: row.changedPosition },
    ) < 0;
  if (newer) tables.rows.set(row.id, row);
}

export const keyOf = (row: { readonly shard: number; readonly key: string }): string => `${row.shard}/${row.key}`;

export function putKey(tables: Tables, row: KeyRow): void {
  const before = tables.keys.get(keyOf(row));
  const newer =
    before === undefined ||
    comparePlaces(
      { epoch: before.changedEpoch, position: before.changedPosition },
      { epoch: row.changedEpoch, position: row.changedPosition },
    ) < 0;
  if (newer) tables.keys.set(keyOf(row), row);
  for (const [at, aside] of tables.divergent)
    if (aside.key === row.key && at.startsWith(`${row.shard}/`)) tables.divergent.set(at, { ...aside, open: false });
}

const tailOf = (tables: Tables, head: FullHead, last: number): OutboxEntry[] =>
  (tables.outbox.get(head.shard) ?? []).filter((row) => row.epoch === head.epoch && row.position > last);

function cannotSetAside(tables: Tables, head: FullHead, last: number): string | undefined {
  const { length } = tailOf(tables, head, last);
  if (length === head.position - last) return undefined;
  return `its divergent operations can't be set aside: the outbox holds ${length} of ${head.position - last}`;
}

/** See replication/divergence.ts. */
function setAside(tables: Tables, head: FullHead, last: number): number {
  const all = tables.outbox.get(head.shard) ?? [];
  const tail = tailOf(tables, head, last);
  for (const row of tail) {
    const { cluster, key } = decodeRecord(row.record);
    if (cluster === undefined) continue;
    tables.divergent.set(`${head.shard}/${row.epoch}/${row.position}`, {
      mark: cluster.name,
      key: key?.key ?? null,
      open: true,
    });
    remove(tables, head.shard, cluster.id);
  }
  for (const [at, row] of tables.keys)
    if (row.shard === head.shard && row.changedEpoch === head.epoch && row.changedPosition > last)
      tables.keys.delete(at);
  tables.outbox.set(
    head.shard,
    all.filter((row) => !tail.includes(row)),
  );
  return tail.length;
}

function voidCopies(tables: Tables, shard: number, ended: number, last: number): void {
  for (const { id, cut, shard: of } of tables.restores.values())
    if (of === shard && cut !== null && cut.epoch === ended && cut.position > last) remove(tables, shard, id);
}

function remove(tables: Tables, shard: number, id: string): void {
  tables.rows.delete(id);
  tables.restores.set(id, { id, shard, cut: null });
}

function replace(target: Map<never, never>, source: ReadonlyMap<unknown, unknown>): void {
  target.clear();
  for (const [key, value] of source) target.set(key as never, value as never);
}
