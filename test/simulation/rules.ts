import { pack } from "msgpackr";
import type { Messenger } from "../../infra/nats/messaging.js";
import { LogOwnership } from "../../replication/ownership.js";
import { OwnerGate } from "../../services/engine/gate.js";
import type { ShardId } from "../../shards/ids.js";
import { Lease } from "../../shards/lease.js";
import { ShardMap, type Head } from "../../shards/map.js";
import { SiteWord, type Heartbeat } from "../../shards/site-word.js";
import type { ShardStore, Vote, VoteStore } from "../../shards/store.js";
import type { Settings } from "./node.js";

/** Rules that can be removed from outside, by what is put around the real classes or in their place. Letters are DESIGN.md's, section 4. */
export const rules = {
  "a-promise": "a site votes although its promise has not run out",
  "a-durable": "a site's votes are in its process's memory alone",
  "a-refuse": "a site promises to nodes that did not acknowledge its votes",
  "a-all": "acknowledging one vote counts for all later ones",
  "b-silence": "a process gives its site's word at once after its start",
  "c-coordinator": "every process of a site gives its word",
  "c-term": "a new coordinator is silent for a lease, without the lock's term",
  "d-ack": "a vote is acknowledged before the fence is stored",
  "d-stop": "a node goes on with its lease while it stores a fence, and after it",
  "d-fence": "a fence is acknowledged and never stored",
  "d-epoch": "a fence suspends what is owned now, and is not kept for epochs heard of later",
  "e-epoch": "a candidate goes on against a newer epoch than it has votes for",
  "f-lease": "the lease is checked neither before an operation nor before its answer",
  "f-before": "the lease is not checked before an operation",
  "f-after": "the lease is not checked before the answer",
  "f-statement": "the writing statement checks neither epoch nor state",
  "g-confirm": "the first process of a datacenter serves what its database says it owns, without the log's word",
  "g-moving": "a shard is given away without its database being told before",
  "h-hold-all": "a shard is given away while the other nodes of its owner go on",
  "h-forward": "a node's view takes late answers of its database as news",
  "i-incarnation": "a database that went back is not closed, and old statements reach it",
  "i-ack": "acknowledgements count under any incarnation",
  cas: "the log takes every append",
  "vote-majority": "a site that does not answer counts as a vote",
  "lease-majority": "one site's promise is enough for a lease",
  "applier-epoch": "the applier takes records of any epoch, and rows compare by position alone",
} as const;

export type Rule = keyof typeof rules;
export type Off = ReadonlySet<Rule>;

type Prototype = Record<string, unknown>;

/**
 * Takes rules out of the real classes. One run at a time: what is replaced is replaced for all.
 * @returns puts them back
 */
export function remove(off: Off, settings: Settings): () => void {
  const undo: (() => void)[] = [];
  const replace = (of: object, name: string, make: (before: PropertyDescriptor) => PropertyDescriptor): void => {
    const before = Object.getOwnPropertyDescriptor(of, name);
    if (before === undefined) throw new TypeError(`there is no ${name} to replace`);
    Object.defineProperty(of, name, { ...before, ...make(before) });
    undo.push(() => Object.defineProperty(of, name, before));
  };
  /** `instead` is called as the method, with the method itself as its first argument. */
  const method = (of: object, name: string, instead: (was: never, ...args: never[]) => unknown): void =>
    replace(of, name, ({ value }) => ({
      value(this: unknown, ...args: never[]) {
        const was = (...own: unknown[]): unknown => (value as (...a: unknown[]) => unknown).apply(this, own);
        return (instead as (...a: unknown[]) => unknown).call(this, was, ...args);
      },
    }));

  if (off.has("a-promise")) method(SiteWord.prototype, "free", () => true);
  if (off.has("b-silence") || off.has("c-term")) {
    const spoke = new WeakSet<object>();
    const short = settings.leaseMs * 1.02 + 50;
    replace(SiteWord.prototype, "silenceMs", (before) => ({
      get(this: object): number {
        if (off.has("b-silence") && !spoke.has(this)) return 0;
        return off.has("c-term") ? short : (before.get?.call(this) as number);
      },
    }));
    method(
      SiteWord.prototype,
      "lockHeld",
      async function (this: object, was: (...a: unknown[]) => Promise<void>, ...a: unknown[]) {
        await was(...a);
        spoke.add(this);
      },
    );
  }
  if (off.has("a-refuse") || off.has("a-all") || off.has("i-ack"))
    method(SiteWord.prototype, "heartbeat", (was: SiteWord["heartbeat"], heartbeat: Heartbeat) => {
      const answer = was(heartbeat);
      if (answer?.kind !== "refusal") return answer;
      const [incarnation, number] = heartbeat.acks[answer.site] ?? [0, 0];
      const once = off.has("a-all") && incarnation === answer.incarnation && number >= 1;
      if (!once && !off.has("a-refuse") && !(off.has("i-ack") && number >= answer.vote.number && incarnation > 0))
        return answer;
      return was({ ...heartbeat, acks: { ...heartbeat.acks, [answer.site]: [answer.incarnation, Infinity] } });
    });
  if (off.has("d-stop")) method(Lease.prototype, "drop", () => undefined);
  if (off.has("lease-majority"))
    method(Lease.prototype, "promised", (was: Lease["promised"], beat: number, site: string) => was(beat, site, 1));
  if (off.has("h-forward"))
    method(ShardMap.prototype, "adopt", function (this: ShardMap, was: ShardMap["adopt"], head: Head) {
      return was({ ...head, revision: (this.get(head.shard)?.revision ?? 0) + 1 });
    });
  if (off.has("e-epoch"))
    method(
      LogOwnership.prototype,
      "open",
      async (was: LogOwnership["open"], request: Parameters<LogOwnership["open"]>[0], deadline: number) => {
        const result = await was(request, deadline);
        if (request.kind !== "takeover" || request.from === request.to) return result;
        if (result.kind !== "moved" || result.owner === request.to) return result;
        return was({ ...request, against: result.epoch, from: result.owner }, deadline);
      },
    );
  const enter = off.has("f-lease") || off.has("f-before");
  const leave = off.has("f-lease") || off.has("f-after");
  const lenient = (gate: OwnerGate): OwnerGate =>
    new OwnerGate({
      ...((gate as unknown as Prototype)["o"] as ConstructorParameters<typeof OwnerGate>[0]),
      leases: { valid: true },
    });
  type Ask = (this: OwnerGate, shard: ShardId, after?: boolean) => number;
  if (enter)
    replace(OwnerGate.prototype, "enter", ({ value }) => ({
      value(this: OwnerGate, shard: ShardId) {
        return (value as Ask).call(lenient(this), shard);
      },
    }));
  if (leave) method(OwnerGate.prototype, "mayAcknowledge", () => true);
  if (enter || leave)
    replace(OwnerGate.prototype, "held", ({ value }) => ({
      value(this: OwnerGate, shard: ShardId, after?: boolean) {
        return (value as Ask).call((after === true ? leave : enter) ? lenient(this) : this, shard);
      },
    }));
  return () => {
    for (const put of undo.reverse()) put();
  };
}

