/** The face of replication: how state travels. README.md has the record format, states and invariants. */
export * from "./entities.js";
export type { Change, Needs, Operation, Outcome, ShardWriter, Work, Written } from "./work.js";
export { Writer, type WriteGate } from "./writer.js";
export { Publisher } from "./publisher.js";
export { Applier } from "./applier.js";
export { PostgresReplicaStore, type Applied, type ReplicaStore } from "./replica-store.js";
export { fold, type FoldHead, type FoldStep } from "./fold.js";
export { ShardLog, type LogTransport, type Tail } from "./shard-log.js";
export { LogOwnership } from "./ownership.js";
export { Resume } from "./resume.js";
export { Restorer } from "./restore.js";
export { Progress } from "./progress.js";
export {
  decodeBatch,
  decodeHeader,
  decodeRecord,
  encodeBatch,
  encodeRecord,
  formatVersion,
  UnreadableRecord,
} from "./record.js";
