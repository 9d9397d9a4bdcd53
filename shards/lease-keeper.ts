import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Random } from "../infra/random.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "./ids.js";
import { Lease } from "./lease.js";
import type { ShardMap } from "./map.js";
import type { NodeReport, Peers } from "./peers.js";
import { promisesSuffice, votersOf, type SiteSet } from "./site-set.js";
import type { Heartbeat, SiteAnswer } from "./site-word.js";
import type { ShardStore } from "./store.js";

/** Subjects of the group's heartbeats and votes. */
export const heartbeatSubject = (group: string): string => `hothot.${group}.hb`;
export const answerSubject = (group: string, dc: SiteName, node: string): string => `hothot.${group}.hba.${dc}.${node}`;
export const voteSubject = (group: string, site: SiteName): string => `hothot.${group}.vote.${site}`;

/** On the wire: the heartbeat with the node's report. */
export interface HeartbeatMessage {
  readonly heartbeat: Heartbeat;
  readonly report: NodeReport;
}

export interface LeaseKeeperOptions {
  readonly group: string;
  readonly dc: SiteName;
  readonly node: string;
  readonly leaseMs: number;
  readonly marginMs: number;
  readonly heartbeatMs: number;
  readonly dbDeadMs: number;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
  readonly messenger: Messenger;
  readonly store: ShardStore;
  readonly map: ShardMap;
  readonly peers: Peers;
  readonly siteSet: () => SiteSet;
  readonly incarnation: () => number;
  readonly report: () => Omit<NodeReport, "dc" | "node" | "leaseMsLeft" | "hears">;
  readonly url: string;
}

/** A node's lease: heartbeats to all sites while its database takes writes, and what a refusal asks of it (rules d and i). */
export class LeaseKeeper implements Service {
  readonly name = "lease-keeper";
  readonly #o: LeaseKeeperOptions;
  readonly #log: Logger;
  readonly #lease: Lease;
  readonly #acks: Record<SiteName, [incarnation: number, number: number]> = {};
  readonly #heardFrom = new Map<SiteName, number>();
  readonly #heardUnder = new Map<SiteName, { readonly set: number; readonly since: number }>();
  readonly #stop = new AbortController();
  readonly #listeners = new Set<(valid: boolean) => void>();
  #beat = 0;
  /** Sites whose incarnation the database knows. */
  readonly #met = new Set<SiteName>();
  readonly #meeting = new Set<SiteName>();
  #fencing = 0;
  #healthyAt = -Infinity;
  #othersInDatacenter: readonly string[] = [];
  #unsubscribe: (() => void) | undefined;
  #wasValid = false;
  /** By how much this process was too late for its last heartbeat: it, not the network, may have cost the lease. */
  #lateMs = 0;
  #loops: Promise<void>[] = [];

