import { asError, Problem } from "../../infra/errors.js";
import type { ClusterRow, KeyRow } from "../../replication/entities.js";
import {
  CommitUnknown,
  type LockedHead,
  type OwnerChanges,
  type OwnerStore,
  type OwnerTransaction,
} from "../../replication/owner-store.js";
import type { FullHead } from "../../replication/heads.js";
import type { ShardId } from "../../shards/ids.js";
import { shapes } from "../../replication/rows.js";
import type { HeldLocks, MemoryDatabase } from "./database.js";
import { putKey, putRow } from "./replica.js";
import type { Process } from "./scheduler.js";

export interface OwnerFaults {
  /** The writing statement checks neither epoch nor state (rule f). */
  readonly checksNothing?: boolean;
}

/** OwnerStore on a datacenter's tables: the heads of the shards stay locked from `lock` to the end, also while the process stands still. */
export class MemoryOwnerStore implements OwnerStore {
  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
    private readonly faults: OwnerFaults,
  ) {}

  async begin(): Promise<OwnerTransaction> {
    return new MemoryOwnerTransaction(this.database, this.process, this.faults);
  }
}

class MemoryOwnerTransaction implements OwnerTransaction {
  #locked: Promise<Map<ShardId, LockedHead>> = Promise.resolve(new Map<ShardId, LockedHead>());
  #held: HeldLocks | undefined;

  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
    private readonly faults: OwnerFaults,
  ) {}

  lock(shards: readonly ShardId[]): Promise<Map<ShardId, LockedHead>> {
    this.#locked = this.database.run(
      this.process,
      "lock heads",
      (tables) => {
        this.#held = this.database.hold(this.process, shards);
        return new Map(
          shards.flatMap((shard) => {
            const head = tables.heads.get(shard);
            return head === undefined ? [] : [[shard, this.#believed(head)] as const];
          }),
        );
      },
      shards,
    );
    return this.#locked;
  }

  /** Where the statement checks nothing, the head that this process last held. */
  #believed(head: FullHead): LockedHead {
    const held = (this.process.held ??= new Map<number, number>());
    if (head.state === "owned") held.set(head.shard, head.epoch);
    const epoch = held.get(head.shard);
    return this.faults.checksNothing !== true || epoch === undefined
      ? head
      : { ...head, state: "owned", epoch: epoch as typeof head.epoch };
  }

  async clusters(wanted: readonly { readonly id: string }[]): Promise<readonly ClusterRow[]> {
    await this.#locked;
    return wanted.flatMap(({ id }) => this.database.tables.rows.get(id) ?? []);
  }

  async keys(wanted: readonly { readonly tenant: string; readonly key: string }[]): Promise<readonly KeyRow[]> {
    await this.#locked;
    return wanted.flatMap(({ key }) => [...this.database.tables.keys.values()].filter((row) => row.key === key));
  }

  async jobs() {
    return [];
  }

  async activeJobs() {
    return [];
  }

  async tasks() {
    return [];
  }

  async workers() {
    return [];
  }

  async commit(changes: OwnerChanges): Promise<void> {
    const held = this.#held;
    try {
      await this.database.run(
        this.process,
        "write",
        (tables) => {
          if (held?.lost === true) throw new Problem("no_lease", "the server has ended the transaction");
          for (const { shard, epoch, since, count } of changes.moved) {
            const head = tables.heads.get(shard);
            if (head === undefined) throw new Problem("not_owner");
            const same = head.epoch === epoch && head.state === "owned" && head.position === since;
            if (!same && this.faults.checksNothing !== true) throw new Problem("not_owner");
            tables.heads.set(shard, { ...head, position: (since + count) as typeof head.position });
          }
          for (const { shard, epoch, position, record } of changes.records)
            tables.outbox.set(shard, [
              ...(tables.outbox.get(shard) ?? []),
              { epoch, position, record, committedAt: changes.now },
            ]);
          for (const [, shape, rows] of changes.tables)
            for (const row of rows)
              if (shape === shapes.clusters) putRow(tables, row as ClusterRow);
              else if (shape === shapes.keys) putKey(tables, row as KeyRow);
              else throw new TypeError(`the simulation has no table ${shape.table}`);
          held?.release();
        },
        [],
      );
    } catch (error) {
      if (error instanceof Problem) throw error;
      throw new CommitUnknown(asError(error));
    }
  }

  async end(): Promise<void> {
    this.#held?.release();
  }
}
