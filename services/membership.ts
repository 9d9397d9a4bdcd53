import { Problem } from "../infra/errors.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "../shards/ids.js";
import { datacentersOf, settledAt, settledSet, withDatacenter, withoutSite, type SiteSet } from "../shards/site-set.js";
import type { Reply, RequestContext } from "./api.js";
import type { DatacenterParts } from "./datacenter.js";

const tickMs = 500;
const pauseMs = 200;
const maxSites = 9;
/** The answer has to arrive before the caller gives up. */
const answerMs = 500;
const stateMs = 2_000;

type Parts = Pick<
  DatacenterParts,
  "config" | "site" | "servedBy" | "partitions" | "streams" | "siteSets" | "leases" | "map" | "time" | "log"
>;

/**
 * Who is a member: one site joins or leaves at a time. While a change is not acknowledged by a majority of both sets, leases and
 * votes need both majorities; two leases after that the present set alone counts, and the next change may begin (section 1).
 */
export class Membership implements Service {
  readonly name = "membership";
  readonly #stop = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(private readonly p: Parts) {}

  async start(): Promise<void> {
    this.#loop = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#settle();
        await this.p.time.sleep(tickMs, this.#stop.signal);
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  /** Its NATS server has joined; its process may start after this. @throws Problem */
  async add(context: RequestContext, name: SiteName): Promise<Reply> {
    const set = await this.#change(context, (now) => {
      if (now.sites.some((site) => site.name === name)) return "done";
      if (now.removed.includes(name))
        throw invalid(`${name} was removed from the group; what it held then must not come back: choose another name`);
      if (now.sites.length >= maxSites) throw invalid(`a group has at most ${maxSites} sites`);
      return withDatacenter(now, name);
    });
    return { status: 200, body: view(set), servedBy: this.p.servedBy };
  }

  /**
   * It must own nothing any more. Answers when nothing of the log is kept there; may be repeated.
   * @throws Problem invalid_transition while it owns shards, no_majority when it is not all done in time
   */
  async remove(context: RequestContext, name: SiteName): Promise<Reply> {
    const { map, siteSets, time } = this.p;
    const set = await this.#change(context, (now) => {
      if (!now.sites.some((site) => site.name === name)) {
        if (now.removed.includes(name)) return "done";
        throw new Problem("not_found", `The group has no site ${name}.`);
      }
      if (datacentersOf(now).length < 2 && datacentersOf(now).includes(name))
        throw invalid("the last datacenter can't be removed");
      const owned = map.ownedBy(name).length;
      if (owned > 0)
        throw new Problem("invalid_transition", `${name} still owns ${owned} shards: drain it first.`, { owner: name });
      return withoutSite(now, name);
    });
    for (;;) {
      if (siteSets.set.changing === undefined && !(await this.#holdsLog(name))) break;
      if (context.deadline - time.monotonic() < answerMs)
        throw new Problem("no_majority", `${name} has left, but its part of the log is still moving: ask again.`, {
          retryAfterSeconds: 1,
        });
      await time.sleep(pauseMs, this.#stop.signal);
    }
    return { status: 200, body: view(siteSets.known ?? set), servedBy: this.p.servedBy };
  }

  async #change(context: RequestContext, make: (set: SiteSet) => SiteSet | "done"): Promise<SiteSet> {
    const { siteSets, time } = this.p;
    for (;;) {
      await siteSets.refresh();
      const changed = make(siteSets.set);
      if (changed === "done") return siteSets.set;
      if (siteSets.set.changing === undefined) {
        const next = await siteSets.change((now) => {
          const wanted = now.changing === undefined ? make(now) : "done";
          return wanted === "done" ? undefined : wanted;
        });
        if (next !== undefined) {
          this.p.log.warn("the group's members change", {
            number: next.number,
            sites: next.sites.map((site) => site.name),
          });
          return next;
        }
      }
      if (context.deadline - time.monotonic() < answerMs)
        throw new Problem("no_majority", "The last change of the members is not acknowledged by a majority yet.", {
          retryAfterSeconds: 1,
        });
      await time.sleep(pauseMs, this.#stop.signal);
    }
  }

  async #holdsLog(name: SiteName): Promise<boolean> {
    const { streams, partitions } = this.p;
    for (const partition of [null, ...Array.from({ length: partitions }, (_, p) => p)]) {
      const state = await streams.stateOf(partition, stateMs).catch(() => undefined);
      if (state === undefined) return true;
      if (state.leader === undefined || state.leader === name || state.replicas.some((each) => each.name === name))
        return true;
    }
    return false;
  }

  /** The change of the members is known to all who matter: the present set alone counts from now on. */
  async #settle(): Promise<void> {
    const { siteSets, leases, config, time, log } = this.p;
    const set = siteSets.known;
    if (set?.changing === undefined || !leases.valid) return;
    const at = settledAt(set, leases.heardUnder(set.number), config.leaseMs);
    if (at === undefined || time.monotonic() < at) return;
    const next = await siteSets
      .change((now) => (now.number === set.number ? settledSet(now) : undefined))
      .catch(() => undefined);
    if (next !== undefined) log.info("the change of the members is acknowledged", { number: next.number });
  }
}

const invalid = (message: string): Problem =>
  new Problem("invalid_request", undefined, { errors: [{ path: "/name", message }] });

const view = (set: SiteSet) => ({
  number: set.number,
  datacenters: datacentersOf(set),
  witnesses: set.sites.filter((site) => site.witness).map((site) => site.name),
  removed: set.removed,
  changing: set.changing !== undefined,
});
