import type { Faults } from "./faults.js";
import type { Rule } from "./rules.js";
import type { Shape } from "./shape.js";
import type { World } from "./world.js";

/** What makes the loss of a rule felt sooner: a shape of the world, and a story that is played in it again and again. */
export interface Bias {
  readonly shape?: Partial<Shape>;
  readonly story?: (w: World, faults: Faults) => void;
}

/** Rules whose loss alone nothing can notice, since another rule does the same work; what does it. */
export const covered: Partial<Record<Rule, string>> = {
  "g-confirm":
    "a lease comes only after every vote was acknowledged and its fence stored (a, d), and a move is in the database before its append (g-moving): a restarted datacenter that has a lease knows all that ended its epochs",
  "applier-epoch":
    "a record of an older epoch behind an `open` can't be in the log (cas, e), and rows that never were in it are removed when their epoch ends below them (P6, P7)",
};

/** Who plays which part: an owner, a datacenter that takes over from it, and the site whose vote decides. */
function cast(w: World) {
  const { s, shape, siteSet, checker } = w;
  const shard = Math.floor(s.random.next() * shape.shards);
  const owner = checker.owner(shard);
  const others = siteSet.sites.map((site) => site.name).filter((site) => site !== owner);
  const candidate = s.pick(others.filter((site) => site !== shape.witness));
  const decider = s.pick(others.filter((site) => site !== candidate));
  return { shard, owner, others, candidate, decider };
}

/** Neither hears the other's heartbeats and votes until then. */
function deafen(w: World, a: string, b: string, until: number): void {
  w.network.cut(a, b, until, ["word"]);
  w.network.cut(b, a, until, ["word"]);
}

/** A datacenter's connections to the log and its copy of it stand still. */
function blind(w: World, site: string, until: number): void {
  for (const { name } of w.siteSet.sites)
    if (name !== site) {
      w.network.cut(site, name, until, ["bulk"]);
      w.network.cut(name, site, until, ["bulk"]);
    }
}

/**
 * The decider's database forgets a vote that the owner has acknowledged, and the next vote gets the same number: the owner's
 * old acknowledgement must not count for it (i-ack).
 */
function forgottenVote(w: World, faults: Faults): void {
  const { s, shape } = w;
  const { leaseMs } = shape.settings;
  const { owner, candidate, decider } = cast(w);
  w.say("world", `${decider} is to forget its vote against ${owner}`);
  const silent = s.now + leaseMs * 1.25;
  deafen(w, owner, candidate, silent + leaseMs);
  deafen(w, owner, decider, silent);
  faults.trap(candidate, "vote", true);
  s.after(leaseMs * s.between(1.9, 2.4), null, () => {
    if (!faults.active) return;
    faults.goBack(decider, leaseMs * s.between(1.2, 2.2));
    s.after(leaseMs * s.between(2.2, 3), null, () => {
      if (faults.active) slowCandidate(w, faults, { owner, candidate, decider });
    });
  });
}

/** The owner is heard again by the site that has just voted against it, and does not see that the candidate goes on. */
function slowCandidate(
  w: World,
  faults: Faults,
  { owner, candidate, decider }: { owner: string; candidate: string; decider: string } = cast(w),
): void {
  const { s, shape } = w;
  const { leaseMs } = shape.settings;
  const end = s.now + leaseMs * s.between(4, 6);
  w.say("world", `${candidate} is to take over from ${owner} late, with the vote of ${decider}`);
  deafen(w, owner, candidate, end);
  deafen(w, owner, decider, s.now + leaseMs * s.between(1.02, 1.3));
  if (s.chance(0.8)) blind(w, owner, end);
  const database = w.databases.get(owner);
  if (database !== undefined && s.chance(0.3)) database.dataPausedUntil = end;
  if (s.chance(0.7)) faults.trap(candidate, "vote", true);
}

/**
 * A datacenter is voted against before it has heard of the epoch that it owns: it must not serve it when it hears (d-epoch).
 */
