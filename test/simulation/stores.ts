import { comparePlaces, position as toPosition, type Epoch, type Partition, type ShardId } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import { addVote } from "../../shards/postgres-store.js";
import { transition } from "../../shards/states.js";
import type { ShardStore, Vote, VoteStore } from "../../shards/store.js";
import type { ClusterRow } from "../../replication/entities.js";
import { fold, type FoldStep } from "../../replication/fold.js";
import type { FullHead } from "../../replication/heads.js";
import type { Outbox } from "../../replication/publisher.js";
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

/** ShardStore and VoteStore on a datacenter's tables, statement by statement as shards/postgres-store.ts. */
export class MemoryShardStore implements ShardStore, VoteStore {
  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
  ) {}

  heads(): Promise<Head[]> {
    return this.database.run(this.process, "heads", (tables) => [...tables.heads.values()]);
  }

  fence(
    epochs: Readonly<Record<string, number>>,
    voter: { readonly site: string; readonly incarnation: number },
    closing: number,
  ): Promise<Head[]> {
    return this.database.run(this.process, "fence", (tables) => {
      const before = tables.incarnations.get(voter.site);
      tables.incarnations.set(voter.site, Math.max(before ?? 0, voter.incarnation));
      for (const [shard, epoch] of Object.entries(epochs)) {
        const head = tables.heads.get(Number(shard));
        if (head === undefined || head.fencedThrough >= epoch) continue;
        tables.heads.set(head.shard, {
          ...head,
          fencedThrough: epoch as Epoch,
          state: head.epoch <= epoch ? (transition(head.state, "fence")?.next ?? head.state) : head.state,
          revision: head.revision + 1,
        });
      }
      if (before !== undefined && before < voter.incarnation)
        for (const head of tables.heads.values())
          tables.heads.set(head.shard, {
            ...head,
            closing,
            fencedThrough: Math.max(head.fencedThrough, head.epoch) as Epoch,
            state: transition(head.state, "close")?.next ?? head.state,
            revision: head.revision + 1,
          });
      return [...tables.heads.values()];
    });
  }

  incarnations(): Promise<Map<string, number>> {
    return this.database.run(this.process, "incarnations", (tables) => new Map(tables.incarnations));
  }

  lock(name: string, holder: string, termMs: number): Promise<{ readonly fresh: boolean } | null> {
    return this.database.run(this.process, "lock", (tables) => {
      const now = this.database.clock;
      const old = tables.locks.get(name);
      if (old !== undefined && old.holder !== holder && old.until >= now) return null;
      tables.locks.set(name, { holder, until: now + termMs });
      return { fresh: old?.holder !== holder };
    });
  }

  unlock(name: string, holder: string): Promise<void> {
    return this.database.run(this.process, "unlock", (tables) => {
      if (tables.locks.get(name)?.holder === holder) tables.locks.delete(name);
    });
  }

  confirm(shard: ShardId, epoch: Epoch): Promise<Head | undefined> {
    return this.database.run(this.process, "confirm", (tables) => {
      const head = tables.heads.get(shard);
      if (head === undefined || head.epoch !== epoch || (head.state !== "owned" && head.state !== "moving")) return;
      const confirmed = { ...head, confirmed: true, revision: head.revision + 1 };
      tables.heads.set(shard, confirmed);
      return confirmed;
    });
  }

  refreshNode(node: string, _url: string, goneMs: number): Promise<string[]> {
    return this.database.run(this.process, "canary", (tables) => {
      const now = this.database.clock;
      tables.nodes.set(node, now);
      return [...tables.nodes].filter(([other, seen]) => other !== node && seen > now - goneMs).map(([other]) => other);
    });
  }

  removeNode(node: string): Promise<void> {
    return this.database.run(this.process, "remove node", (tables) => void tables.nodes.delete(node));
  }

  beginMove(shard: ShardId, epoch: Epoch, node: string, goneMs: number) {
    return this.database.run(this.process, "begin move", (tables) => {
      const head = tables.heads.get(shard);
      if (head === undefined || head.epoch !== epoch || head.state !== "owned" || !head.confirmed) return null;
      const moving: FullHead = { ...head, state: "moving", revision: head.revision + 1 };
      tables.heads.set(shard, moving);
      const now = this.database.clock;
      const nodes = [...tables.nodes].filter(([other, seen]) => other !== node && seen > now - goneMs);
      return { head: moving, nodes: nodes.map(([other]) => other) };
    });
  }

  endMove(shard: ShardId, epoch: Epoch): Promise<Head | undefined> {
    return this.database.run(this.process, "end move", (tables) => {
      const head = tables.heads.get(shard);
      if (head?.epoch !== epoch || head.state !== "moving" || head.epoch <= head.fencedThrough || head.closing !== 0)
        return;
      const back: FullHead = { ...head, state: "owned", revision: head.revision + 1 };
      tables.heads.set(shard, back);
      return back;
    });
  }

  /** Not in the product: what another process moves is suspended, so that it can't be called off any more. */
  claim(driven: (shard: ShardId) => boolean): Promise<Head[]> {
    return this.database.run(this.process, "claim", (tables) => {
      for (const head of tables.heads.values())
        if (head.state === "moving" && !driven(head.shard))
          tables.heads.set(head.shard, { ...head, state: "suspended", revision: head.revision + 1 });
      return [...tables.heads.values()];
    });
  }

  load(): Promise<Map<string, Vote>> {
    return this.database.run(this.process, "load votes", (tables) => new Map(tables.votes));
  }

  vote(target: string, epochs: Readonly<Record<string, number>>): Promise<Vote> {
    return this.database.run(this.process, "vote", (tables) => {
      const vote = addVote(tables.votes.get(target), epochs);
      tables.votes.set(target, vote);
      return vote;
    });
  }
}

