import type { Logger } from "../../infra/logger.js";
import { Coordinator } from "../../shards/coordinator.js";
import { Peers } from "../../shards/peers.js";
import { addVote } from "../../shards/postgres-store.js";
import { SiteWord } from "../../shards/site-word.js";
import type { SiteSet } from "../../shards/site-set.js";
import type { Vote } from "../../shards/store.js";
import type { Settings } from "./node.js";
import type { Network } from "./network.js";
import { tamperedVotes, type Off } from "./rules.js";
import type { Process, Scheduler } from "./scheduler.js";

/** A witness's process: the real coordinator and word, with its votes in a file that outlives it. */
export async function startWitness(o: {
  readonly process: Process;
  readonly scheduler: Scheduler;
  readonly network: Network;
  readonly siteSet: SiteSet;
  readonly settings: Settings;
  readonly logger: Logger;
  readonly file: Map<string, Vote>;
  readonly off: Off;
}): Promise<void> {
  const { process, settings, siteSet, file } = o;
  const write = (): Promise<void> => process.time.sleep(o.scheduler.between(1, 5));
  const word = new SiteWord({
    site: process.site,
    leaseMs: settings.leaseMs,
    termMs: settings.coordinatorTermMs,
    marginMs: settings.marginMs,
    clock: process.time,
    setNumber: () => siteSet.number,
    incarnation: () => 1,
    votes: tamperedVotes(
      {
        load: async () => (await write(), new Map(file)),
        vote: async (target, epochs) => {
          const vote = addVote(file.get(target), epochs);
          file.set(target, vote);
          await write();
          return vote;
        },
      },
      o.off,
    ),
  });
  const coordinator = new Coordinator({
    group: "sim",
    site: process.site,
    holder: process.name,
    termMs: settings.coordinatorTermMs,
    time: process.time,
    log: o.logger,
    messenger: o.network.messenger(process),
    word,
    peers: new Peers(process.time, settings.heartbeatMs, settings.leaseMs),
    locks: null,
    setNumber: () => siteSet.number,
    onNewerSet: () => undefined,
  });
  await coordinator.start();
}
