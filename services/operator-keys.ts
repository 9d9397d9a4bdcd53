import { createHash } from "node:crypto";
import type { Time } from "../infra/clock.js";
import { asError, Problem } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { readFailure } from "../infra/postgres/faults.js";
import type { Operation } from "../replication/work.js";
import type { Router } from "../routing/router.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import type { ShardMap } from "../shards/map.js";
import type { Caller, Command, Reply, RequestContext } from "./api.js";
import type { Queries } from "./clusters/queries.js";
import type { CommandContext } from "./executor.js";
import type { Extensions } from "./http/index.js";

/** What a request with a key was answered first. */
export interface KeptAnswer {
  readonly fingerprint: string;
  readonly status: number;
  readonly body: unknown;
}

export interface OperatorKeysOptions {
  readonly router: Pick<Router<Command, Reply>, "execute">;
  readonly map: Pick<ShardMap, "ownedBy">;
  readonly datacenters: () => readonly SiteName[];
  readonly queries: Pick<Queries, "keys">;
  readonly site: SiteName;
  readonly servedBy: string;
  readonly time: Time;
  readonly log: Logger;
  /** Milliseconds. */
  readonly retentionMs: number;
}

/** No header can hold the control character. */
const prefix = "operator\u0001";
const nameLength = 25;
const bound = 1_000;
/** An answer waits so long for its key to be in the log; each owner is asked for so long to take it. */
const patienceMs = 2_000;
const tryMs = 2_500;

/**
 * Idempotency keys of operators' requests, which belong to no shard: kept by whichever owner takes them, a record of its shard, so that
 * every datacenter knows them, as long as other keys.
 */
export class OperatorKeys {
  readonly #o: OperatorKeysOptions;
  /** Of this process: under way, and answered lately. */
  readonly #under = new Map<string, { readonly fingerprint: string; readonly reply: Promise<Reply> }>();
  readonly #answered = new Map<string, KeptAnswer & { readonly at: number }>();

  constructor(options: OperatorKeysOptions) {
    this.#o = options;
  }

