import { pack, unpack } from "msgpackr";
import type { Messenger } from "../../infra/nats/messaging.js";
import type { ClusterRow } from "../../replication/entities.js";
import type { FullHead } from "../../replication/heads.js";
import { comparePlaces, type ShardId } from "../../shards/ids.js";
import type { ShardMap } from "../../shards/map.js";
import { waitingOf, type MemoryDatabase, type Waiting } from "./database.js";
import type { Process } from "./scheduler.js";
import { putRow } from "./replica.js";

interface CopyRequest {
  readonly shard: number;
  readonly ids: readonly string[];
  /** Where the asker is. */
  readonly epoch: number;
  readonly position: number;
}

interface CopyAnswer {
  readonly epoch: number;
  readonly position: number;
  readonly rows: readonly ClusterRow[];
}

const tickMs = 200;

/** Brings back rows that a divergent tail had touched, with the steps of replication/restore.ts, whose SQL can't run here. */
export class MemoryRestorer {
  #waiting: ReadonlySet<number> = new Set();
  #asked = 0;
  #taken = 0;

  constructor(
    private readonly o: {
      readonly site: string;
      readonly database: MemoryDatabase;
      readonly process: Process;
      readonly messenger: Messenger;
      readonly map: ShardMap;
      readonly active: () => boolean;
      readonly say: (text: string) => void;
      /** Datacenters that an owner asks; none: it asks nobody, and gives copies of rows that it waits for itself. */
      readonly askAll: readonly string[];
      /** A late answer never replaces a newer one. */
      readonly inOrder: boolean;
    },
  ) {}

  async start(): Promise<void> {
    await this.refresh();
    this.o.messenger.subscribe(
      `copy.${this.o.site}`,
      (message) => {
        void this.#answer(unpack(message.data) as CopyRequest).then(
          (answer) => message.respond(pack(answer)),
          () => undefined,
        );
      },
      { queue: "copy" },
    );
    void this.#run();
  }

  shardWaits(shard: ShardId): boolean {
    return this.#waiting.has(shard);
  }

  get count(): number {
    return this.#waiting.size;
  }

  async refresh(): Promise<void> {
    const { database, process } = this.o;
    this.take(await database.run(process, "restores", () => waitingOf(database)));
  }

  take(waiting: Waiting): void {
    if (this.o.inOrder && waiting.order < this.#taken) return;
    this.#taken = waiting.order;
    this.#waiting = waiting.shards;
  }

  async #run(): Promise<void> {
    for (;;) {
      try {
        if (this.#waiting.size > 0 && this.o.active()) {
          for (const shard of [...this.#waiting]) await this.#restore(shard).catch(() => undefined);
          await this.#settle();
        }
        await this.refresh();
      } catch {
        // The next round tries again.
      }
      await this.o.process.time.sleep(this.#waiting.size > 0 ? tickMs : 5 * tickMs);
    }
  }

  async #restore(shard: number): Promise<void> {
    const { database, process, map, site, messenger } = this.o;
    let owner = map.get(shard as ShardId)?.owner;
    if (owner === site) {
      const others = this.o.askAll.filter((other) => other !== site);
      owner = others[this.#asked++ % Math.max(1, others.length)];
    }
    if (owner === undefined || owner === null) return;
    const ids = await database.run(process, "restores", (tables) =>
      [...tables.restores.values()]
        .filter((restore) => restore.shard === shard && restore.cut === null)
        .map(({ id }) => id),
    );
    if (ids.length === 0) return;
    const here = map.get(shard as ShardId);
    const request: CopyRequest = { shard, ids, epoch: here?.epoch ?? 0, position: here?.position ?? 0 };
    const answer = unpack(await messenger.request(`copy.${owner}`, pack(request), 2_000)) as CopyAnswer;
    await database.run(process, "restore", (tables) => {
      const head = tables.heads.get(shard);
      if (head === undefined || !inLine(head, answer)) return;
      for (const row of answer.rows) putRow(tables, row);
      this.o.say(
        `restores ${ids.join(", ")} of shard ${shard} from ${owner} at epoch ${answer.epoch}, position ${answer.position}: got ${answer.rows.map((row) => `${row.id} (${row.changedEpoch}, ${row.changedPosition})`).join(", ")}`,
      );
      for (const id of ids)
        if (tables.restores.has(id))
          tables.restores.set(id, { id, shard, cut: { epoch: answer.epoch, position: answer.position } });
    });
  }

  #settle(): Promise<void> {
    return this.o.database.run(this.o.process, "settle copies", (tables) => {
      for (const { id, shard, cut } of tables.restores.values()) {
        const head = tables.heads.get(shard);
        if (head === undefined || cut === null) continue;
        if (head.epoch > cut.epoch || (head.epoch === cut.epoch && head.position >= cut.position)) {
          tables.restores.delete(id);
          this.o.say(`the copy of ${id} counts, at epoch ${head.epoch}, position ${head.position}`);
        }
      }
    });
  }

  #answer(request: CopyRequest): Promise<CopyAnswer> {
    return this.o.database.run(this.o.process, "copy", (tables) => {
      const head = tables.heads.get(request.shard);
      const anybody = this.o.askAll.length > 0;
      if (head === undefined || (head.state !== "owned" && !anybody)) throw new Error("not the owner of the shard");
      if (anybody && comparePlaces(head, request) < 0) throw new Error("is behind the asker");
      if (anybody && request.ids.some((id) => tables.restores.has(id))) throw new Error("waits for these rows itself");
      return {
        epoch: head.epoch,
        position: head.position,
        rows: request.ids.flatMap((id) => tables.rows.get(id) ?? []),
      };
    });
  }
}

/** See replication/restore.ts: a cut above where its epoch ended holds what was never published. */
function inLine(head: FullHead, cut: { readonly epoch: number; readonly position: number }): boolean {
  if (cut.epoch >= head.epoch) return true;
  const end = head.epochEnds.find((each) => each.epoch === cut.epoch);
  return end !== undefined && cut.position <= end.last;
}
