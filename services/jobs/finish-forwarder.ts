import type { Time } from "../../infra/clock.js";
import { asError, Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import { Rounds } from "../../infra/rounds.js";
import type { Service } from "../../infra/service.js";
import type { Command, Reply, RequestContext } from "../api.js";
import type { SiteName } from "../../shards/ids.js";
import { backOff, FinishLanes, mostOfAll } from "./finish-lanes.js";
import { isOwnerless, type FinishCommand, type FinishStore, type StoredFinish } from "./finish-store.js";
import { parseTaskId } from "./ids.js";

export interface ForwarderOptions {
  readonly store: FinishStore;
  /** To the shard's owner, wherever that is. @throws Problem */
  readonly send: (context: RequestContext, command: Command) => Promise<Reply>;
  /** Who could answer for the shard now; null: nobody. */
  readonly owner: (shard: number) => SiteName | null;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
  /** One process of the datacenter forwards. Two at once would do no harm: a finish may be repeated. */
  readonly active: () => boolean;
}

/** For one finish to reach an owner, milliseconds; after that it is the turn of others. */
const tryMs = 3_000;
const idleMs = 1_000;
const busyMs = 100;

/** Forwards what the store keeps until the owner has answered: 200, or why not. */
export class FinishForwarder implements Service {
  readonly name = "finish forwarder";
  readonly #o: ForwarderOptions;
  readonly #log: Logger;
  readonly #rounds: Rounds;
  readonly #lanes = new FinishLanes();
  /** What is on its way, by key. */
  readonly #sent = new Map<string, Promise<void>>();

  constructor(options: ForwarderOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "finish-forwarder" });
    const round = (): Promise<number> => this.#round();
    this.#rounds = new Rounds({
      what: "read stored finishes",
      everyMs: idleMs,
      round,
      time: options.time,
      log: this.#log,
    });
  }

  async start(): Promise<void> {
    this.#rounds.start();
  }

  async stop(): Promise<void> {
    await this.#rounds.stop();
    await Promise.all(this.#sent.values());
  }

  async #round(): Promise<number> {
    const { store, active, owner, time } = this.#o;
    const waiting = active() ? await store.shards() : [];
    const now = time.monotonic();
    const open = waiting.filter((shard) => this.#lanes.room(shard, owner(shard), now) > 0);
    // Those on their way are still among them.
    for (const finish of open.length > 0 ? await store.due(mostOfAll + this.#sent.size, open) : []) {
      const shard = parseTaskId(finish.command.taskId)?.shard ?? 0;
      const to = owner(shard);
      if (to === null || this.#sent.has(finish.key) || this.#lanes.room(shard, to, now) === 0) continue;
      this.#lanes.begin(shard, to);
      const sent = this.#forward(finish).then((answered) => {
        this.#lanes.end(shard, to, answered, time.monotonic());
        this.#sent.delete(finish.key);
      });
      this.#sent.set(finish.key, sent);
    }
    return open.length > 0 || this.#sent.size > 0 ? busyMs : idleMs;
  }

  /** @returns whether somebody was there to answer for the shard. Never rejects. */
  async #forward(finish: StoredFinish): Promise<boolean> {
    const { store, time, random, send } = this.#o;
    const { key, command, tries } = finish;
    try {
      const answer = await answerTo(finish, (context, order) => send(context, order), {
        deadline: time.monotonic() + tryMs,
        requestId: `finish-${random.token(12)}`,
      });
      await store.forget(key);
      this.#log.info("a stored finish was answered", { task: command.taskId, answer, tries });
      return true;
    } catch (error) {
      this.#log.debug("a stored finish got no answer", { task: command.taskId, tries, error: asError(error) });
      await store
        .later(key, backOff(tries))
        .catch((failure: unknown) => this.#log.warn("a stored finish stays due", { error: asError(failure) }));
      return !isOwnerless(error);
    }
  }
}

/** `ok`, or the code by which the owner refused it for good. Rejects when nobody has decided. */
export async function answerTo(
  finish: Pick<StoredFinish, "caller" | "command">,
  send: (context: RequestContext, command: FinishCommand) => Promise<unknown>,
  { deadline, requestId }: { readonly deadline: number; readonly requestId: string },
): Promise<string> {
  const { caller, command } = finish;
  const context: RequestContext = { requestId, caller, deadline, durability: "local", consistency: "local" };
  try {
    await send(context, command);
    return "ok";
  } catch (error) {
    if (!(error instanceof Problem) || error.retryable || error.code === "internal") throw error;
    const tooMuch = error.code === "payload_too_large";
    if (!tooMuch || command.result === undefined) return error.code;
    // Too much to keep: the owner should still hear that the try is over.
    const { result: _result, ...rest } = command;
    return answerTo({ caller, command: { ...rest, status: "failed", stderr: "the result was too large" } }, send, {
      deadline,
      requestId,
    });
  }
}
