/** The face of shards: who owns what. README.md has states and invariants. */
export * from "./ids.js";
export { ShardMap, type Head } from "./map.js";
export { shardStates, shardTransitions, type ShardState } from "./states.js";
export { Lease, majority, promisesNeeded } from "./lease.js";
export { LeaseKeeper } from "./lease-keeper.js";
export { SiteWord } from "./site-word.js";
export { Coordinator, Hearing } from "./coordinator.js";
export { TakeoverWatch } from "./takeover.js";
export { Switchover, type MoveRequest, type MoveResult } from "./switchover.js";
export { LeaderKeeper } from "./leader-keeper.js";
export { Peers, type NodeReport, type PeerState } from "./peers.js";
export { successionOrder, preferredLeader, firstOwner } from "./successor.js";
export { automaticTakeover, datacentersOf, type SiteSet } from "./site-set.js";
export type { OwnershipLog, LogLeaders, OpenRequest, OpenResult } from "./ownership-log.js";
export type { ShardStore, VoteStore, Vote, Lock } from "./store.js";