  constructor(options: LeaseKeeperOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "lease" });
    this.#lease = new Lease({ leaseMs: options.leaseMs, marginMs: options.marginMs });
  }

  async start(): Promise<void> {
    for (const [site, incarnation] of await this.#o.store.incarnations()) {
      this.#acks[site] = [incarnation, 0];
      this.#met.add(site);
    }
    this.#unsubscribe = this.#o.messenger.subscribe(answerSubject(this.#o.group, this.#o.dc, this.#o.node), (message) =>
      this.#answered(unpack(message.data) as SiteAnswer),
    );
    this.#loops = [this.#canaries(), this.#heartbeats()];
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    this.#lease.drop();
    await Promise.all(this.#loops);
  }

  /** Whether this node may serve its shards now (rule f). */
  get valid(): boolean {
    return this.#fencing === 0 && this.#lease.valid(this.#o.time.monotonic(), this.#o.time.wall());
  }

  get msLeft(): number {
    return this.#fencing > 0 ? 0 : this.#lease.msLeft(this.#o.time.monotonic(), this.#o.time.wall());
  }

  /** The own database took a write within `dbDeadMs`. */
  get healthy(): boolean {
    return this.#o.time.monotonic() - this.#healthyAt <= this.#o.dbDeadMs;
  }

  /** Sites whose answer came within a lease. */
  get hears(): SiteName[] {
    const now = this.#o.time.monotonic();
    return [...this.#heardFrom].filter(([, at]) => now - at < this.#o.leaseMs).map(([site]) => site);
  }

  /** Sites that answer under this number of the site set, and since when (monotonic milliseconds). */
  heardUnder(number: number): Map<SiteName, number> {
    return new Map([...this.#heardUnder].flatMap(([site, { set, since }]) => (set === number ? [[site, since]] : [])));
  }

  /** Other live nodes of this datacenter, as the database lists them. */
  get others(): readonly string[] {
    return this.#othersInDatacenter;
  }

  onChange(listener: (valid: boolean) => void): void {
    this.#listeners.add(listener);
  }

  /** Ends the lease and forgets what was acknowledged: the own database is another one (rule i). */
  drop(): void {
    this.#lease.drop();
    for (const site of Object.keys(this.#acks)) delete this.#acks[site];
    this.#notify();
  }

  async #canaries(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const began = this.#o.time.monotonic();
      try {
        this.#othersInDatacenter = await this.#o.store.refreshNode(
          this.#o.node,
          this.#o.url,
          this.#o.leaseMs + this.#o.marginMs,
        );
        // Silent for so long, it may have been taken for gone, and not have been asked to hold a shard that moved (rule h).
        if (began - this.#healthyAt > this.#o.leaseMs)
          for (const head of await this.#o.store.heads()) this.#o.map.adopt(head);
        this.#healthyAt = began;
      } catch (error) {
        this.#log.warn("canary write failed", { error: asError(error), healthy: this.healthy });
      }
      await this.#o.time.sleep(
        Math.max(10, this.#o.heartbeatMs * 2 - (this.#o.time.monotonic() - began)),
        this.#stop.signal,
      );
    }
  }

  async #heartbeats(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      this.#notify();
      if (this.healthy) this.#send();
      const due = this.#o.time.monotonic() + this.#o.heartbeatMs;
      await this.#o.time.sleep(this.#o.heartbeatMs, this.#stop.signal);
      this.#lateMs = Math.max(0, this.#o.time.monotonic() - due);
    }
  }

  #send(): void {
    const beat = ++this.#beat;
    const acks: Record<SiteName, readonly [number, number]> = {};
    for (const [site, ack] of Object.entries(this.#acks)) acks[site] = [...ack];
    const message: HeartbeatMessage = {
      heartbeat: {
        set: this.#o.siteSet().number,
        dc: this.#o.dc,
        node: this.#o.node,
        beat,
        incarnation: this.#o.incarnation(),
        acks,
      },
      report: { ...this.#o.report(), dc: this.#o.dc, node: this.#o.node, leaseMsLeft: this.msLeft, hears: this.hears },
    };
    const bytes = pack(message);
    this.#lease.sent(beat, this.#o.time.monotonic(), this.#o.time.wall());
    this.#o.messenger.publish(heartbeatSubject(this.#o.group), bytes);
  }

  #answered(answer: SiteAnswer): void {
    const set = this.#o.siteSet();
    const known = set.changing === undefined ? set.sites.some((s) => s.name === answer.site) : false;
    if (this.#stop.signal.aborted || !(known || votersOf(set).includes(answer.site))) return;
    if (this.#heardUnder.get(answer.site)?.set !== answer.set)
      this.#heardUnder.set(answer.site, { set: answer.set, since: this.#o.time.monotonic() });
    this.#heardFrom.set(answer.site, this.#o.time.monotonic());
    if (answer.kind === "refusal") void this.#refused(answer);
    else if (
      this.#fencing === 0 &&
      this.#lease.promised(answer.beat, answer.site, (sites) => promisesSuffice(set, sites))
    )
      this.#notify();
  }

  /** Stops serving, stores the fence, and only then acknowledges (rule d). */
  async #refused(answer: Extract<SiteAnswer, { kind: "refusal" }>): Promise<void> {
    const [incarnation, number] = this.#acks[answer.site] ?? [0, -1];
    if (incarnation > answer.incarnation || (incarnation === answer.incarnation && number >= answer.vote.number))
      return;
    if (!this.#met.has(answer.site) && answer.vote.number === 0) return this.#firstContact(answer);
    if (this.#fencing > 0) return;
    this.#fencing++;
    this.#lease.drop();
    this.#notify();
    this.#log.warn("a site refuses its promise until its vote is acknowledged", {
      site: answer.site,
      vote: answer.vote.number,
    });
    try {
      const heads = await this.#o.store.fence(
        answer.vote.epochs,
        { site: answer.site, incarnation: answer.incarnation },
        this.#closing(),
      );
      for (const head of heads) this.#o.map.adopt(head);
      this.#acks[answer.site] = [answer.incarnation, answer.vote.number];
      this.#met.add(answer.site);
    } catch (error) {
      this.#log.warn("the fence could not be stored", { error: asError(error) });
    } finally {
      this.#fencing--;
    }
  }

  /** A site that this datacenter's database has never met and that has no vote against it: nothing has to stop for that. */
  async #firstContact(answer: Extract<SiteAnswer, { kind: "refusal" }>): Promise<void> {
    if (this.#meeting.has(answer.site)) return;
    this.#meeting.add(answer.site);
    try {
      await this.#o.store.fence({}, { site: answer.site, incarnation: answer.incarnation }, this.#closing());
      this.#acks[answer.site] ??= [answer.incarnation, 0];
      this.#met.add(answer.site);
    } catch (error) {
      this.#log.warn("a site's incarnation could not be stored", { error: asError(error) });
    } finally {
      this.#meeting.delete(answer.site);
    }
  }

  #closing(): number {
    return 1 + Math.floor(this.#o.random.next() * (2 ** 52 - 1));
  }

  #notify(): void {
    const valid = this.valid;
    if (valid === this.#wasValid) return;
    this.#wasValid = valid;
    if (valid) this.#log.info("lease held");
    else this.#log.warn("lease lost", { healthy: this.healthy, hears: this.hears, lateMs: Math.round(this.#lateMs) });
    for (const listener of this.#listeners) listener(valid);
  }
}
