import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Service } from "../infra/service.js";
import type { SiteName } from "./ids.js";
import { answerSubject, heartbeatSubject, voteSubject, type HeartbeatMessage } from "./lease-keeper.js";
import type { Peers } from "./peers.js";
import { castVote, type SiteWord, type VoteRequest } from "./site-word.js";
import type { ShardStore } from "./store.js";

export interface CoordinatorOptions {
  readonly group: string;
  readonly site: SiteName;
  /** Unique for this life of the process: a restart is another holder (rules b, c). */
  readonly holder: string;
  readonly termMs: number;
  readonly time: Time;
  readonly log: Logger;
  readonly messenger: Messenger;
  readonly word: SiteWord;
  readonly peers: Peers;
  /** A witness is one process and has no such lock. */
  readonly locks: Pick<ShardStore, "lock" | "unlock"> | null;
  /** A heartbeat names a newer site set than is known here. */
  readonly onNewerSet: (number: number) => void;
  readonly setNumber: () => number;
}

/** Hears the group's heartbeats in a process that does not give its site's word: who lives, and what others could open. */
export class Hearing implements Service {
  readonly name = "hearing";
  readonly #o: Pick<CoordinatorOptions, "group" | "messenger" | "peers" | "setNumber" | "onNewerSet">;
  #unsubscribe: (() => void) | undefined;

  constructor(options: Pick<CoordinatorOptions, "group" | "messenger" | "peers" | "setNumber" | "onNewerSet">) {
    this.#o = options;
  }

  async start(): Promise<void> {
    this.#unsubscribe = this.#o.messenger.subscribe(heartbeatSubject(this.#o.group), ({ data }) => {
      const { report, heartbeat } = unpack(data) as HeartbeatMessage;
      this.#o.peers.heard(report);
      if (heartbeat.set > this.#o.setNumber()) this.#o.onNewerSet(heartbeat.set);
    });
  }

  async stop(): Promise<void> {
    this.#unsubscribe?.();
  }
}

/** Gives the site's word: hears heartbeats, answers them, and votes; by one process of a site at a time (rule c). */
export class Coordinator implements Service {
  readonly name = "coordinator";
  readonly #o: CoordinatorOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #unsubscribe: (() => void)[] = [];
  #holding = false;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: CoordinatorOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "coordinator" });
  }

  async start(): Promise<void> {
    // It may have been started ahead of the rest.
    if (this.#unsubscribe.length > 0) return;
    this.#unsubscribe = [
      this.#o.messenger.subscribe(heartbeatSubject(this.#o.group), (message) =>
        this.#heard(unpack(message.data) as HeartbeatMessage),
      ),
      this.#o.messenger.subscribe(voteSubject(this.#o.group, this.#o.site), (message) => {
        void this.#vote(unpack(message.data) as VoteRequest, (answer) => message.respond(answer));
      }),
    ];
    this.#loop = this.#keepLock();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    for (const end of this.#unsubscribe) end();
    await this.#loop;
    this.#o.word.lockLost();
    // The lock is given back, but not the word: a successor keeps its silence all the same.
    if (this.#holding && this.#o.locks !== null)
      await this.#o.locks.unlock("coordinator", this.#o.holder).catch(() => undefined);
  }

  /** Whether this process coordinates its site. */
  get holding(): boolean {
    return this.#holding;
  }

  async #keepLock(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const asked = { at: this.#o.time.monotonic(), wallAt: this.#o.time.wall() };
      try {
        const lock =
          this.#o.locks === null
            ? { fresh: false }
            : await this.#o.locks.lock("coordinator", this.#o.holder, this.#o.termMs);
        if (lock !== null) {
          if (!this.#holding) this.#log.info("coordinates the site", { fresh: lock.fresh });
          this.#holding = true;
          await this.#o.word.lockHeld(asked, lock.fresh);
        } else if (this.#holding) {
          this.#log.warn("another process coordinates the site now");
          this.#holding = false;
          this.#o.word.lockLost();
        }
      } catch (error) {
        this.#log.warn("the coordinator's lock could not be renewed", { error: asError(error) });
      }
      await this.#o.time.sleep(this.#o.termMs / 4, this.#stop.signal);
    }
  }

  #heard(message: HeartbeatMessage): void {
    this.#o.peers.heard(message.report);
    const { heartbeat } = message;
    if (heartbeat.set > this.#o.setNumber()) this.#o.onNewerSet(heartbeat.set);
    const answer = this.#o.word.heartbeat(heartbeat);
    if (answer !== undefined)
      this.#o.messenger.publish(answerSubject(this.#o.group, heartbeat.dc, heartbeat.node), pack(answer));
  }

  async #vote(request: VoteRequest, respond: (data: Uint8Array) => void): Promise<void> {
    try {
      const vote = await castVote(this.#o.word, request, this.#o.time);
      if (vote === undefined) return;
      this.#log.warn("votes", { against: request.target, for: request.candidate, number: vote.number });
      respond(pack({ site: this.#o.site, number: vote.number }));
    } catch (error) {
      this.#log.warn("a vote could not be stored", { error: asError(error) });
    }
  }
}
