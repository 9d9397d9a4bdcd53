import type { Epoch, ShardId } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import { addVote } from "../../shards/postgres-store.js";
import { transition } from "../../shards/states.js";
import type { ShardStore, Vote, VoteStore } from "../../shards/store.js";
import type { FullHead } from "../../replication/heads.js";
import type { Outbox } from "../../replication/outbox.js";
import { closeTables, type MemoryDatabase, type Tables } from "./database.js";
import type { Process } from "./scheduler.js";

/** ShardStore and VoteStore on a datacenter's tables, statement by statement as shards/postgres-store.ts. */
export class MemoryShardStore implements ShardStore, VoteStore {
  constructor(
    private readonly database: MemoryDatabase,
    private readonly process: Process,
    private readonly faults: { readonly forgetsFences?: boolean } = {},
  ) {}

  async heads(only?: readonly ShardId[]): Promise<Head[]> {
    const all = await this.#heads("heads", () => undefined);
    return only === undefined ? all : all.filter(({ shard }) => only.includes(shard));
  }

  fence(
    epochs: Readonly<Record<string, number>>,
    voter: { readonly site: string; readonly incarnation: number },
    closing: number,
  ): Promise<Head[]> {
    return this.#heads(
      "fence",
      (tables) => {
        const before = tables.incarnations.get(voter.site);
        tables.incarnations.set(voter.site, Math.max(before ?? 0, voter.incarnation));
        for (const [shard, epoch] of Object.entries(epochs)) {
          const head = tables.heads.get(Number(shard));
          if (head === undefined || head.fencedThrough >= epoch) continue;
          tables.heads.set(head.shard, {
            ...head,
            fencedThrough: this.faults.forgetsFences === true ? head.fencedThrough : (epoch as Epoch),
            state: head.epoch <= epoch ? (transition(head.state, "fence")?.next ?? head.state) : head.state,
            revision: head.revision + 1,
          });
        }
        if (before !== undefined && before < voter.incarnation) closeTables(tables, closing);
      },
      "all",
    );
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
    return this.database.run(
      this.process,
      "confirm",
      (tables) => {
        const head = tables.heads.get(shard);
        if (head === undefined || head.epoch !== epoch || (head.state !== "owned" && head.state !== "moving")) return;
        const confirmed = { ...head, confirmed: true, revision: head.revision + 1 };
        tables.heads.set(shard, confirmed);
        return confirmed;
      },
      [shard],
    );
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
    return this.database.run(
      this.process,
      "begin move",
      (tables) => {
        const head = tables.heads.get(shard);
        if (head === undefined || head.epoch !== epoch || head.state !== "owned" || !head.confirmed) return null;
        const moving: FullHead = { ...head, state: "moving", revision: head.revision + 1 };
        tables.heads.set(shard, moving);
        const now = this.database.clock;
        const nodes = [...tables.nodes].filter(([other, seen]) => other !== node && seen > now - goneMs);
        return { head: moving, nodes: nodes.map(([other]) => other) };
      },
      [shard],
    );
  }

  endMove(shard: ShardId, epoch: Epoch): Promise<Head | undefined> {
    return this.database.run(
      this.process,
      "end move",
      (tables) => {
        const head = tables.heads.get(shard);
        if (head?.epoch !== epoch || head.state !== "moving" || head.epoch <= head.fencedThrough || head.closing !== 0)
          return;
        const back: FullHead = { ...head, state: "owned", revision: head.revision + 1 };
        tables.heads.set(shard, back);
        return back;
      },
      [shard],
    );
  }

  suspendMove(shard: ShardId, epoch: Epoch): Promise<Head | undefined> {
    return this.database.run(
      this.process,
      "suspend move",
      (tables) => {
        const head = tables.heads.get(shard);
        if (head?.epoch !== epoch || head.state !== "moving") return;
        const suspended: FullHead = { ...head, state: "suspended", revision: head.revision + 1 };
        tables.heads.set(shard, suspended);
        return suspended;
      },
      [shard],
    );
  }

  renounce(shard: ShardId, epoch: Epoch): Promise<Head | undefined> {
    return this.database.run(
      this.process,
      "renounce",
      (tables) => {
        const head = tables.heads.get(shard);
        if (head === undefined) return;
        const fenced: FullHead = {
          ...head,
          fencedThrough: Math.max(head.fencedThrough, epoch) as Epoch,
          state: head.epoch <= epoch ? (transition(head.state, "fence")?.next ?? head.state) : head.state,
          revision: head.revision + 1,
        };
        tables.heads.set(shard, fenced);
        return fenced;
      },
      [shard],
    );
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

  #heads(what: string, work: (tables: Tables) => void, touches: readonly number[] | "all" = []): Promise<Head[]> {
    return this.database.run(
      this.process,
      what,
      (tables) => {
        work(tables);
        const waiting = new Set([...tables.restores.values()].map((restore) => restore.shard));
        return [...tables.heads.values()].map((head) => ({ ...head, waits: waiting.has(head.shard) }));
      },
      touches,
    );
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
