import { asError } from "../infra/errors.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "../shards/ids.js";
import { datacentersOf } from "../shards/site-set.js";
import type { DatacenterParts } from "./datacenter.js";
import { inStep, planFailback } from "./move-plan.js";
import type { MovePlanner } from "./move-planner.js";

const tickMs = 1_000;
/** A shard that could not go is tried again after this, then after twice as long, up to a bound. */
const againMs = 5_000;
const maxAgainMs = 120_000;
/** Takeovers that lie closer together than this count as one coming and going. */
const flapWindowMinutes = 10;

/**
 * Automatic failback (section 5): only of what a takeover moved, and only to a datacenter that has been healthy and caught
 * up for a sticky time that grows with each flap. Each owner gives back what it holds for others.
 */
export class Failback implements Service {
  readonly name = "failback";
  readonly #p: DatacenterParts;
  readonly #planner: MovePlanner;
  readonly #stop = new AbortController();
  readonly #healthySince = new Map<SiteName, number>();
  /** Shards whose move home was called off: not before this monotonic time. */
  readonly #again = new Map<number, { readonly at: number; readonly waitMs: number }>();
  #loop: Promise<void> = Promise.resolve();

  constructor(parts: DatacenterParts, planner: MovePlanner) {
    this.#p = parts;
    this.#planner = planner;
  }

  async start(): Promise<void> {
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        try {
          await this.#look();
        } catch (error) {
          this.#p.log.warn("automatic failback failed", { component: "failback", error: asError(error) });
        }
        await this.#p.time.sleep(tickMs, this.#stop.signal);
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #look(): Promise<void> {
    const { peers, map, siteSets, replicator, leases, site, time, config } = this.#p;
    const now = time.monotonic();
    for (const dc of datacentersOf(siteSets.set)) {
      if (peers.state(dc) !== "serving" || dc === site) this.#healthySince.delete(dc);
      else if (!this.#healthySince.has(dc)) this.#healthySince.set(dc, now);
    }
    if (!config.automaticFailback || siteSets.set.failoverPaused || !replicator.holding || !leases.valid) return;
    const foreign = map.ownedBy(site).filter((head) => head.kind === "takeover");
    if (foreign.length === 0) return;
    const homes = await this.#planner.homes();
    for (const [dc, since] of this.#healthySince) {
      const moves = planFailback(foreign, dc, homes).filter(({ shard }) => now >= (this.#again.get(shard)?.at ?? 0));
      if (moves.length === 0 || now - since < (await this.#stickyMs(dc))) continue;
      this.#p.log.info("fails back", { component: "failback", to: dc, shards: moves.length });
      await inStep(moves, async (move) => {
        if (this.#stop.signal.aborted || peers.state(dc) !== "serving") return;
        const result = await this.#p.switchover.move({
          shard: move.shard,
          to: dc,
          kind: "failback",
          reason: `${dc} is healthy again`,
          by: site,
        });
        this.#tried(move.shard, result.kind === "moved");
      });
    }
  }

  /** A shard that can't go now is held again less and less often. */
  #tried(shard: number, moved: boolean): void {
    const waitMs = Math.min(maxAgainMs, 2 * (this.#again.get(shard)?.waitMs ?? againMs / 2));
    if (moved) this.#again.delete(shard);
    else this.#again.set(shard, { at: this.#p.time.monotonic() + waitMs, waitMs });
  }

  /** 20, 60, then 120 s (for a setting of 20 s), by how often the datacenter went away lately. */
  async #stickyMs(dc: SiteName): Promise<number> {
    const { rows } = await this.#p.control.pool.query<{ n: number }>(
      `SELECT count(*)::int AS n FROM (SELECT at, lag(at) OVER (ORDER BY at) AS before FROM history
         WHERE kind = 'takeover' AND from_dc = $1 AND to_dc <> $1 AND at > now() - $2 * interval '1 minute') AS t
       WHERE before IS NULL OR at - before > interval '5 seconds'`,
      [dc, flapWindowMinutes],
    );
    const flaps = rows[0]?.n ?? 1;
    const factor = flaps <= 1 ? 1 : flaps === 2 ? 3 : 6;
    return this.#p.config.failbackAfterMs * factor;
  }
}
