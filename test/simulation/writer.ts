import { Problem } from "../../infra/errors.js";
import type { Time } from "../../infra/clock.js";
import type { ClusterRow } from "../../replication/entities.js";
import { encodeRecord } from "../../replication/record.js";
import type { WriteGate, WriterEvents } from "../../replication/writer.js";
import { position as toPosition, type Epoch, type Position, type ShardId } from "../../shards/ids.js";
import type { MemoryDatabase, OutboxEntry } from "./database.js";
import type { Process } from "./scheduler.js";
import { putRow } from "./replica.js";

export interface Put {
  readonly shard: ShardId;
  readonly id: string;
  /** Names the write; it is the cluster's new name. */
  readonly mark: string;
}

export interface PutDone {
  readonly epoch: Epoch;
  readonly position: Position;
}

interface Pending {
  readonly put: Put;
  readonly epoch: Epoch;
  readonly proven: boolean;
  readonly resolve: (done: PutDone) => void;
  readonly reject: (error: unknown) => void;
}

export interface WriterFaults {
  /** The statement checks neither epoch nor state (rule f). */
  checksNothing?: boolean;
}

/** The owner's transaction in memory: the gate before, one transaction per shard at a time, epoch and state in it, the gate after. */
export class MemoryWriter {
  readonly #waiting = new Map<ShardId, Pending[]>();
  readonly #busy = new Set<ShardId>();

  constructor(
    private readonly o: {
      readonly database: MemoryDatabase;
      readonly process: Process;
      readonly time: Time;
      readonly gate: WriteGate;
      readonly events: WriterEvents;
      readonly faults: WriterFaults;
    },
  ) {}

  async write(
    put: Put,
    options: { readonly durability: "local" | "replicated"; readonly deadline: number },
  ): Promise<PutDone> {
    const replicated = options.durability === "replicated";
    const epoch = this.o.gate.enter(put.shard);
    const done = await new Promise<PutDone>((resolve, reject) => {
      const queue = this.#waiting.get(put.shard) ?? [];
      queue.push({ put, epoch, proven: replicated, resolve, reject });
      this.#waiting.set(put.shard, queue);
      this.#next(put.shard);
    });
    if (replicated) await this.o.events.published(put.shard, done.epoch, done.position, options.deadline);
    return done;
  }

  #next(shard: ShardId): void {
    const batch = this.#waiting.get(shard);
    if (batch === undefined || batch.length === 0 || this.#busy.has(shard)) return;
    this.#waiting.delete(shard);
    this.#busy.add(shard);
    void this.#run(shard, batch).finally(() => {
      this.#busy.delete(shard);
      this.#next(shard);
    });
  }

  async #run(shard: ShardId, batch: readonly Pending[]): Promise<void> {
    const { gate, events, time } = this.o;
    const now = time.wall();
    let made: { readonly pending: Pending; readonly entry: OutboxEntry | null }[];
    try {
      made = await this.o.database.run(this.o.process, "write", (tables) =>
        batch.map((pending) => {
          const head = tables.heads.get(shard);
          if (head === undefined) return { pending, entry: null };
          if (this.o.faults.checksNothing !== true && (head.epoch !== pending.epoch || head.state !== "owned"))
            return { pending, entry: null };
          const epoch = this.o.faults.checksNothing === true ? pending.epoch : head.epoch;
          const position = toPosition(head.position + 1);
          const row = nextRow(tables.rows.get(pending.put.id), pending.put, now);
          const entry = {
            epoch,
            position,
            record: encodeRecord({ type: "cluster.put", at: now, cluster: row }),
            committedAt: now,
          };
          tables.heads.set(shard, { ...head, position });
          putRow(tables, { ...row, changedEpoch: epoch, changedPosition: position });
          tables.outbox.set(shard, [...(tables.outbox.get(shard) ?? []), entry]);
          return { pending, entry };
        }),
      );
    } catch (error) {
      for (const pending of batch) pending.reject(new Problem("outcome_unknown", undefined, { cause: error }));
      return;
    }
    const at = time.monotonic();
    const records = made.flatMap(({ entry }) => (entry === null ? [] : [{ ...entry, shard, at }]));
    if (records.length > 0) events.committed(records);
    for (const { pending, entry } of made) {
      if (entry === null) pending.reject(new Problem("not_owner", "the shard has moved"));
      else if (!pending.proven && !gate.mayAcknowledge(shard, pending.epoch))
        pending.reject(new Problem("outcome_unknown", "the lease ran out while the write was under way"));
      else pending.resolve({ epoch: entry.epoch, position: entry.position });
    }
  }
}

function nextRow(
  before: ClusterRow | undefined,
  put: Put,
  now: number,
): Omit<ClusterRow, "changedEpoch" | "changedPosition"> {
  const at = new Date(now).toISOString();
  return {
    tenant: "",
    id: put.id,
    shard: put.shard,
    status: "active",
    name: put.mark,
    spec: {},
    state: {},
    labels: {},
    expiresAt: null,
    version: (before?.version ?? 0) + 1,
    createdAt: before?.createdAt ?? at,
    updatedAt: at,
    deleted: false,
  };
}
