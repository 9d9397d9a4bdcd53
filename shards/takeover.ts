import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Service } from "../infra/service.js";
import type { Epoch, Partition, Position, ShardId, SiteName } from "./ids.js";
import { voteSubject } from "./lease-keeper.js";
import type { Head, ShardMap } from "./map.js";
import type { OwnershipLog } from "./ownership-log.js";
import type { Peers } from "./peers.js";
import { automaticTakeover, datacentersOf, votersOf, votesSuffice, type SiteSet } from "./site-set.js";
import { castVote, denyMs, type SiteWord, type VoteRequest } from "./site-word.js";
import { successionOrder } from "./successor.js";

export interface TakeoverOptions {
  readonly group: string;
  readonly site: SiteName;
  readonly time: Time;
  readonly log: Logger;
  readonly messenger: Messenger;
  readonly map: ShardMap;
  readonly peers: Peers;
  readonly word: SiteWord;
  readonly ownership: OwnershipLog;
  readonly siteSet: () => SiteSet;
  /** This node has a lease. */
  readonly leaseValid: () => boolean;
  /** A datacenter that was never heard gets so long to be heard, from the start of this process on; milliseconds. */
  readonly graceMs: number;
  /** Datacenters that take over first, in this order. */
  readonly preferences: readonly SiteName[];
  /** All shards of the partition could be opened here: mark close to the log's end, nothing to restore. */
  readonly canOpen: (partition: Partition) => boolean;
  /** How far this datacenter's copy of the shard is. */
  readonly reached: (shard: ShardId) => Position;
  readonly onTakeover: (info: { readonly target: SiteName; readonly shards: number; readonly ms: number }) => void;
}

const tickMs = 50;
/** Votes older than this disturb nobody. */
const votesHoldMs = 3_000;
/** What nobody opened goes to the next in order. */
const nextInOrderMs = 1_000;
const voteTimeoutMs = 600;
/** A forced vote waits until the site's last promise has run out. */
const forcedVoteTimeoutMs = 4_000;
const retryMs = 400;

/** Monotonic milliseconds; and how far this datacenter's copies were when the votes were there. */
interface Times {
  readonly began: number;
  readonly voted: number;
  readonly deadline: number;
  readonly since: ReadonlyMap<ShardId, Position>;
}

/**
 * Unplanned change of owner (section 4): a survivor that hears nothing of a datacenter any more collects votes from a
 * majority of sites, then appends the `open` of each shard that falls to it. The fold of the log does the rest.
 */
