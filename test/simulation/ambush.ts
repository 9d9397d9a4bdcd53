import type { Faults } from "./faults.js";
import type { World } from "./world.js";

/**
 * What the rules of ownership are for, more often than chance alone would bring it: an owner that one datacenter does not
 * hear goes on and does not see the log, while a third site, whose word decides, has troubles of its own.
 */
export function ambush(w: World, faults: Faults, again = 1): void {
  const { s, network, databases, siteSet, shape, checker } = w;
  s.count("ambushes");
  const { leaseMs, coordinatorTermMs: termMs } = shape.settings;
  const owner = checker.owner(Math.floor(s.random.next() * shape.shards));
  const others = siteSet.sites.map((site) => site.name).filter((site) => site !== owner);
  const candidate = s.pick(others.filter((site) => site !== shape.witness));
  const decider = s.pick(others.filter((site) => site !== candidate));
  const from = s.now;
  const until = from + leaseMs * s.between(1.2, 4) + (shape.goesBack && s.chance(0.4) ? 2_000 : 0);
  w.say("world", `ambush of ${owner}, which ${candidate} does not hear, until ${until.toFixed(1)}; ${decider} decides`);

  network.cut(owner, candidate, until, ["word"]);
  if (s.chance(0.6)) network.cut(candidate, owner, until, ["word"]);
  const blind = until + s.between(0, leaseMs);
  if (s.chance(0.7))
    for (const other of others) {
      network.cut(owner, other, blind, ["bulk"]);
      network.cut(other, owner, blind, ["bulk"]);
    }
  const database = databases.get(owner);
  if (database !== undefined && s.chance(0.4)) database.dataPausedUntil = blind;
  const taking = databases.get(candidate);
  if (taking !== undefined && s.chance(0.25)) taking.dataPausedUntil = from + leaseMs * s.between(1, 3);
  if (s.chance(0.25)) faults.trap(candidate, "vote", s.chance(0.7));

  const livingOf = (site: string) => [...w.processes.values()].filter((each) => each.site === site && !each.dead);
  const trouble = (): void => {
    if (s.chance(0.35)) {
      const apart = s.now + leaseMs * s.between(0.3, 1.5);
      network.cut(owner, decider, apart, ["word"]);
      network.cut(decider, owner, apart, ["word"]);
      w.say("link", `${owner} and ${decider} cut until ${apart.toFixed(1)} for word`);
    }
    const living = livingOf(decider);
    const some = s.chance(0.5) || living.length === 0 ? living : [s.pick(living)];
    const kind = s.random.next();
    const its = databases.get(decider);
    if (shape.goesBack && kind < 0.35) faults.goBack(decider);
    else if (shape.clockJumps && kind < 0.5 && its !== undefined) {
      its.ahead = s.between(0.8, 1) * termMs;
      const speaker = [...w.nodes.values()].find((node) => node.process.site === decider && node.word.speaks);
      if (speaker !== undefined) its.lateLocks = { process: speaker.process.name, until: s.now + termMs };
      w.say(decider, `its database's clock jumps, and ${speaker?.process.name ?? "nobody"} renews its lock late`);
    } else if (kind < 0.6) faults.crash(some, s.between(1, 60), "for a moment");
    else if (kind < 0.8) faults.pause(some, leaseMs * s.between(0.5, 2.2));
    else faults.trap(decider, "vote", s.chance(0.5));
  };
  s.after(leaseMs * s.between(0.3, 1.6), null, () => {
    if (faults.active) trouble();
  });
  if (again > 0 && s.chance(0.6))
    s.after(until - from + leaseMs * s.between(-0.5, 1.5), null, () => {
      if (faults.active) ambush(w, faults, again - 1);
    });
}