  /**
   * Carries a request out, or gives the first answer to its key again. A refusal had no effect, and is not kept.
   * @param asked what the request is about
   * @throws Problem idempotency_key_reused
   */
  async once(context: RequestContext, asked: readonly unknown[], work: () => Promise<Reply>): Promise<Reply> {
    if (context.idempotencyKey === undefined) return work();
    const name = keyName(context.caller, context.idempotencyKey);
    const fingerprint = fingerprintOf(asked);
    const under = this.#under.get(name);
    if (under !== undefined) {
      if (under.fingerprint !== fingerprint) throw new Problem("idempotency_key_reused");
      return { ...(await under.reply), replayed: true };
    }
    const reply = this.#first(context, name, fingerprint, work);
    this.#under.set(name, { fingerprint, reply });
    return reply.finally(() => this.#under.delete(name));
  }

  /** The first answer, as far as this copy and process know. */
  async find(name: string): Promise<KeptAnswer | undefined> {
    const { queries, time, retentionMs } = this.#o;
    const lately = this.#answered.get(name);
    if (lately !== undefined && time.monotonic() - lately.at < retentionMs) return lately;
    try {
      return (await queries.keys("", `${prefix}${name}`, time.wall() - retentionMs))[0];
    } catch (error) {
      throw readFailure(error);
    }
  }

  /** Has it stored for all datacenters, by a majority of the sites. @throws Problem when no owner takes it by the deadline */
  async keep(name: string, answer: KeptAnswer, deadline: number): Promise<void> {
    const { router, map, datacenters, site, time } = this.#o;
    const { fingerprint, status, body } = answer;
    this.#answered.delete(name);
    this.#answered.set(name, { ...answer, at: time.monotonic() });
    if (this.#answered.size > bound)
      for (const oldest of this.#answered.keys()) if (this.#answered.delete(oldest)) break;
    let last: unknown = new Problem("owner_unreachable", "Nobody owns a shard that the key could be kept in.");
    // Own shards first: that is a matter of this datacenter and the log alone.
    for (const dc of [site, ...datacenters().filter((other) => other !== site)]) {
      const shard = map.ownedBy(dc)[0]?.shard;
      if (shard === undefined) continue;
      const until = Math.min(deadline, time.monotonic() + tryMs);
      try {
        await router.execute({
          shard,
          command: { type: "key.put", shard, status, body },
          context: {
            caller: { tenant: "", principal: "hothot" },
            durability: "replicated",
            requestId: "operator-key",
            traceparent: null,
            key: `${prefix}${name}`,
            fingerprint,
          } satisfies CommandContext,
          deadline: until,
          repeatable: true,
          write: true,
        });
        return;
      } catch (error) {
        last = error;
        if (time.monotonic() >= deadline) break;
      }
    }
    throw last;
  }

  async #first(context: RequestContext, name: string, fingerprint: string, work: () => Promise<Reply>): Promise<Reply> {
    const { servedBy, time, log } = this.#o;
    const found = await this.find(name);
    if (found !== undefined) return replayOf(found, fingerprint, servedBy);
    const reply = await work();
    const deadline = Math.min(Math.max(context.deadline, time.monotonic() + 500), time.monotonic() + patienceMs);
    // It has taken effect: what this process remembers has to do where the log can't take it now.
    await this.keep(name, { fingerprint, status: reply.status, body: reply.body }, deadline).catch((error: unknown) =>
      log.warn("an operator's idempotency key is known to this process alone", { error: asError(error) }),
    );
    return reply;
  }
}

/** The first answer again. @throws Problem idempotency_key_reused */
export function replayOf(kept: KeptAnswer, fingerprint: string, servedBy: string): Reply {
  if (kept.fingerprint !== fingerprint) throw new Problem("idempotency_key_reused");
  return { status: kept.status, body: kept.body, servedBy, replayed: true };
}

/** One caller's key always makes the same name; different callers' never do. */
export const keyName = (caller: Pick<Caller, "tenant" | "principal">, key: string): string =>
  BigInt(
    `0x${createHash("sha256")
      .update(JSON.stringify([caller.tenant, caller.principal, key]))
      .digest("hex")}`,
  )
    .toString(36)
    .padStart(nameLength, "0")
    .slice(-nameLength);

export const fingerprintOf = (asked: readonly unknown[]): string =>
  createHash("sha256").update(JSON.stringify(asked)).digest("hex");

/** A record that holds nothing but a key and its answer. */
export const keepAnswer = (shard: ShardId, status: number, body: unknown): Operation => ({
  shard,
  needs: {},
  decide: () => ({ status, body }),
});

/** The same features, each carried out once for a key. Moves look after theirs themselves, which begin before they answer. */
export function keyed(extensions: Extensions, keys: Pick<OperatorKeys, "once">): Extensions {
  const { cancelMove, setFailover, repair, replayDivergent, discardDivergent } = extensions;
  return {
    ...extensions,
    ...(cancelMove && {
      cancelMove: (context, kind, id) => keys.once(context, ["cancel", kind, id], () => cancelMove(context, kind, id)),
    }),
    ...(setFailover && {
      setFailover: (context, paused) => keys.once(context, ["failover", paused], () => setFailover(context, paused)),
    }),
    ...(repair && {
      repair: (context, what) =>
        keys.once(context, ["repair", what.shard ?? null, what.clusterId ?? null], () => repair(context, what)),
    }),
    ...(replayDivergent && {
      replayDivergent: (context, id) => keys.once(context, ["replay", id], () => replayDivergent(context, id)),
    }),
    ...(discardDivergent && {
      discardDivergent: (context, id) => keys.once(context, ["discard", id], () => discardDivergent(context, id)),
    }),
  };
}
