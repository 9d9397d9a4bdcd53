import type { Config } from "../../infra/config.js";
import type { Time } from "../../infra/clock.js";
import type { Logger } from "../../infra/logger.js";
import type { Messenger } from "../../infra/nats/messaging.js";
import type { Random } from "../../infra/random.js";
import type { Tracing } from "../../infra/tracing.js";
import type { RestoreStore } from "../../replication/restore-store.js";
import type { OwnerStore } from "../../replication/owner-store.js";
import type { Payloads } from "../../replication/payloads.js";
import type { Outbox } from "../../replication/outbox.js";
import type { EpochEnd } from "../../replication/record.js";
import type { Applied, Incoming, ReplicaStore } from "../../replication/replica-store.js";
import type { LogTransport } from "../../replication/shard-log.js";
import type { Epoch, Partition, ShardId, SiteName } from "../../shards/ids.js";
import type { Head } from "../../shards/map.js";
import type { Followed } from "../../shards/followed-opens.js";
import type { LogLeaders } from "../../shards/ownership-log.js";
import type { SiteSet } from "../../shards/site-set.js";
import type { ShardStore, VoteStore } from "../../shards/store.js";
import type { Inside } from "../inside.js";

export type EngineSettings = Pick<
  Config,
  "leaseMs" | "marginMs" | "heartbeatMs" | "dbDeadMs" | "coordinatorTermMs" | "restateMs" | "successors"
>;

/** How old a node's row may be (rule h): its last lease may end a lease after the last heartbeat that its database allowed. */
export const goneMs = (settings: Pick<EngineSettings, "dbDeadMs" | "leaseMs" | "marginMs">): number =>
  settings.dbDeadMs + settings.leaseMs + settings.marginMs;

/** A closing gets a number that was never used before. */
export const closingNumber = (random: Random): number => 1 + Math.floor(random.next() * (2 ** 52 - 1));

/** What the word of a site stands on: it begins its silence before the rest of the process is up. */
export interface WordGround {
  readonly group: string;
  readonly site: SiteName;
  /** Unique for this life of the process. */
  readonly holder: string;
  readonly settings: EngineSettings;
  readonly time: Time;
  readonly log: Logger;
  /** For heartbeats and votes alone. */
  readonly heartbeats: Messenger;
  readonly store: ShardStore;
  readonly votes: VoteStore;
  /** -1: not known yet. */
  readonly setNumber: () => number;
  readonly onNewerSet: (number: number) => void;
  /** The own database's, as statements are meant for it. */
  readonly incarnation: () => number;
}

/** What a process's engine stands on: all that does IO, behind interfaces. */
export interface Ground extends WordGround {
  readonly node: string;
  readonly generation: number;
  readonly shards: number;
  readonly partitions: number;
  readonly url: string;
  readonly random: Random;
  readonly main: Messenger;
  readonly transport: LogTransport;
  readonly leaders: LogLeaders;
  readonly restores: RestoreStore;
  readonly owner: OwnerStore;
  readonly replica: ReplicaStore;
  readonly outbox: Outbox;
  /** Large parts of records, on their way to the log and from it; without it they stay in their records. */
  readonly payloads?: Pick<Payloads, "outgoing" | "incoming">;
  readonly siteSet: () => SiteSet;
  /** The partition's log has room left for records. */
  readonly mayAppend: (partition: Partition) => boolean;
  /** Milliseconds to wait before these bytes of a backlog go to the log. */
  readonly backlogWaitMs: (bytes: number) => number;
  /** Undefined: a write of the shard may add to what is not in the log yet. Else resolves once it may. @throws Problem unpublished_limit */
  readonly room: (shard: ShardId, durability: "local" | "replicated", deadline: number) => Promise<void> | undefined;
  readonly epochEnds: (shard: ShardId) => Promise<readonly EpochEnd[]>;
  /** Meets the own database again, however long that takes. @returns false when the process stops instead */
  readonly meetAgain: () => Promise<boolean>;
  /** Task progress of the shard's running jobs is stored at the target. @returns the closing that the target knows (rule i) */
  readonly carry: (head: Head, to: SiteName, timeoutMs: number) => Promise<number>;
  /** Whether the target serves the shard in this epoch, in time. */
  readonly opened: (to: SiteName, shard: ShardId, epoch: Epoch, timeoutMs: number) => Promise<boolean>;
  readonly events: EngineEvents;
  /** Where an exporter is configured. */
  readonly tracing?: Tracing | undefined;
}

/** What the rest of a process hears from its engine. */
export interface EngineEvents {
  /** This node serves the shard from now on, as far as its lease allows. */
  owned(shard: ShardId, epoch: Epoch, tenure: Epoch): void;
  lost(shard: ShardId): void;
  /** Writes of these shards were perhaps committed; whoever sent them was told that nobody knows. */
  uncertain(shards: readonly ShardId[]): void;
  /** After each transaction of the applier. */
  applied(applied: Applied, messages: readonly Incoming[]): void;
  tookOver(shards: number, ms: number): void;
  /** Phases of an ownership change that came after its append, milliseconds. */
  followed: Followed;
  /** A message of another process of the datacenter. */
  inside(message: Inside): void;
}
