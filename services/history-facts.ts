import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Database } from "../infra/postgres/database.js";
import { addFacts, factsKey, factsOf, gatheredFacts, mergedFacts, type ChangeFacts } from "../replication/history.js";
import type { SiteName } from "../shards/ids.js";
import type { CallClient } from "./calls.js";

/** A takeover's shards are opened side by side: what is known of them travels together. */
const gatherMs = 100;
const tellMs = 2_000;
/** The change itself comes by the log, and may come after what is told of it. */
const heardMs = 5_000;
const lookMs = 100;
/** Whoever reads the history waits no longer for what others know. */
const askMs = 500;

/**
 * An ownership change is a record of the log, and the same in every datacenter; what is known only after it (how long the append and
 * the opening took, how much the former owner set aside) is told to all by the one who knows, and asked of all when the history is read.
 */
export class HistoryFacts {
  #pending: ChangeFacts[] = [];

  constructor(
    private readonly o: {
      readonly database: Pick<Database, "pool">;
      readonly calls: Pick<CallClient, "call">;
      /** Datacenters that may answer, without this one. */
      readonly others: () => readonly SiteName[];
      readonly time: Time;
      readonly log: Logger;
    },
  ) {}

  /** Learned here: stored, and told to the others. */
  add(fact: Pick<ChangeFacts, "shard" | "epoch"> & Partial<ChangeFacts>): void {
    if (this.#pending.length === 0)
      this.o.time.after(gatherMs, () => {
        const facts = gatheredFacts(this.#pending);
        this.#pending = [];
        void this.#tell(facts).catch((error: unknown) =>
          this.o.log.warn("the history can't be completed", { error: asError(error) }),
        );
      });
    this.#pending.push({ phasesMs: {}, divergent: 0, ...fact });
  }

  /** Told by another datacenter. */
  async told(facts: readonly ChangeFacts[]): Promise<void> {
    const { time, database } = this.o;
    const deadline = time.monotonic() + heardMs;
    for (let left = await addFacts(database, facts); left.length > 0 && time.monotonic() < deadline;) {
      await time.sleep(lookMs);
      left = await addFacts(database, left);
    }
  }

  /** What is known here of these changes. */
  known(changes: readonly (readonly [shard: number, epoch: number])[]): Promise<ChangeFacts[]> {
    return factsOf(
      this.o.database,
      changes.map(([shard, epoch]) => ({ shard, epoch })),
    );
  }

  /** What all datacenters that answer know of these changes; kept here from now on. */
  async complete<T extends ChangeFacts>(changes: readonly T[]): Promise<T[]> {
    if (changes.length === 0) return [];
    const places = changes.map(({ shard, epoch }) => [shard, epoch] as const);
    const answers = await Promise.all(
      this.o.others().map((dc) => this.o.calls.call(dc, "historyKnown", places, askMs).catch(() => [])),
    );
    const known = new Map(gatheredFacts(answers.flat()).map((each) => [factsKey(each), each]));
    const news: ChangeFacts[] = [];
    const complete = changes.map((change) => {
      const more = known.get(factsKey(change));
      if (more === undefined || !addsTo(change, more)) return change;
      news.push(more);
      return { ...change, ...mergedFacts(change, more) };
    });
    await addFacts(this.o.database, news);
    return complete;
  }

  async #tell(facts: readonly ChangeFacts[]): Promise<void> {
    const others = this.o.others().map((dc) =>
      this.o.calls
        .call(dc, "historyTold", facts, tellMs)
        // It asks when its history is read.
        .catch((error: unknown) => this.o.log.debug("another's history lacks", { dc, error: asError(error) })),
    );
    await Promise.all([this.told(facts), ...others]);
  }
}

const addsTo = (known: ChangeFacts, more: ChangeFacts): boolean =>
  more.divergent > known.divergent || Object.keys(more.phasesMs).some((name) => !(name in known.phasesMs));
