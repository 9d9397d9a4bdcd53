import { pack, unpack } from "msgpackr";
import { asError, Problem, type ProblemCode } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { NoAnswer, NoResponders, type Messenger } from "../infra/nats/messaging.js";
import type { Service } from "../infra/service.js";
import type { CarriedPart } from "../replication/carried.js";
import type { ChangeFacts } from "../replication/history.js";
import type { MoveRequest, MoveResult } from "../shards/switchover.js";
import type { SiteName } from "../shards/ids.js";
import type { StoredOperation } from "./operation-store.js";

/** What is asked of a datacenter, beside forwarded requests. */
export interface Calls {
  move(request: MoveRequest): Promise<MoveResult>;
  /** @returns the closing that the shard has there (rule i); null from an earlier version */
  carry(part: CarriedPart): Promise<number | null>;
  /** Waits until the datacenter serves the shard in this epoch or a later one. */
  opened(question: { readonly shard: number; readonly epoch: number; readonly timeoutMs: number }): Promise<boolean>;
  /** How far each shard is there; of an own one, also how far the log is known to be. */
  positions(
    question: null,
  ): Promise<readonly (readonly [shard: number, epoch: number, position: number, published?: number])[]>;
  /** An operator's takeover by the datacenter that is asked. @returns the shards that it opened */
  takeover(order: {
    readonly target: SiteName;
    readonly shards: readonly number[];
    readonly by: string;
    readonly forced: boolean;
  }): Promise<readonly number[]>;
  operation(question: { readonly id: string; readonly cancel: boolean }): Promise<unknown>;
  /** Facts about ownership changes that came after their records. */
  historyTold(facts: readonly ChangeFacts[]): Promise<void>;
  /** What is known there of these changes. */
  historyKnown(changes: readonly (readonly [shard: number, epoch: number])[]): Promise<readonly ChangeFacts[]>;
  /** The long operation of this id, if it was begun there. */
  begun(question: { readonly id: string }): Promise<StoredOperation | null>;
}

type Answer = { readonly ok: unknown } | { readonly problem: { readonly code: ProblemCode; readonly detail: string } };

const subject = (group: string, dc: SiteName, call: string): string => `hothot.${group}.dc.${dc}.call.${call}`;

/** Calls between datacenters over NATS request/reply; each answered by one process, the datacenter's replicator. */
export class CallServer implements Service {
  readonly name = "calls";
  #unsubscribe: (() => void)[] = [];

  constructor(
    private readonly o: {
      readonly group: string;
      readonly site: SiteName;
      readonly messenger: Messenger;
      readonly calls: Calls;
      readonly log: Logger;
      readonly active: () => boolean;
    },
  ) {}

  async start(): Promise<void> {
    for (const [name, call] of Object.entries(this.o.calls) as [string, (argument: never) => Promise<unknown>][])
      this.#unsubscribe.push(
        this.o.messenger.subscribe(subject(this.o.group, this.o.site, name), (message) => {
          if (!this.o.active()) return;
          const respond = (answer: Answer): void => message.respond(pack(answer));
          void (async (): Promise<Answer> => {
            try {
              return { ok: await call.call(this.o.calls, unpack(message.data) as never) };
            } catch (error) {
              if (error instanceof Problem) return { problem: { code: error.code, detail: error.message } };
              this.o.log.error("a call failed", { call: name, error: asError(error) });
              return { problem: { code: "internal", detail: "a fault of ours" } };
            }
          })()
            .then(respond)
            .catch((error: unknown) => {
              this.o.log.error("the answer to a call can't be sent", { call: name, error: asError(error) });
              respond({ problem: { code: "internal", detail: "a fault of ours" } });
            });
        }),
      );
  }

  async stop(): Promise<void> {
    for (const end of this.#unsubscribe) end();
  }
}

const handoverTries = 10;
const handoverTryMs = 250;

/** Answered from the database, by any process of a datacenter. */
const byAny: ReadonlySet<keyof Calls> = new Set(["operation", "begun"]);

export class CallClient {
  constructor(
    private readonly o: {
      readonly group: string;
      readonly site: SiteName;
      readonly messengers: readonly Messenger[];
      readonly local: () => Calls;
      /** This process acts for its datacenter: else another one does, and is asked as those of other datacenters are. */
      readonly active: () => boolean;
    },
  ) {}

  /** @throws Problem owner_unreachable when nobody is there, outcome_unknown without an answer; or what the other side says */
  async call<K extends keyof Calls>(
    dc: SiteName,
    name: K,
    argument: Parameters<Calls[K]>[0],
    timeoutMs: number,
  ): Promise<Awaited<ReturnType<Calls[K]>>> {
    type Result = Awaited<ReturnType<Calls[K]>>;
    const { group, site, messengers, active } = this.o;
    if (dc === site && !byAny.has(name)) await this.#acted();
    if (dc === site && (byAny.has(name) || active())) {
      const local = this.o.local();
      return (await (local[name] as (argument: unknown) => Promise<unknown>).call(local, argument)) as Result;
    }
    const data = pack(argument);
    for (const messenger of messengers) {
      try {
        const answer = unpack(await messenger.request(subject(group, dc, name), data, timeoutMs)) as Answer;
        if ("problem" in answer) throw new Problem(answer.problem.code, answer.problem.detail);
        return answer.ok as Result;
      } catch (error) {
        if (error instanceof NoResponders) continue;
        if (error instanceof NoAnswer)
          throw new Problem("outcome_unknown", `${dc} did not answer in time`, { cause: error });
        throw error;
      }
    }
    throw new Problem("owner_unreachable", `${dc} can't be reached`);
  }

  /** Waits, for a while, until some process acts for this datacenter: one that died is followed within a second. */
  async #acted(): Promise<void> {
    const { group, site, messengers, active } = this.o;
    const nothing = pack({ shard: 0, epoch: 0, timeoutMs: 0 });
    for (let tries = 0; tries < handoverTries && !active(); tries++)
      try {
        await messengers[0]?.request(subject(group, site, "opened"), nothing, handoverTryMs);
        return;
      } catch (error) {
        if (!(error instanceof NoAnswer || error instanceof NoResponders)) throw error;
      }
  }
}
