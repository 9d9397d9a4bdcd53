import type { Time } from "../infra/clock.js";
import { within } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Epoch, Partition, Position, ShardId, SiteName } from "./ids.js";
import type { Head, ShardMap } from "./map.js";
import type { Followed } from "./followed-opens.js";
import type { OwnershipLog } from "./ownership-log.js";
import type { ShardStore } from "./store.js";

export interface MoveRequest {
  readonly shard: ShardId;
  readonly to: SiteName;
  readonly kind: "switchover" | "drain" | "failback" | "rebalance";
  readonly reason: string;
  readonly by: string;
}

export type MoveResult =
  /** `heldMs` 0: the target owned the shard before this move began. */
  | { readonly kind: "moved"; readonly epoch: Epoch; readonly heldMs: number }
  /** The owner goes on in the same epoch. */
  | { readonly kind: "called_off"; readonly why: string }
  /** The append's outcome is not known: an own append settles it, so that exactly one datacenter owns the shard. */
  | { readonly kind: "unsettled"; readonly why: string };

export interface SwitchoverOptions {
  readonly site: SiteName;
  readonly node: string;
  readonly goneMs: number;
  readonly time: Time;
  readonly log: Logger;
  readonly map: ShardMap;
  readonly store: ShardStore;
  readonly ownership: OwnershipLog;
  /** This process acts for its datacenter: a move that another one drives is taken for an abandoned one. */
  readonly active: () => boolean;
  readonly leaseValid: () => boolean;
  /** The target lives, has a lease, and could open the partition now. */
  readonly canOpen: (target: SiteName, partition: Partition) => boolean;
  /** Another node of this datacenter holds the shard; rejects when it does not confirm in time. */
  readonly hold: (node: string, head: Head, timeoutMs: number) => Promise<void>;
  /** What the log is known to hold of the epoch. */
  readonly published: (head: Head) => Position;
  /** The log holds all of the epoch. */
  readonly flush: (head: Head, deadline: number) => Promise<boolean>;
  /** Task progress of running jobs is stored at the target, tied to the epoch that comes. @returns the closing that the target knows (rule i) */
  readonly carry: (head: Head, to: SiteName, timeoutMs: number) => Promise<number>;
  /** The target serves the shard in this epoch. */
  readonly opened: (to: SiteName, shard: ShardId, epoch: Epoch, timeoutMs: number) => Promise<boolean>;
  /** Phases of the change that came after its append, milliseconds. */
  readonly followed: Followed;
}

/**
 * For the target to say that it can open the shard: what it says is as old as its last heartbeat, and a shard that it has just opened
 * is in doubt there for some milliseconds, which counts for all of its partition.
 */
const patienceMs = 1_000;
/** The same once the shard is held. */
const heldPatienceMs = 400;
const lookMs = 20;
const confirmMs = 1_000;
const flushMs = 3_000;
const carryMs = 2_000;
const appendMs = 5_000;
const openedMs = 5_000;

/**
 * Planned change of owner (section 5), driven by the owner's replicator. Everything that fails before the append gives the
 * shard back at once; after it, nothing but another `open` can.
 */
export class Switchover {
  readonly #o: SwitchoverOptions;
  readonly #log: Logger;
  readonly #moving = new Set<ShardId>();