export class MemoryOutbox implements Outbox {
  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
  ) {}

  read(shard: ShardId, epoch: Epoch, after: number, limit: number) {
    return this.database.run(this.process, "outbox", (tables) =>
      (tables.outbox.get(shard) ?? []).filter((row) => row.epoch === epoch && row.position > after).slice(0, limit),
    );
  }
}

export interface ReplicaHooks {
  applied(site: string, message: Incoming, before: FullHead, step: FoldStep): void;
}

export interface ReplicaFaults {
  /** The applier takes records of any epoch, and rows compare by position alone. */
  ignoresEpochs?: boolean;
}

const copied = ["heads", "rows", "outbox", "divergent", "restores"] as const;

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
    return this.database.run(this.process, "apply", (tables) => {
      for (const { partition, from } of stretches)
        if ((tables.progress.get(partition) ?? 0) !== from) throw new Overtaken();
      // A transaction: what it changed counts only if nothing of it fails.
      const draft: Tables = { ...tables };
      for (const name of copied) Object.assign(draft, { [name]: new Map(tables[name] as Map<unknown, unknown>) });
      const told: [Incoming, FullHead, FoldStep][] = [];
      const applied = this.#fold(
        draft,
        stretches.flatMap((stretch) => stretch.messages),
        told,
      );
      for (const { partition, from, messages } of stretches)
        tables.progress.set(partition, messages.at(-1)?.sequence ?? from);
      for (const name of copied) replace(tables[name] as Map<unknown, unknown>, draft[name]);
      for (const [message, before, step] of told) this.hooks.applied(this.database.site, message, before, step);
      return applied;
    });
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
            if (record.cluster === undefined) return;
            const place = { changedEpoch: epoch, changedPosition: toPosition(head.position + 1 + index) };
            putRow(tables, { ...record.cluster, ...place }, this.faults.ignoresEpochs === true);
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
    const { cluster } = decodeRecord(row.record);
    if (cluster === undefined) continue;
    tables.divergent.set(`${head.shard}/${row.epoch}/${row.position}`, cluster.name);
    remove(tables, head.shard, cluster.id);
  }
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

function replace(target: Map<unknown, unknown>, source: ReadonlyMap<unknown, unknown>): void {
  target.clear();
  for (const [key, value] of source) target.set(key, value);
}
