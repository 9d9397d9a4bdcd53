import type { OpenRequest, OpenResult, OwnershipLog } from "../../shards/ownership-log.js";
import type { Head } from "../../shards/map.js";
import { ShardMap } from "../../shards/map.js";
import type { SiteSet } from "../../shards/site-set.js";
import { SiteWord, type Heartbeat, type SiteAnswer, type SiteWordOptions } from "../../shards/site-word.js";
import type { ShardStore, Vote, VoteStore } from "../../shards/store.js";
import type { Messenger } from "../../infra/nats/messaging.js";
import { pack } from "msgpackr";

/** Rules that can be removed from outside, by what is put around the real classes or below them. Letters are DESIGN.md's, section 4. */
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
  "lease-majority": "the own site's promise is enough for a lease",
  "applier-epoch": "the applier takes records of any epoch, and rows compare by position alone",
} as const;

export type Rule = keyof typeof rules;
export type Off = ReadonlySet<Rule>;

/** The real word of a site, with rules of its removed. */
export class TamperedWord extends SiteWord {
  #first = true;
  readonly #own: SiteWordOptions;

  constructor(
    options: SiteWordOptions,
    private readonly off: Off,
  ) {
    super(options);
    this.#own = options;
  }

  override get silenceMs(): number {
    if (this.off.has("b-silence") && this.#first) return 0;
    return this.off.has("c-term") ? this.#own.leaseMs * 1.02 + 50 : super.silenceMs;
  }

  override async lockHeld(askedAt: number, fresh: boolean): Promise<void> {
    await super.lockHeld(askedAt, fresh);
    this.#first = false;
  }

  override heartbeat(heartbeat: Heartbeat): SiteAnswer | undefined {
    const { site } = this.#own;
    const incarnation = this.#own.incarnation();
    const [theirs, number] = heartbeat.acks[site] ?? [0, 0];
    let ack: [number, number] = [theirs, number];
    if (this.off.has("a-refuse")) ack = [incarnation, Infinity];
    else if (this.off.has("a-all") && number >= 1) ack = [theirs, Infinity];
    else if (this.off.has("i-ack")) ack = [incarnation, number];
    return super.heartbeat({ ...heartbeat, acks: { ...heartbeat.acks, [site]: ack } });
  }

  override free(target: string): boolean {
    return this.off.has("a-promise") || super.free(target);
  }
}

/** A view that believes whatever came last. */
export class BelievingMap extends ShardMap {
  override adopt(head: Head): boolean {
    const known = this.get(head.shard);
    return super.adopt({ ...head, revision: (known?.revision ?? 0) + 1 });
  }
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

/** A candidate whose shard moved on goes after the newer epoch. */
export function tamperedOwnership(ownership: OwnershipLog, off: Off): OwnershipLog {
  if (!off.has("e-epoch")) return ownership;
  const open = async (request: OpenRequest, deadline: number): Promise<OpenResult> => {
    const result = await ownership.open(request, deadline);
    if (result.kind !== "moved" || result.owner === request.to) return result;
    return ownership.open({ ...request, against: result.epoch, from: result.owner }, deadline);
  };
  return { open };
}

/** Votes of sites that do not answer are made up. */
export function tamperedMessenger(messenger: Messenger, off: Off): Messenger {
  if (!off.has("vote-majority")) return messenger;
  return {
    publish: (subject, data) => messenger.publish(subject, data),
    subscribe: (subject, handler, options) => messenger.subscribe(subject, handler, options),
    request: (subject, data, timeoutMs) =>
      messenger
        .request(subject, data, timeoutMs)
        .catch(() => pack({ site: subject.slice(subject.lastIndexOf(".") + 1) })),
  };
}

/** A set of one: the own site's word is enough, others' answers still come. */
export const loneSet = (set: SiteSet, off: Off): SiteSet => {
  if (!off.has("lease-majority")) return set;
  const sites = set.sites.slice();
  // `promisesNeeded` asks for the number of sites, the rest of the keeper for their names.
  return {
    ...set,
    sites: Object.assign(Object.create(sites) as typeof sites, { length: 1, some: sites.some.bind(sites) }),
  };
};