export class TakeoverWatch implements Service {
  readonly name = "takeover";
  readonly #o: TakeoverOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #running = new Set<SiteName>();
  /** Epochs that are known to have ended, by shard: the fold will say so. */
  readonly #ended = new Map<ShardId, Epoch>();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: TakeoverOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "takeover" });
  }

  async start(): Promise<void> {
    this.#loop = this.#watch();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  /**
   * An operator's takeover of some shards of a datacenter by this one.
   * @returns the shards that were opened here
   */
  async takeOver(
    target: SiteName,
    shards: readonly Head[],
    order: { readonly by: string; readonly reason: string; readonly forced: boolean },
  ): Promise<ReadonlySet<number>> {
    const set = this.#o.siteSet();
    const began = this.#o.time.monotonic();
    if (!(await this.#collectVotes(set, target, shards, order.forced))) return new Set();
    const voted = this.#o.time.monotonic();
    const times = { began, voted, since: this.#reached(shards), deadline: voted + votesHoldMs };
    const opened = await Promise.all(shards.map((head) => this.#open(target, head, times, order)));
    return new Set(shards.filter((_, index) => opened[index] === true).map((head) => head.shard));
  }

  async #watch(): Promise<void> {
    const since = this.#o.time.monotonic();
    while (!this.#stop.signal.aborted) {
      const set = this.#o.siteSet();
      if (automaticTakeover(set).possible && this.#o.word.speaks && this.#o.leaseValid())
        for (const target of this.#targets(set)) {
          if (target === this.#o.site || this.#running.has(target) || this.#o.word.silentMs(target) < 0) continue;
          // A group that starts together waits for its log, each datacenter for a different time.
          const late = this.#o.time.monotonic() - since >= this.#o.graceMs;
          if (!late && this.#o.peers.silentMs(target) === Infinity) continue;
          const shards = this.#o.map.ownedBy(target).filter((head) => !this.#hasEnded(head));
          if (shards.length === 0) continue;
          this.#running.add(target);
          void this.#takeOver(set, target, shards)
            .catch((error: unknown) => this.#log.error("a takeover failed", { target, error: asError(error) }))
            .then(() => this.#o.time.sleep(retryMs, this.#stop.signal))
            .finally(() => this.#running.delete(target));
        }
      await this.#o.time.sleep(tickMs, this.#stop.signal);
    }
  }

  /** Also one that has left: should a move have reached it late, its shards must not stay there. */
  #targets(set: SiteSet): ReadonlySet<SiteName> {
    return new Set([...datacentersOf(set), ...this.#o.map.owners()]);
  }

  async #takeOver(set: SiteSet, target: SiteName, shards: readonly Head[]): Promise<void> {
    const { time } = this.#o;
    const began = time.monotonic();
    this.#log.warn("asks for votes", {
      target,
      shards: shards.length,
      silentMs: Math.round(this.#o.word.silentMs(target)),
    });
    if (!(await this.#collectVotes(set, target, shards))) {
      this.#log.warn("too few votes", { target });
      return;
    }
    const voted = time.monotonic();
    const since = this.#reached(shards);
    const deadline = began + votesHoldMs;
    const survivors = datacentersOf(set).filter((dc) => dc !== target);
    const byPartition = new Map<Partition, Head[]>();
    for (const head of shards) byPartition.set(head.partition, [...(byPartition.get(head.partition) ?? []), head]);
    const opened = await Promise.all(
      [...byPartition].map(([partition, heads]) =>
        this.#openPartition(target, partition, heads, survivors, { began, voted, since, deadline }),
      ),
    );
    const total = opened.reduce((sum, n) => sum + n, 0);
    if (total > 0) {
      this.#log.warn("sealed", { target, shards: total, ms: Math.round(time.monotonic() - began) });
      this.#o.onTakeover({ target, shards: total, ms: time.monotonic() - began });
    }
  }

  /** @returns how many shards of the partition this datacenter opened. */
  async #openPartition(
    target: SiteName,
    partition: Partition,
    heads: readonly Head[],
    survivors: readonly SiteName[],
    times: Times,
  ): Promise<number> {
    const { time, site } = this.#o;
    const able = survivors.filter((dc) =>
      dc === site ? this.#o.canOpen(partition) : this.#o.peers.canOpen(dc, partition),
    );
    const order = successionOrder(partition, able, this.#o.preferences);
    const rank = order.indexOf(site);
    if (rank < 0) return 0;
    const mine = times.voted + rank * nextInOrderMs;
    if (mine >= times.deadline) return 0;
    await time.sleep(Math.max(0, mine - time.monotonic()), this.#stop.signal);
    const results = await Promise.all(
      heads.map((head) => this.#open(target, head, times, { by: site, reason: `${target} was silent` })),
    );
    return results.filter(Boolean).length;
  }

  /** Ownership and own lease are checked again before the append. */
  async #open(
    target: SiteName,
    head: Head,
    times: Times,
    order: { readonly by: string; readonly reason: string },
  ): Promise<boolean> {
    const { time, site } = this.#o;
    const now = this.#o.map.get(head.shard);
    if (
      this.#stop.signal.aborted ||
      now === undefined ||
      now.epoch !== head.epoch ||
      this.#hasEnded(head) ||
      !this.#o.leaseValid() ||
      time.monotonic() >= times.deadline
    )
      return false;
    const result = await this.#o.ownership.open(
      {
        shard: head.shard,
        against: head.epoch,
        from: target,
        to: site,
        kind: "takeover",
        reason: order.reason,
        by: order.by,
        sameTenure: false,
        closing: now.closing,
        phasesMs: { votes: Math.round(times.voted - times.began), wait: Math.round(time.monotonic() - times.voted) },
        since: times.since.get(head.shard) ?? now.position,
      },
      times.deadline,
    );
    if (result.kind !== "unknown") this.#ended.set(head.shard, head.epoch);
    if (result.kind === "unknown")
      this.#log.warn("a seal's outcome is unknown", { shard: head.shard, epoch: head.epoch });
    return result.kind === "opened";
  }

  #reached(heads: readonly Head[]): Times["since"] {
    return new Map(heads.map(({ shard }) => [shard, this.#o.reached(shard)]));
  }

  #hasEnded(head: Head): boolean {
    return (this.#ended.get(head.shard) ?? -1) >= head.epoch;
  }

  async #collectVotes(set: SiteSet, target: SiteName, shards: readonly Head[], forced = false): Promise<boolean> {
    const epochs: Record<string, number> = {};
    for (const head of shards) epochs[String(head.shard)] = head.epoch;
    const request: VoteRequest = {
      set: set.number,
      candidate: this.#o.site,
      target,
      epochs,
      ...(forced ? { forced } : {}),
    };
    // The own site's last promise runs out while the others' do.
    if (forced) this.#o.word.deny(target, denyMs);
    const votes = new Set<SiteName>();
    const bytes = pack(request);
    const others = votersOf(set).filter((name) => name !== target && name !== this.#o.site);
    // Another process may give the own site's word; it is asked as those of other sites are.
    const ask = (name: SiteName): Promise<SiteName> =>
      this.#o.messenger
        .request(voteSubject(this.#o.group, name), bytes, forced ? forcedVoteTimeoutMs : voteTimeoutMs)
        .then((data) => (unpack(data) as { site: SiteName }).site);
    const own = async (): Promise<boolean> =>
      this.#o.word.speaks
        ? (await castVote(this.#o.word, request, this.#o.time)) !== undefined
        : (await ask(this.#o.site).catch(() => null)) === this.#o.site;
    // Its last promise runs out while the others' do, wherever its word is given.
    const early = forced && !this.#o.word.speaks ? own() : undefined;
    // The own site votes last, and only if that makes a majority: a vote has to be acknowledged by its target, also a useless one.
    const enough = await new Promise<boolean>((resolve) => {
      let open = others.length;
      const count = (): void => {
        if (votesSuffice(set, new Set([...votes, this.#o.site]))) resolve(true);
        else if (open === 0) resolve(false);
      };
      count();
      for (const name of others)
        ask(name)
          .then((site) => votes.add(site))
          .catch((error: unknown) => this.#log.debug("no vote", { of: name, error: asError(error) }))
          .finally(() => {
            open--;
            count();
          });
    });
    return enough && (await (early ?? own()));
  }
}
