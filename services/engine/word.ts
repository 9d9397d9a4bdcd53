import { Coordinator } from "../../shards/coordinator.js";
import { Peers } from "../../shards/peers.js";
import { SiteWord } from "../../shards/site-word.js";
import type { WordGround } from "./ground.js";

export interface WordParts {
  readonly word: SiteWord;
  readonly peers: Peers;
  readonly coordinator: Coordinator;
}

/** The site's word and who gives it: wired ahead of the rest, so that its silence after a restart begins as early as may be. */
export function createWord(ground: WordGround): WordParts {
  const { site, settings, time } = ground;
  const peers = new Peers(time, settings.heartbeatMs, settings.leaseMs);
  const word = new SiteWord({
    site,
    leaseMs: settings.leaseMs,
    termMs: settings.coordinatorTermMs,
    marginMs: settings.marginMs,
    clock: time,
    votes: ground.votes,
    setNumber: ground.setNumber,
    incarnation: ground.incarnation,
  });
  const coordinator = new Coordinator({
    group: ground.group,
    site,
    holder: ground.holder,
    termMs: settings.coordinatorTermMs,
    time,
    log: ground.log,
    messenger: ground.heartbeats,
    word,
    peers,
    locks: ground.store,
    setNumber: ground.setNumber,
    onNewerSet: ground.onNewerSet,
  });
  return { word, peers, coordinator };
}
