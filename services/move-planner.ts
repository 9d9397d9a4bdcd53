import { Problem } from "../infra/errors.js";
import type { JsonObject } from "../replication/entities.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import { datacentersOf } from "../shards/site-set.js";
import { successionOrder } from "../shards/successor.js";
import type { CallClient } from "./calls.js";
import type { DatacenterParts } from "./datacenter.js";
import type { MoveKind, MoveRequest } from "./http/index.js";
import { planDrain, planFailback, planRebalance, type PlannedMove } from "./move-plan.js";

const askMs = 2_000;
const hearMs = 3_000;

/** Which shards an operator's request moves, from where and to where; and what that would cost. */
export class MovePlanner {
  readonly #p: DatacenterParts;
  readonly #calls: CallClient;

  constructor(parts: DatacenterParts, calls: CallClient) {
    this.#p = parts;
    this.#calls = calls;
  }

  /** @throws Problem invalid_request, owner_reachable, owner_unreachable, no_majority, already_moving, overloaded */
  async plan(kind: MoveKind, request: MoveRequest, deadline: number): Promise<PlannedMove[]> {
    const moves = await this.#plan(kind, request, deadline);
    if (kind === "takeovers") this.#checkTakeover(request, moves);
    return moves;
  }

  /** The last owner that was planned for each shard: takeovers don't count. */
  async homes(): Promise<Map<number, SiteName>> {
    const { rows } = await this.#p.control.pool.query<{ shard: number; to_dc: string }>(
      "SELECT DISTINCT ON (shard) shard, to_dc FROM history WHERE kind <> 'takeover' ORDER BY shard, epoch DESC",
    );
    return new Map(rows.map((row) => [row.shard, row.to_dc]));
  }

  async #plan(kind: MoveKind, request: MoveRequest, deadline: number): Promise<PlannedMove[]> {
    await this.#hear(deadline);
    const { map, siteSets } = this.#p;
    const datacenters = datacentersOf(siteSets.set);
    const known = (dc: string | undefined, path: string): SiteName => {
      if (dc === undefined || !datacenters.includes(dc))
        throw new Problem("invalid_request", undefined, {
          errors: [{ path, message: `must be one of ${datacenters.join(", ")}` }],
        });
      return dc;
    };
    const named = (): { shard: ShardId; from: SiteName | null; head: NonNullable<ReturnType<typeof map.get>> }[] => {
      if (request.shard !== undefined) {
        const head = map.get(request.shard as ShardId);
        if (head === undefined)
          throw new Problem("invalid_request", undefined, {
            errors: [{ path: "/shard", message: `there are ${this.#p.shards} shards` }],
          });
        return [{ shard: head.shard, from: head.owner, head }];
      }
      return map.ownedBy(known(request.dc, "/dc")).map((head) => ({ shard: head.shard, from: head.owner, head }));
    };
    const alive = datacenters.filter((dc) => this.#alive(dc));
    switch (kind) {
      case "switchovers": {
        const to = known(request.to, "/to");
        return named()
          .filter((move) => move.from !== to)
          .map(({ shard, from }) => ({ shard, from, to }));
      }
      case "drains": {
        const dc = known(request.dc, "/dc");
        const targets = alive.filter((name) => name !== dc);
        if (targets.length === 0)
          throw new Problem("owner_unreachable", "There is no other datacenter that could take the shards.");
        return planDrain(map.all(), dc, targets);
      }
      case "failbacks":
        return planFailback(map.all(), known(request.dc, "/dc"), await this.homes());
      case "rebalances":
        return planRebalance(map.all(), alive);
      case "takeovers": {
        const to = request.to === undefined ? undefined : known(request.to, "/to");
        return named().flatMap(({ shard, from, head }) => {
          const target =
            to ??
            successionOrder(
              head.partition,
              alive.filter((dc) => dc !== from),
              this.#p.config.successors,
            )[0];
          return target === undefined || target === from ? [] : [{ shard, from, to: target }];
        });
      }
    }
  }

  #checkTakeover(request: MoveRequest, moves: readonly PlannedMove[]): void {
    const reachable = [...new Set(moves.map((move) => move.from))].find((dc) => dc !== null && this.#hasLease(dc));
    if (reachable !== undefined && request.force !== true)
      throw new Problem(
        "owner_reachable",
        `${String(reachable)} is alive: use a switchover; with \`force\` its sites withdraw their promises, and what it committed and did not publish becomes divergent.`,
      );
    if (this.#p.siteSets.set.sites.length < 3)
      throw new Problem(
        "no_majority",
        "Two sites can't outvote one of them. If the other one is off for good, a new log can begin with this datacenter's copy (`hothot takeover --force` on a local stack; README.md, break-glass, elsewhere): you vouch that it stays off, and what it acknowledged and this copy does not have is divergent when it returns.",
      );
    if (moves.length === 0)
      throw new Problem("already_moving", "There is nothing to take over: the shards have other owners already.");
  }

  /**
   * Of a move that has ended its new owner knows, not everybody: this process may be behind another one, of its own datacenter, too.
   * A plan that is made of older news would leave out in silence what is not where it seems to be.
   * @throws Problem overloaded when it can't catch up in time
   */
  async #hear(deadline: number): Promise<void> {
    const { map, changes, time, site, siteSets, refresh } = this.#p;
    const others = datacentersOf(siteSets.set).filter((dc) => dc !== site && this.#alive(dc));
    const [known] = await Promise.all([
      Promise.all(others.map((dc) => this.#calls.call(dc, "positions", null, askMs).catch(() => []))),
      refresh(),
    ]);
    const end = Math.min(deadline, time.monotonic() + hearMs);
    for (const [shard, epoch] of known.flat())
      while ((map.get(shard as ShardId)?.epoch ?? 0) < epoch) {
        const left = end - time.monotonic();
        if (left <= 0)
          throw new Problem("overloaded", `${site} has not heard yet who owns shard ${shard} now.`, {
            retryAfterSeconds: 1,
          });
        await changes.next(shard as ShardId, Math.min(left, 100));
      }
  }

  #alive(dc: SiteName): boolean {
    return dc === this.#p.site ? this.#p.leases.valid : this.#p.peers.state(dc) === "serving";
  }

  /** Also one that is not caught up: its sites promise it a lease, and don't vote against it. */
  #hasLease(dc: SiteName): boolean {
    return this.#alive(dc) || (dc !== this.#p.site && this.#p.peers.state(dc) === "catching_up");
  }

  /** What each shard's move would be like. @throws Problem as `plan` does, but for takeovers that are not due */
  async dryRun(kind: MoveKind, request: MoveRequest, deadline: number): Promise<JsonObject[]> {
    const moves = await this.#plan(kind, request, deadline);
    const places = await this.#places(moves);
    return moves.map(({ shard, from, to }) => {
      const known = (dc: SiteName | null): Place | undefined => (dc === null ? undefined : places.get(dc)?.get(shard));
      const owner = known(from);
      const head = owner?.position ?? this.#p.peers.head(shard)?.position ?? 0;
      const logged = Math.max(
        owner?.published ?? 0,
        ...[...places].map(([dc, of]) => (dc === from ? 0 : (of.get(shard)?.position ?? 0))),
      );
      return {
        shard,
        from,
        to,
        unapplied: Math.max(0, head - (known(to)?.position ?? 0)),
        // A planned move loses nothing; a takeover loses (sets aside) what the log does not have, as far as is known of its owner.
        lost: kind === "takeovers" ? Math.max(0, head - logged) : 0,
      };
    });
  }

  /** How far each shard is in every datacenter that answers. */
  async #places(moves: readonly PlannedMove[]): Promise<Map<SiteName, Map<number, Place>>> {
    const named = moves.flatMap(({ from, to }) => (from === null ? [to] : [from, to]));
    const asked = new Set([...named, ...datacentersOf(this.#p.siteSets.set).filter((dc) => this.#alive(dc))]);
    const answers = [...asked].map(async (dc) => {
      const found = await this.#calls.call(dc, "positions", null, askMs).catch(() => []);
      return [
        dc,
        new Map(found.map(([shard, , position, published]): [number, Place] => [shard, { position, published }])),
      ] as const;
    });
    return new Map(await Promise.all(answers));
  }
}

interface Place {
  readonly position: number;
  /** What the log has, as the owner knows it; undefined from an earlier version. */
  readonly published: number | undefined;
}
