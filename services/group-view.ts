import { Problem } from "../infra/errors.js";
import type { EventLoop } from "../infra/event-loop.js";
import type { JsonObject } from "../replication/entities.js";
import type { SiteName } from "../shards/ids.js";
import { automaticTakeover, datacentersOf } from "../shards/site-set.js";
import type { Listed, Page } from "./api.js";
import { clusterView } from "./clusters/operations.js";
import { cursorParts, decodeCursor, encodeCursor } from "./clusters/queries.js";
import type { DatacenterParts } from "./datacenter.js";

/** How the group and this process stand, as this process sees it: what operators look at. */
export class GroupView {
  readonly #p: DatacenterParts;
  readonly #loop: Pick<EventLoop, "lag">;

  constructor(parts: DatacenterParts, loop: Pick<EventLoop, "lag">) {
    this.#p = parts;
    this.#loop = loop;
  }

  async topology(): Promise<JsonObject> {
    const { map, peers, siteSets, leases } = this.#p;
    const set = siteSets.set;
    const datacenters = datacentersOf(set).map((name) => {
      const shardsOwned = map.ownedBy(name).length;
      if (name === this.#p.site) {
        const lag = this.#p.worstLag();
        return {
          name,
          url: this.#p.url,
          state: this.#p.state(),
          leaseMsLeft: Math.round(leases.msLeft),
          shardsOwned,
          lag,
          stopped: map.all().filter((head) => head.stopped !== null).length,
        };
      }
      const report = peers.lastReport(name);
      const state = peers.state(name);
      const gone = state === "dead";
      return {
        name,
        url: report?.url ?? null,
        state,
        leaseMsLeft: gone ? 0 : Math.round(report?.leaseMsLeft ?? 0),
        shardsOwned,
        lag: { positions: gone ? null : (report?.lagPositions ?? null), ms: gone ? null : (report?.lagMs ?? null) },
      };
    });
    const hears = leases.hears;
    const witnesses = set.sites
      .filter((site) => site.witness)
      .map((site) => ({ name: site.name, state: hears.includes(site.name) ? "serving" : "dead" }));
    return {
      datacenters,
      witnesses,
      shards: set.shards,
      partitions: set.partitions,
      failoverPaused: set.failoverPaused,
      automaticTakeover: automaticTakeover(set, heardSites(this.#p)),
      seenFrom: this.#p.site,
    };
  }

  async shards(): Promise<Listed> {
    const items = this.#p.map.all().map((head) => ({
      shard: head.shard,
      partition: head.partition,
      owner: head.owner,
      epoch: head.epoch,
      state: shownState(head.owner === null ? "none" : head.state),
      position: this.#p.progress.place(head.shard).position,
      since: head.since,
      reason: head.reason === "" ? head.kind : `${head.kind}: ${head.reason}`,
      ...(head.stopped === null ? {} : { stopped: head.stopped }),
    }));
    return { items, nextCursor: null };
  }

  async history(page: Page): Promise<Listed> {
    const after = page.cursor === undefined ? null : cursorParts(page.cursor, ["time", "shard", "epoch"]);
    // Times are of the owners' clocks: of a shard, no epoch comes before the one that it followed.
    const { rows } = await this.#p.control.pool.query<{
      shard: number;
      epoch: number;
      at: string;
      turn: string;
      from_dc: string | null;
      to_dc: string;
      kind: string;
      reason: string;
      by: string;
      phasesMs: Record<string, number>;
      drained: number;
      divergent: number;
    }>(
      `SELECT shard, epoch, at, turn, from_dc, to_dc, kind, reason, by, phases_ms AS "phasesMs", drained, divergent
       FROM (SELECT *, max(at) OVER (PARTITION BY shard ORDER BY epoch) AS turn FROM history) AS h
       WHERE $1::timestamptz IS NULL OR (turn, shard, epoch) > ($1::timestamptz, $2::int, $3::bigint)
       ORDER BY turn, shard, epoch LIMIT $4`,
      [after?.[0] ?? null, after?.[1] ?? 0, after?.[2] ?? 0, page.limit + 1],
    );
    const changes = await this.#p.facts.complete(rows.slice(0, page.limit));
    const items = changes.map((row) => ({
      id: `${row.shard}-${row.epoch}`,
      at: row.at,
      shard: row.shard,
      epoch: row.epoch,
      from: row.from_dc,
      to: row.to_dc,
      kind: row.kind,
      reason: row.reason,
      by: row.by,
      phasesMs: row.phasesMs,
      drained: row.drained,
      divergent: row.divergent,
    }));
    const last = changes.at(-1);
    return {
      items,
      nextCursor:
        rows.length > page.limit && last !== undefined
          ? encodeCursor(JSON.stringify([last.turn, last.shard, last.epoch]))
          : null,
    };
  }

  async lag(): Promise<Listed> {
    const items = this.#p.map.all().map((head) => ({
      shard: head.shard,
      owner: head.owner,
      ...(head.owner === this.#p.site ? { positions: 0, ms: 0 } : this.#p.readiness.lag(head.shard)),
      // Rows are missing whatever the position says: a snapshot, or rows that were undone.
      ...(this.#p.restorer.shardWaits(head.shard) ? { loading: true } : {}),
      ...(head.stopped === null ? {} : { stopped: head.stopped }),
    }));
    return { items, nextCursor: null };
  }

  async divergent(query: Page & { readonly status?: string }): Promise<Listed> {
    let select = this.#p.data.db.selectFrom("divergentOperations").selectAll();
    if (query.status !== undefined) select = select.where("status", "=", query.status);
    if (query.cursor !== undefined) select = select.where("id", ">", decodeCursor(query.cursor));
    const rows = await select
      .orderBy("id")
      .limit(query.limit + 1)
      .execute();
    const items = rows.slice(0, query.limit).map(divergentView);
    return { items, nextCursor: rows.length > query.limit ? encodeCursor(rows[query.limit - 1]?.id ?? "") : null };
  }

  async divergentById(id: string): Promise<JsonObject> {
    const row = await this.#p.data.db
      .selectFrom("divergentOperations")
      .selectAll()
      .where("id", "=", id)
      .executeTakeFirst();
    if (row === undefined) throw new Problem("not_found", `There is no divergent operation ${id} here.`);
    const current = await this.#p.queries.cluster(row.tenant, row.clusterId);
    const shown =
      current === undefined || current.deleted
        ? null
        : clusterView(current, this.#p.map.get(current.shard)?.owner ?? null);
    const value = (row.value as { cluster?: Parameters<typeof clusterView>[0] }).cluster;
    const { compare } = await import("fast-json-patch").then((module) => module.default);
    const diff =
      value === undefined ? [] : compare(shown ?? {}, clusterView(value, this.#p.map.get(value.shard)?.owner ?? null));
    return { ...divergentView(row), current: shown, diff };
  }

  readiness(): { ready: boolean; reason: string | null; lagMs: number } {
    const state = this.#p.state();
    const lagMs = this.#p.worstLag().ms;
    const reasons = {
      serving: null,
      fenced: "no lease: too few sites promise it one, or the database takes no writes",
      catching_up: "catching up with the other datacenters",
    } as const;
    const { medianMs } = this.#loop.lag;
    const late =
      medianMs > this.#p.config.maxEventLoopLagMs
        ? `the process is too busy: its event loop is late by ${Math.round(medianMs)} ms`
        : null;
    const reason = reasons[state] ?? late;
    return { ready: reason === null, reason, lagMs };
  }
}

/** Sites that this process hears, or that somebody says to hear whom it hears. */
export function heardSites({
  site,
  siteSets,
  leases,
  peers,
}: Pick<DatacenterParts, "site" | "siteSets" | "leases" | "peers">): ReadonlySet<SiteName> {
  const others = datacentersOf(siteSets.set).filter((dc) => dc !== site && peers.state(dc) !== "dead");
  return new Set([
    ...[site, ...leases.hears, ...others],
    ...others.flatMap((dc) => peers.reports(dc).flatMap(({ hears }) => hears)),
  ]);
}

/** `owned`, `moving` or `unowned`: what a shard's state comes to for who wants to use it. */
export function shownState(state: string): string {
  return state === "moving" ? "moving" : state === "none" || state === "suspended" ? "unowned" : "owned";
}

function divergentView(row: {
  id: string;
  dc: string;
  shard: number;
  epoch: number;
  position: number;
  clusterId: string;
  type: string;
  version: number | null;
  value: unknown;
  idempotencyKey: string | null;
  committedAt: string;
  status: string;
}): JsonObject {
  const { id, dc, shard, epoch, position, clusterId, type, version, value, idempotencyKey, committedAt, status } = row;
  return { id, dc, shard, epoch, position, clusterId, type, version, value, idempotencyKey, committedAt, status };
}
