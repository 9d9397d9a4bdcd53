import type { Epoch, Partition, Position, ShardId, SiteName } from "./ids.js";

/** A change of owner, as it is asked of the log. */
export interface OpenRequest {
  readonly shard: ShardId;
  /** The epoch and owner that the votes (or the move) are against: only their tail is sealed (rule e). */
  readonly against: Epoch;
  readonly from: SiteName;
  readonly to: SiteName;
  readonly kind: "takeover" | "switchover" | "drain" | "failback" | "rebalance";
  readonly reason: string;
  readonly by: string;
  readonly sameTenure: boolean;
  readonly closing: number;
  /** What came before the append. */
  readonly phasesMs: Readonly<Record<string, number>>;
  /**
   * How far the shard was when the change began: of a planned move, what the log had when the shard was held; of a takeover, what
   * its new owner had applied. The records from there to the epoch's end were drained.
   */
  readonly since: Position;
}

export type OpenResult =
  /** The `open` of epoch `against + 1` is in the log. */
  | { readonly kind: "opened" }
  /** Another epoch is open: this attempt ends. */
  | { readonly kind: "moved"; readonly epoch: Epoch; readonly owner: SiteName }
  /** Not known by the deadline. */
  | { readonly kind: "unknown" };

/** The log as the registry of ownership (section 2); implemented above, in replication/ownership.ts. */
export interface OwnershipLog {
  open(request: OpenRequest, deadline: number): Promise<OpenResult>;
}

/** Who leads the log's partitions. */
export interface LogLeaders {
  /** Site of the leader (undefined: none now), and sites that hold a replica. */
  leader(
    partition: Partition,
  ): Promise<{ readonly leader: SiteName | undefined; readonly replicas: readonly SiteName[] } | undefined>;
  handOver(partition: Partition, to: SiteName): Promise<void>;
}
