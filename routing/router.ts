import { pack, unpack } from "msgpackr";
import { within, type Time } from "../infra/clock.js";
import { asError, Problem, type ProblemCode, type ProblemExtras } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { NoAnswer, NoResponders, TooLarge, type Messenger, type Subscription } from "../infra/nats/messaging.js";
import { readFailure } from "../infra/postgres/faults.js";
import type { Service } from "../infra/service.js";
import type { Span, Tracing } from "../infra/tracing.js";
import type { Epoch, ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import type { Peers } from "../shards/peers.js";
import { Breakers } from "./breakers.js";
import type { Changes } from "./changes.js";
import { Room, type Place } from "./room.js";
import { route } from "./route.js";

/** A request on its way to its shard's owner. Plain data: it is forwarded as it is. */
export interface Routed<C> {
  readonly shard: ShardId;
  readonly command: C;
  /** What comes with it, but for the deadline. */
  readonly context: unknown;
  /** Monotonic milliseconds of this process. */
  readonly deadline: number;
  /** Sending it twice does no harm: a read, or a write with an idempotency key. */
  readonly repeatable: boolean;
  /** It may change something: when a try of it got no answer, no refusal may say that nothing happened. */
  readonly write: boolean;
  /** One of a stream's many, which take no room from requests of their own. */
  readonly bulk?: boolean;
  /** Set where the answer goes back in one message, which takes so many bytes. */
  readonly answerBytes?: number;
  /** Told before each try which way it goes. */
  readonly tried?: (route: Route) => void;
}

export type Route = "local" | "forwarded";

/** Carries a request out where its shard is owned. Owned here, implemented by services. */
export interface Executor<C, R> {
  /**
   * @throws Problem; not_owner, no_lease, shard_moving mean: nothing happened, route again. Of the database's errors only a read
   * may throw one as it is.
   */
  execute(request: Routed<C>): Promise<R>;
}

/** An answer may be asked once more, in the turn in which it is sent, whether it still holds. */
export interface Confirmed {
  /** @throws Problem */
  readonly confirm?: () => void;
}

/** A repeatable request was taken, and no answer came: it may have had an effect. */
class Unanswered extends Problem {
  constructor(to: SiteName) {
    super("owner_unreachable", `${to} did not answer`, { owner: to });
  }
}

interface Forwarded<C> {
  readonly shard: number;
  readonly command: C;
  readonly context: unknown;
  readonly timeoutMs: number;
  /** Left out by earlier versions. */
  readonly write?: boolean;
}

type Answer<R> =
  | { readonly ok: R }
  | {
      readonly problem: { readonly code: ProblemCode; readonly detail: string } & Omit<ProblemExtras, "cause">;
    };

/** Of a datacenter's processes together, or of one of them. */
export const rpcSubject = (group: string, dc: SiteName, node?: string): string =>
  `hothot.${group}.dc.${dc}.rpc${node === undefined ? "" : `.${node}`}`;

export interface RouterOptions<C, R extends Confirmed> {
  readonly group: string;
  readonly site: SiteName;
  readonly node: string;
  readonly time: Time;
  readonly log: Logger;
  /** Nearest first; the others reach the owner through another site's server when the direct link is down (one relay). */
  readonly messengers: readonly Messenger[];
  readonly map: ShardMap;
  readonly peers: Peers;
  readonly changes: Changes;
  readonly leaseValid: () => boolean;
  readonly executor: Executor<C, R>;
  /** Where an exporter is configured. */
  readonly tracing?: Tracing | undefined;
}

/** What a request's context may say of where it comes from. */
interface Origin {
  readonly requestId?: string;
  readonly traceparent?: string | null;
}

const originOf = (context: unknown): Origin => (context as Origin | null) ?? {};

/** Problems by which a place says that it can't serve the shard now: nothing happened there, another look at the map may help. */
const elsewhere = new Set<ProblemCode>(["not_owner", "no_lease", "shard_moving", "owner_unreachable", "draining"]);
/** A forward that a repeatable request waits for, before it is sent again. */
const tryMs = 3_000;
/** A forward that may not be repeated still gets this long after its shard moved. */
const graceMs = 300;
/** Before a refused request is sent again, unless its shard changes earlier; doubled by each refusal in the same epoch. */
const pauseMs = 25;
const longestPauseMs = 250;
/** The epoch is not known here. */
const newest = Number.MAX_SAFE_INTEGER as Epoch;
/** With less time left a request whose owner ran out of the time that it was given is not sent again. */
const worthMs = 1_000;
/** NATS takes 1 MiB in a message, unless it is told otherwise. */
const answerBytes = 900_000;
const drainMs = 5_000;
const probeMs = 500;
const probe = pack({ probe: true });

/** Serves here, forwards to the owner, or holds until there is one (section 3, step 1). */
export class Router<C, R extends Confirmed> implements Service {
  readonly name = "router";
  readonly #o: RouterOptions<C, R>;
  readonly #log: Logger;
  /** What waits for a datacenter or is under way to it. */
  readonly room = new Room();
  readonly #bulkRoom = new Room();
  readonly #breakers: Breakers;
  #subscriptions: readonly Subscription[] = [];
  #turn = 0;
  #serving = 0;
  #draining = false;

  constructor(options: RouterOptions<C, R>) {
    this.#o = options;
    this.#log = options.log.with({ component: "router" });
    this.#breakers = new Breakers({ time: options.time, log: this.#log, probe: (to) => this.#probe(to) });
  }

  async start(): Promise<void> {
    const { group, site, node, messengers } = this.#o;
    const [nearest] = messengers;
    if (nearest === undefined) return;
    this.#subscriptions = [rpcSubject(group, site), rpcSubject(group, site, node)].map((subject) =>
      nearest.subscribe(subject, (message) => void this.#serve(message.data, (data) => message.respond(data)), {
        queue: "rpc",
      }),
    );
  }

  async drain(): Promise<void> {
    this.#draining = true;
    const subscriptions = this.#subscriptions;
    this.#subscriptions = [];
    const deadline = this.#o.time.monotonic() + drainMs;
    // What is on its way is still answered, so that it goes to another process at once.
    const heard = subscriptions.map((subscription) =>
      subscription.drain().catch((error: unknown) => {
        this.#log.debug("forwards on their way could not be waited for", { error: asError(error) });
      }),
    );
    await within(this.#o.time, drainMs, Promise.all(heard), undefined);
    while (this.#serving > 0 && this.#o.time.monotonic() < deadline) await this.#o.time.sleep(10);
  }

  async stop(): Promise<void> {
    for (const end of this.#subscriptions) end();
  }

  /** @returns the answer and how it was reached. @throws Problem */
  async execute(request: Routed<C>): Promise<{ readonly result: R; readonly route: Route }> {
    const place = (request.bulk === true ? this.#bulkRoom : this.room).place();
    try {
      return await this.#execute(request, place);
    } finally {
      place.leave();
    }
  }

  async #execute(request: Routed<C>, place: Place): Promise<{ readonly result: R; readonly route: Route }> {
    let held: { code: ProblemCode; why: string; owner: SiteName | null } | undefined;
    /** Whom a place that was asked by this map named instead: its map is newer. Followed once, then the own map counts again. */
    let named: SiteName | undefined;
    let unanswered = false;
    let pause = { ms: pauseMs, epoch: undefined as Epoch | undefined };
    for (;;) {
      const head = this.#o.map.get(request.shard);
      const where = route({
        self: this.#o.site,
        head,
        leaseValid: this.#o.leaseValid(),
        ownerState: head?.owner == null ? "dead" : this.#o.peers.state(head.owner),
      });
      if (this.#left(request) <= 0)
        throw honest(this.#tooLate(held ?? (where.kind === "wait" ? where : undefined)), request, unanswered);
      if (where.kind === "wait") {
        held = where;
        place.for(where.owner ?? "an owner", where.owner);
        // Not every change is announced (a lease that comes back): look again now and then.
        await this.#o.changes.next(request.shard, Math.min(this.#left(request), 100));
        continue;
      }
      if (where.kind === "forward") place.for(named ?? where.to, named ?? where.to);
      if (where.kind === "forward" && !this.#breakers.allows(named ?? where.to)) {
        const owner = named ?? where.to;
        held = { code: "owner_unreachable", why: `${owner} can't be reached, or does not answer`, owner };
        named = undefined;
        await this.#o.changes.next(request.shard, Math.min(this.#left(request), 100));
        continue;
      }
      try {
        request.tried?.(where.kind === "here" ? "local" : "forwarded");
        if (where.kind === "here") return { result: await this.#o.executor.execute(request), route: "local" };
        const to = named ?? where.to;
        const since = named === undefined ? (head?.epoch ?? (0 as Epoch)) : newest;
        named = undefined;
        return { result: await this.#forward(request, to, since), route: "forwarded" };
      } catch (failure) {
        const error = readFailure(failure);
        if (!(error instanceof Problem)) throw error;
        unanswered ||= error instanceof Unanswered || error.code === "outcome_unknown";
        if (!elsewhere.has(error.code) && !(where.kind === "forward" && this.#hadLessTime(request, error)))
          throw honest(error, request, unanswered);
        if (
          error.code === "not_owner" &&
          where.kind === "forward" &&
          error.owner !== where.to &&
          error.owner !== this.#o.site
        )
          named = error.owner;
        held = {
          code: error.code === "not_owner" ? "owner_unreachable" : error.code,
          why: error.message,
          owner: error.owner ?? head?.owner ?? null,
        };
        if (where.kind === "here") place.for(this.#o.site, this.#o.site);
        pause = {
          ms: pause.epoch === head?.epoch ? Math.min(2 * pause.ms, longestPauseMs) : pauseMs,
          epoch: head?.epoch,
        };
        await this.#o.changes.next(request.shard, Math.min(this.#left(request), pause.ms));
      }
    }
  }

  /** The owner waited in vain, perhaps with less time than the request has: nothing happened there, or it may be asked again. */
  #hadLessTime(request: Routed<C>, { code }: Problem): boolean {
    const again =
      code === "unpublished_limit" ||
      (request.repeatable && (code === "outcome_unknown" || code === "deadline_exceeded"));
    return again && this.#left(request) > worthMs;
  }

  #tooLate(held: { code: ProblemCode; why: string; owner: SiteName | null } | undefined): Problem {
    if (held === undefined) return new Problem("deadline_exceeded");
    return new Problem(held.code, held.why, {
      ...(held.owner === null ? {} : { owner: held.owner }),
      retryAfterSeconds: 1,
    });
  }

  async #forward(request: Routed<C>, to: SiteName, epoch: Epoch): Promise<R> {
    const span = this.#o.tracing?.begin("forward", "client", originOf(request.context).traceparent, {
      "hothot.to": to,
      "hothot.shard": request.shard,
    });
    let fault: string | undefined;
    try {
      const left = this.#left(request);
      const timeoutMs = request.repeatable ? Math.min(left, tryMs) : left;
      const forwarded: Forwarded<C> = {
        shard: request.shard,
        command: request.command,
        context:
          span === undefined
            ? request.context
            : { ...(request.context as object | null), traceparent: span.traceparent },
        timeoutMs,
        write: request.write,
      };
      const answer = await this.#send(request, to, pack(forwarded), timeoutMs, epoch);
      if ("ok" in answer) return answer.ok;
      const { code, detail, ...extras } = answer.problem;
      throw new Problem(code, detail, extras);
    } catch (error) {
      fault = error instanceof Problem ? error.code : "internal";
      throw error;
    } finally {
      span?.end(undefined, fault);
    }
  }

  /** Through the own server, else through another site's: one that nobody took certainly had no effect. */
  async #send(request: Routed<C>, to: SiteName, data: Uint8Array, timeoutMs: number, epoch: Epoch): Promise<Answer<R>> {
    for (const { messenger, subject } of this.#ways(to)) {
      const over = this.#breakers.sent(to);
      const sent = messenger.request(subject, data, timeoutMs);
      sent.then(
        () => over("answered"),
        (error: unknown) => over(error instanceof NoResponders || error instanceof TooLarge ? "nobody" : "silent"),
      );
      try {
        return unpack(await this.#unlessMoved(request, sent, epoch)) as Answer<R>;
      } catch (error) {
        if (error instanceof NoResponders) continue;
        if (error instanceof TooLarge)
          throw new Problem("payload_too_large", `It is larger than what can be sent to ${to}, its owner.`, {
            owner: to,
          });
        if (!(error instanceof NoAnswer)) throw error;
        this.#log.debug("a forward got no answer", { to, shard: request.shard, error: asError(error) });
        if (request.repeatable) throw new Unanswered(to);
        throw new Problem("outcome_unknown", `${to} took the write and did not answer`, { owner: to });
      }
    }
    this.#breakers.absent(to);
    throw new Problem("owner_unreachable", `${to} can't be reached`, { owner: to });
  }

  /**
   * To whichever process takes it; first to one that is heard, while another one is not: NATS gives requests to a process that
   * stands still until its pings have failed.
   */
  #ways(to: SiteName): readonly { readonly messenger: Messenger; readonly subject: string }[] {
    const { group, messengers, peers } = this.#o;
    const subject = rpcSubject(group, to);
    const ways = messengers.map((messenger) => ({ messenger, subject }));
    const heard = peers.heardBesideSilent(to);
    const node = heard[this.#turn++ % Math.max(1, heard.length)];
    const [nearest] = messengers;
    return node === undefined || nearest === undefined
      ? ways
      : [{ messenger: nearest, subject: rpcSubject(group, to, node) }, ...ways];
  }

  async #probe(to: SiteName): Promise<void> {
    for (const { messenger, subject } of this.#ways(to)) {
      try {
        await messenger.request(subject, probe, probeMs);
        return;
      } catch (error) {
        if (!(error instanceof NoResponders)) throw error;
      }
    }
  }

  /** The answer, or NoAnswer soon after the shard moved away from whom it was sent to. */
  async #unlessMoved(request: Routed<C>, sent: Promise<Uint8Array>, epoch: Epoch): Promise<Uint8Array> {
    let done = false;
    const ended = sent.finally(() => (done = true));
    ended.catch(() => undefined);
    const moved = (async (): Promise<never> => {
      while (!done) {
        // The request is under way: a full queue of waiting ones must not end it.
        const changed = this.#o.changes.next(request.shard, 500).catch(() => this.#o.time.sleep(100));
        await Promise.race([changed, ended.catch(() => undefined)]);
        const now = this.#o.map.get(request.shard);
        if (!done && now !== undefined && now.epoch > epoch) {
          await this.#o.time.sleep(request.repeatable ? 20 : graceMs);
          break;
        }
      }
      throw new NoAnswer(`shard ${request.shard}`);
    })();
    moved.catch(() => undefined);
    return Promise.race([ended, moved]);
  }

  async #serve(data: Uint8Array, respond: (data: Uint8Array) => void): Promise<void> {
    this.#serving++;
    let answer: Answer<R>;
    let write = true;
    let requestId: string | undefined;
    let span: Span | undefined;
    try {
      if (this.#draining) throw new Problem("draining");
      const forwarded = unpack(data) as Forwarded<C> | { readonly probe: true };
      if ("probe" in forwarded) return respond(pack({}));
      write = forwarded.write !== false;
      const origin = originOf(forwarded.context);
      requestId = origin.requestId;
      span = this.#o.tracing?.begin("serve", "server", origin.traceparent, { "hothot.shard": forwarded.shard });
      const shard = forwarded.shard as ShardId;
      const head = this.#o.map.get(shard);
      const where = route({ self: this.#o.site, head, leaseValid: this.#o.leaseValid(), ownerState: "dead" });
      if (where.kind !== "here")
        throw where.kind === "wait" && where.owner === this.#o.site
          ? new Problem(where.code, where.why, { owner: this.#o.site })
          : new Problem(
              "not_owner",
              `${this.#o.site} does not own shard ${shard}`,
              head?.owner == null ? {} : { owner: head.owner },
            );
      const { confirm, ...ok } = await this.#o.executor.execute({
        shard,
        command: forwarded.command,
        context: span === undefined ? forwarded.context : { ...origin, traceparent: span.traceparent },
        deadline: this.#o.time.monotonic() + forwarded.timeoutMs,
        repeatable: false,
        write,
        answerBytes,
      });
      confirm?.();
      answer = { ok: ok as R };
      span?.end();
    } catch (failure) {
      const error = readFailure(failure);
      const problem = error instanceof Problem ? error : new Problem("internal", undefined, { cause: error });
      span?.end(undefined, problem.code);
      if (problem.code === "internal")
        this.#log.error("a forwarded request failed", { requestId, error: asError(error) });
      answer = refusal(problem);
    } finally {
      this.#serving--;
    }
    try {
      respond(pack(answer));
    } catch (error) {
      this.#log.warn("an answer to a forwarded request could not be sent", { requestId, error: asError(error) });
      if (!(error instanceof TooLarge)) return;
      respond(
        pack(
          refusal(
            write
              ? new Problem("outcome_unknown", "The answer is larger than what the owner can send.")
              : new Problem("payload_too_large", "The answer is larger than what the owner can send: ask there."),
          ),
        ),
      );
    }
  }

  #left(request: Routed<C>): number {
    return request.deadline - this.#o.time.monotonic();
  }
}

function refusal({ code, message, extras }: Problem): Answer<never> {
  const { cause: _, ...rest } = extras;
  return { problem: { code, detail: message, ...rest } };
}

/** A refusal that says that nothing happened is not for a write of which one try got no answer. */
function honest<C>(problem: Problem, request: Routed<C>, unanswered: boolean): Problem {
  const claims = problem.status === 503 || problem.code === "deadline_exceeded";
  if (!unanswered || !request.write || !claims) return problem;
  const { owner, message } = problem;
  return new Problem("outcome_unknown", message, owner === undefined ? {} : { owner });
}
