import type { Clock } from "../infra/clock.js";
import type { Epoch, Partition, Position, ShardId, SiteName } from "./ids.js";

/** What a node tells all others with each heartbeat, beside what its lease needs. */
export interface NodeReport {
  readonly dc: SiteName;
  readonly node: string;
  readonly url: string;
  readonly state: "serving" | "fenced" | "catching_up";
  readonly leaseMsLeft: number;
  /** Sites that answered it lately. */
  readonly hears: readonly SiteName[];
  /** Partitions of which it could not open every shard now. */
  readonly blocked: readonly Partition[];
  /** Of the shards that it owns: shard, epoch, head position, flattened. Only one node of a datacenter sends them. */
  readonly heads: readonly number[];
  /** Largest lag over the shards that it does not own. */
  readonly lagPositions: number;
  readonly lagMs: number;
  /** Of each log partition, from 0: the last message that is folded in. Only the datacenter's replicator sends them. */
  readonly applied?: readonly number[];
}

interface Heard {
  readonly at: number;
  readonly report: NodeReport;
}

export type PeerState = "serving" | "fenced" | "catching_up" | "suspect" | "dead";

/** Who was heard last, and what of. All by the own monotonic clock: other sites' clocks don't matter. */
export class Peers {
  readonly #heard = new Map<SiteName, Map<string, Heard>>();
  readonly #applied = new Map<SiteName, readonly number[]>();
  readonly #heads = new Map<ShardId, { epoch: Epoch; position: Position; at: number }>();
  readonly #clock: Clock;
  readonly #suspectMs: number;
  readonly #deadMs: number;

  constructor(clock: Clock, heartbeatMs: number, leaseMs: number) {
    this.#clock = clock;
    this.#suspectMs = Math.max(3 * heartbeatMs, leaseMs * 0.4);
    this.#deadMs = leaseMs;
  }

  heard(report: NodeReport): void {
    const at = this.#clock.monotonic();
    let nodes = this.#heard.get(report.dc);
    if (nodes === undefined) this.#heard.set(report.dc, (nodes = new Map<string, Heard>()));
    nodes.set(report.node, { at, report });
    if (report.applied !== undefined && report.applied.length > 0) this.#applied.set(report.dc, report.applied);
    for (let i = 0; i + 2 < report.heads.length; i += 3)
      this.learnHead(report.heads[i] as ShardId, report.heads[i + 1] as Epoch, report.heads[i + 2] as Position);
  }

  /** An owner's head position, from its heartbeat or from the log. */
  learnHead(shard: ShardId, epoch: Epoch, position: Position): void {
    const known = this.#heads.get(shard);
    if (known !== undefined && (known.epoch > epoch || (known.epoch === epoch && known.position >= position))) return;
    this.#heads.set(shard, { epoch, position, at: this.#clock.monotonic() });
  }

  /** The owner's head as last heard, and when (monotonic). */
  head(shard: ShardId): { readonly epoch: Epoch; readonly position: Position; readonly at: number } | undefined {
    return this.#heads.get(shard);
  }

  /** The last message of the partition that the datacenter has said to have folded in, however long ago. */
  applied(dc: SiteName, partition: Partition): number | undefined {
    return this.#applied.get(dc)?.[partition];
  }

  /** Milliseconds since any node of the datacenter was heard; Infinity when never. */
  silentMs(dc: SiteName): number {
    const nodes = this.#heard.get(dc);
    if (nodes === undefined) return Infinity;
    return this.#clock.monotonic() - Math.max(...[...nodes.values()].map((heard) => heard.at));
  }

  /** Reports of the datacenter's nodes that are alive. */
  reports(dc: SiteName): NodeReport[] {
    const now = this.#clock.monotonic();
    return [...(this.#heard.get(dc)?.values() ?? [])]
      .filter((heard) => now - heard.at < this.#deadMs)
      .map((heard) => heard.report);
  }

  /** The datacenter's nodes that are heard, where another one of them has fallen silent; else none. */
  heardBesideSilent(dc: SiteName): readonly string[] {
    const nodes = this.#heard.get(dc);
    if (nodes === undefined || nodes.size < 2) return [];
    const now = this.#clock.monotonic();
    const heard = [...nodes].filter(([, { at }]) => now - at < this.#suspectMs).map(([node]) => node);
    return heard.length < nodes.size ? heard : [];
  }

  /** The last report, however old. */
  lastReport(dc: SiteName): NodeReport | undefined {
    const nodes = [...(this.#heard.get(dc)?.values() ?? [])];
    return nodes.sort((a, b) => b.at - a.at)[0]?.report;
  }

  state(dc: SiteName): PeerState {
    const silent = this.silentMs(dc);
    if (silent > this.#deadMs) return this.#heardByOthers(dc) ? "suspect" : "dead";
    if (silent > this.#suspectMs) return "suspect";
    const reports = this.reports(dc);
    return reports.some((r) => r.state === "serving")
      ? "serving"
      : reports.some((r) => r.state === "catching_up")
        ? "catching_up"
        : "fenced";
  }

  /** Silent for so long that it may be dying, and not long enough to be called dead. */
  inDoubt(dc: SiteName): boolean {
    const silent = this.silentMs(dc);
    return silent > this.#suspectMs && silent <= this.#deadMs;
  }

  /** Only the link to it is down: somebody else hears it, and can relay. */
  #heardByOthers(dc: SiteName): boolean {
    for (const other of this.#heard.keys())
      if (
        other !== dc &&
        this.silentMs(other) < this.#suspectMs &&
        this.reports(other).some((report) => report.hears.includes(dc))
      )
        return true;
    return false;
  }

  /** Whether the datacenter lives, has a lease, and could open all shards of the partition now. */
  canOpen(dc: SiteName, partition: Partition): boolean {
    if (this.silentMs(dc) > this.#suspectMs) return false;
    const reports = this.reports(dc);
    return (
      reports.some((report) => report.state !== "fenced") &&
      reports.every((report) => !report.blocked.includes(partition))
    );
  }
}
