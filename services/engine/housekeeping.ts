import { unpack } from "msgpackr";
import { asError } from "../../infra/errors.js";
import type { Service } from "../../infra/service.js";
import type { Applier } from "../../replication/applier.js";
import type { Progress } from "../../replication/progress.js";
import type { Publisher } from "../../replication/publisher.js";
import type { LeaseKeeper } from "../../shards/lease-keeper.js";
import type { Head, ShardMap } from "../../shards/map.js";
import type { SiteWord } from "../../shards/site-word.js";
import { datacentersOf } from "../../shards/site-set.js";
import type { Hints, InsideBus } from "../inside.js";
import type { Ground } from "./ground.js";
import type { View } from "./view.js";

const mapTickMs = 250;
/** Between two reads of all heads there are so many times what one takes, for there may be thousands; but never more than this. */
const readShare = 20;
const longestReadMs = 1_000;

/** Another node of the datacenter, `node`, is asked to hold a shard (rule h). */
export const holdSubject = (group: string, site: string, node: string): string =>
  `hothot.${group}.inside.${site}.${node}.hold`;

interface HousekeepingOptions {
  readonly ground: Ground;
  readonly map: ShardMap;
  readonly view: View;
  readonly hints: Hints;
  readonly inside: InsideBus;
  readonly progress: Progress;
  readonly applier: Applier;
  readonly publisher: Publisher;
  readonly leases: LeaseKeeper;
  readonly word: SiteWord;
  readonly stopped: AbortController;
}

/** What a process hears and looks after, beside the work of its parts. */
export class Housekeeping implements Service {
  readonly name = "housekeeping";
  readonly #o: HousekeepingOptions;
  #meeting: Promise<void> | undefined;

  constructor(options: HousekeepingOptions) {
    this.#o = options;
  }

  async start(): Promise<void> {
    const { ground, applier, map, inside, view } = this.#o;
    const { group, site, node, main } = ground;
    await applier.start();
    inside.start();
    main.subscribe(holdSubject(group, site, node), (message) => {
      map.adopt(unpack(message.data) as Head);
      message.respond(new Uint8Array(0));
    });
    view.begin();
    void this.#look();
  }

  async stop(): Promise<void> {
    const { stopped, publisher, applier } = this.#o;
    stopped.abort();
    await publisher.stop();
    await applier.stop();
  }

  /** The own database is another one: nothing that was promised, acknowledged or known counts any more (rule i). */
  newIncarnation(): void {
    this.#meeting ??= this.#meet()
      .catch((error: unknown) => this.#o.ground.log.error("meeting the database failed", { error: asError(error) }))
      .finally(() => (this.#meeting = undefined));
  }

  async #meet(): Promise<void> {
    const { ground, leases, word, map, progress, applier, view } = this.#o;
    leases.drop();
    word.lockLost();
    map.reset();
    ground.log.error(
      "the database's incarnation changed: this datacenter serves nothing until the log opens its shards again",
    );
    if (!(await ground.meetAgain())) return;
    progress.reset();
    await applier.reload();
    await view.refresh();
    for (const head of map.all()) progress.reached(head.shard, head.epoch, head.position);
  }

  async #look(): Promise<void> {
    const { stopped, progress, map, ground, view, hints } = this.#o;
    let due = -Infinity;
    while (!stopped.signal.aborted) {
      hints.listen(datacentersOf(ground.siteSet()));
      // Each time: lag in milliseconds is as exact as these samples are close.
      progress.sample(map.all().flatMap((head) => (head.owner === ground.site ? [] : [head.shard])));
      const began = ground.time.monotonic();
      if (began >= due) {
        await view
          .refresh()
          .catch((error: unknown) => ground.log.debug("reading heads failed", { error: asError(error) }));
        const now = ground.time.monotonic();
        due = now + Math.min(longestReadMs, readShare * (now - began));
      }
      await ground.time.sleep(mapTickMs, stopped.signal);
    }
  }
}