  constructor(options: SwitchoverOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "switchover" });
  }

  /** This process drives a move of the shard now. */
  isMoving(shard: ShardId): boolean {
    return this.#moving.has(shard);
  }

  async move(request: MoveRequest): Promise<MoveResult> {
    const { shard, to } = request;
    const head = this.#o.map.get(shard);
    // Whoever asked had not heard of the move that did it.
    if (head?.owner === to && to !== this.#o.site) return { kind: "moved", epoch: head.epoch, heldMs: 0 };
    if (head?.owner !== this.#o.site) return { kind: "called_off", why: `${this.#o.site} does not own shard ${shard}` };
    if (to === this.#o.site) return { kind: "called_off", why: `${to} owns shard ${shard} already` };
    if (this.#moving.has(shard) || head.state === "moving")
      return { kind: "called_off", why: "the shard is being moved already" };
    if (!this.#o.active())
      return { kind: "called_off", why: `${this.#o.site}/${this.#o.node} does not act for ${this.#o.site}` };
    if (!this.#o.leaseValid()) return { kind: "called_off", why: `${this.#o.site} has no lease` };
    this.#moving.add(shard);
    try {
      // Nothing is held yet.
      if (!(await this.#opens(to, head, patienceMs)))
        return { kind: "called_off", why: `${to} can't open the shard now` };
      return await this.#run(request, head);
    } finally {
      this.#moving.delete(shard);
    }
  }

  async #run(request: MoveRequest, before: Head): Promise<MoveResult> {
    const { time, store, map } = this.#o;
    const { shard, to } = request;
    const began = time.monotonic();
    const phases: Record<string, number> = {};
    const phase = (name: string, from: number): void => void (phases[name] = Math.round(time.monotonic() - from));
    const started = await store.beginMove(shard, before.epoch, this.#o.node, this.#o.goneMs);
    if (started === null) return { kind: "called_off", why: "the shard is not owned and confirmed here any more" };
    const { head } = started;
    map.adopt(head);
    const since = this.#o.published(head);
    let closing = 0;
    try {
      await Promise.all(started.nodes.map((node) => this.#hold(node, head)));
      phase("hold", began);
      // Nothing of the shard changes any more: both ends of the way are made ready side by side.
      const ready = time.monotonic();
      const carried = this.#o.carry(head, to, carryMs).then((known) => {
        closing = known;
        phase("carry", ready);
      });
      // Its failure is looked at below, when the log has the last write.
      carried.catch(() => undefined);
      if (!(await this.#o.flush(head, ready + flushMs)))
        return await this.#callOff(head, "the log did not take the shard's last writes in time");
      phase("flush", ready);
      await this.#whileAble(carried, to, head);
    } catch (error) {
      return this.#callOff(head, asError(error).message);
    }
    if (!this.#o.leaseValid()) return this.#callOff(head, "the lease ran out");
    if (!(await this.#opens(to, head, heldPatienceMs)))
      return this.#callOff(head, `${to} can't open the shard any more`);
    const now = map.get(shard);
    if (now?.epoch !== head.epoch || now.state !== "moving")
      return {
        kind: "unsettled",
        why: `the shard was fenced during the move: it is ${now?.state ?? "gone"} in epoch ${now?.epoch ?? 0} now`,
      };
    const opening = time.monotonic();
    const result = await this.#o.ownership.open(
      {
        shard,
        against: head.epoch,
        from: this.#o.site,
        to,
        kind: request.kind,
        reason: request.reason,
        by: request.by,
        sameTenure: true,
        closing,
        phasesMs: { ...phases },
        since,
      },
      opening + appendMs,
    );
    phase("open", opening);
    if (result.kind === "unknown") return { kind: "unsettled", why: "the log did not answer the append in time" };
    if (result.kind === "moved" && result.owner !== to)
      return { kind: "unsettled", why: `${result.owner} opened the shard meanwhile` };
    const epoch = (head.epoch + 1) as Epoch;
    const serving = time.monotonic();
    const served = await within(time, openedMs, this.#o.opened(to, shard, epoch, openedMs), false);
    phase("serve", serving);
    const { open = 0, serve = 0 } = phases;
    this.#o.followed(shard, epoch, served ? { open, serve } : { open });
    const heldMs = time.monotonic() - began;
    this.#log.info("moved", { shard, epoch, to, heldMs: Math.round(heldMs), served, ...phases });
    return { kind: "moved", epoch, heldMs };
  }

  async #opens(to: SiteName, head: Head, ms: number): Promise<boolean> {
    const { time, canOpen } = this.#o;
    for (const deadline = time.monotonic() + ms; ;) {
      if (canOpen(to, head.partition)) return true;
      if (time.monotonic() >= deadline) return false;
      await time.sleep(lookMs);
    }
  }

  /** The work's end; or, as the shard is held meanwhile, that the target can't open it any more. */
  async #whileAble(work: Promise<void>, to: SiteName, head: Head): Promise<void> {
    const { time, canOpen } = this.#o;
    const over = new AbortController();
    const ended = work.finally(() => over.abort());
    ended.catch(() => undefined);
    for (let able = time.monotonic(); !over.signal.aborted; await time.sleep(lookMs, over.signal)) {
      if (canOpen(to, head.partition)) able = time.monotonic();
      else if (time.monotonic() - able >= heldPatienceMs) throw new Error(`${to} can't open the shard any more`);
    }
    await ended;
  }

  async #hold(node: string, head: Head): Promise<void> {
    try {
      await this.#o.hold(node, head, confirmMs);
    } catch (error) {
      throw new Error(`${this.#o.site}/${node} did not confirm that it holds the shard: ${asError(error).message}`, {
        cause: error,
      });
    }
  }

  async #callOff(head: Head, why: string): Promise<MoveResult> {
    this.#log.warn("a move is called off", { shard: head.shard, epoch: head.epoch, why });
    for (let tries = 0; tries < 50; tries++) {
      try {
        const back = await this.#o.store.endMove(head.shard, head.epoch);
        if (back !== undefined) this.#o.map.adopt(back);
        // Not given back: a fence came, or the epoch ended; an append settles it.
        return { kind: "called_off", why };
      } catch (error) {
        this.#log.warn("giving a shard back failed", { shard: head.shard, error: asError(error) });
        await this.#o.time.sleep(100);
      }
    }
    return { kind: "unsettled", why };
  }
}