export function tamperedVotes(store: VoteStore, off: Off): VoteStore {
  if (!off.has("a-durable")) return store;
  const votes = new Map<string, Vote>();
  return {
    load: async () => (await store.load(), new Map(votes)),
    vote: async (target, epochs) => {
      const before = votes.get(target);
      const merged: Record<string, number> = { ...before?.epochs };
      for (const [shard, epoch] of Object.entries(epochs)) merged[shard] = Math.max(merged[shard] ?? 0, epoch);
      const vote = { number: (before?.number ?? 0) + 1, epochs: merged };
      votes.set(target, vote);
      return vote;
    },
  };
}

export function tamperedStore<T extends ShardStore>(store: T, off: Off): ShardStore {
  const heads = store.heads.bind(store);
  let bump = 0;
  /** This process holds the shard; the database does not know. */
  const pretendMove = async (shard: number, epoch: number) => {
    const head = (await heads()).find((h) => h.shard === shard);
    if (head?.epoch !== epoch || head.state !== "owned" || !head.confirmed) return null;
    return { head: { ...head, state: "moving" as const, revision: head.revision + (bump += 1e-6) }, nodes: [] };
  };
  return {
    heads,
    fence: (epochs, voter, closing) => {
      if (off.has("d-fence")) return heads();
      const stored = store.fence(epochs, voter, closing);
      if (off.has("d-stop")) return stored.then(() => []);
      if (!off.has("d-ack")) return stored;
      stored.catch(() => undefined);
      return Promise.resolve([]);
    },
    incarnations: () => store.incarnations(),
    lock: async (name, holder, termMs) => {
      const lock = await store.lock(name, holder, termMs);
      return lock ?? (off.has("c-coordinator") && name === "coordinator" ? { fresh: false } : null);
    },
    unlock: (name, holder) => store.unlock(name, holder),
    confirm: (shard, epoch) => store.confirm(shard, epoch),
    refreshNode: (node, url, goneMs) => store.refreshNode(node, url, goneMs),
    removeNode: (node) => store.removeNode(node),
    beginMove: async (shard, epoch, node, nodeGoneMs) => {
      const begun = await (off.has("g-moving")
        ? pretendMove(shard, epoch)
        : store.beginMove(shard, epoch, node, nodeGoneMs));
      return begun === null || !off.has("h-hold-all") ? begun : { ...begun, nodes: [] };
    },
    suspendMove: (shard, epoch) => store.suspendMove(shard, epoch),
    renounce: (shard, epoch) => store.renounce(shard, epoch),
    endMove: async (shard, epoch) => {
      if (!off.has("g-moving")) return store.endMove(shard, epoch);
      const head = (await heads()).find((h) => h.shard === shard);
      return head?.epoch === epoch ? { ...head, revision: head.revision + (bump += 1e-6) } : undefined;
    },
  };
}

/** Votes of sites that do not answer are made up. */
export function tamperedMessenger(messenger: Messenger, off: Off): Messenger {
  if (!off.has("vote-majority")) return messenger;
  return {
    publish: (subject, data) => messenger.publish(subject, data),
    subscribe: (subject, handler, options) => messenger.subscribe(subject, handler, options),
    request: (subject, data, timeoutMs) =>
      messenger.request(subject, data, timeoutMs).catch((error: unknown) => {
        if (!subject.includes(".vote.")) throw error;
        return pack({ site: subject.slice(subject.lastIndexOf(".") + 1) });
      }),
  };
}