function lateOwner(w: World, faults: Faults): void {
  const { s, shape, databases, nodes } = w;
  const { leaseMs } = shape.settings;
  const { shard, owner, others, candidate: heir } = cast(w);
  const its = databases.get(heir);
  const driver = [...nodes.values()].find((node) => node.process.site === owner && node.replicator.holding);
  if (its === undefined || driver === undefined) return;
  const rest = others.filter((site) => site !== heir && site !== shape.witness);
  const next = rest.length > 0 ? s.pick(rest) : owner;
  w.say("world", `${heir} is given shard ${shard} while its tables stand still, and is then silent`);
  const deaf = s.now + leaseMs * s.between(1.3, 1.7);
  its.dataPausedUntil = deaf + leaseMs * s.between(0.3, 1.2);
  void driver.switchover
    .move({ shard: shard as never, to: heir, kind: "switchover", reason: "asked for", by: "operator" })
    .catch(() => undefined);
  s.after(leaseMs * 0.15, null, () => {
    for (const { name } of w.siteSet.sites)
      if (name !== heir) deafen(w, heir, name, name === next ? deaf + leaseMs * 3 : deaf);
    if (s.chance(0.8)) faults.trap(next, "vote", true);
    s.after(leaseMs * 2.2, null, () => {
      if (faults.active && s.chance(0.5)) blind(w, heir, s.now + leaseMs * 2);
    });
  });
}

/** The decider's lock is taken over early, because its database's clock jumps, while its old holder still promises (c-term). */
function twoSpeakers(w: World, faults: Faults): void {
  const { s, shape, databases, nodes } = w;
  const { leaseMs, coordinatorTermMs: termMs } = shape.settings;
  const { owner, candidate, decider } = cast(w);
  const database = databases.get(decider);
  const speaker = [...nodes.values()].find((node) => node.process.site === decider && node.word.speaks);
  if (database === undefined || speaker === undefined) return;
  w.say("world", `${decider} is to speak twice about ${owner}, for ${candidate}`);
  database.lateLocks = { process: speaker.process.name, until: s.now + termMs + leaseMs * 2 };
  database.ahead = termMs * 1.05;
  const end = s.now + leaseMs * s.between(2.5, 3.5);
  // The old one promises to the owner until its term ends; the new one does not hear the owner.
  const fresh = [...w.processes.values()].filter((each) => each.site === decider && each !== speaker.process);
  w.network.deaf = (site, to) => site === owner && fresh.some((each) => each.name === to);
  // The candidate misses the owner just when the new one begins to speak, too early.
  s.after(leaseMs * s.between(0.25, 0.45), null, () => {
    if (faults.active) deafen(w, owner, candidate, end);
  });
  s.after(end - s.now, null, () => {
    w.network.deaf = () => false;
    database.ahead = 0;
  });
  blind(w, owner, end);
  const slow = databases.get(owner);
  if (slow !== undefined && s.chance(0.3)) slow.dataPausedUntil = end;
}

/** One link is cut: the owner is heard by the site that decides, and does not see the log. */
function oneLink(w: World): void {
  const { s, shape } = w;
  const { owner, candidate } = cast(w);
  const end = s.now + shape.settings.leaseMs * s.between(2.5, 4);
  w.say("world", `${candidate} does not hear ${owner}, which the others hear`);
  deafen(w, owner, candidate, end);
  blind(w, owner, end);
}

const steady: Partial<Shape> = { goesBack: false, clockJumps: false, suspends: false };

export const biases: Partial<Record<Rule, Bias>> = {
  "a-promise": { story: oneLink },
  "vote-majority": { story: oneLink },
  "a-all": { story: slowCandidate },
  "a-durable": { story: slowCandidate },
  "a-refuse": { story: slowCandidate },
  "c-term": {
    shape: { ...steady, datacenters: ["east", "central", "west"], witness: null, nodes: 2, shards: 1, partitions: 1 },
    story: twoSpeakers,
  },
  "d-epoch": {
    shape: { ...steady, datacenters: ["east", "central", "west"], witness: null, shards: 1, partitions: 1 },
    story: lateOwner,
  },
  "i-ack": {
    shape: {
      goesBack: true,
      clockJumps: false,
      datacenters: ["east", "central", "west"],
      witness: null,
      shards: 1,
      partitions: 1,
    },
    story: forgottenVote,
  },
  "i-incarnation": { shape: { goesBack: true } },
  "b-silence": { story: slowCandidate },
};
