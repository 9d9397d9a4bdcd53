import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import { createEngine } from "../../services/engine/engine.js";
import { closingNumber, goneMs, type Ground } from "../../services/engine/ground.js";
import { createWord } from "../../services/engine/word.js";
import type { ShardId } from "../../shards/ids.js";
import type { SiteSet } from "../../shards/site-set.js";
import type { MemoryDatabase } from "./database.js";
import type { MemoryLog } from "./memory-log.js";
import type { Network } from "./network.js";
import { MemoryOwnerStore } from "./owner.js";
import { MemoryReplicaStore, type ReplicaHooks } from "./replica.js";
import { MemoryRestoreStore } from "./restores.js";
import { tamperedMessenger, tamperedStore, tamperedVotes, type Off } from "./rules.js";
import type { Process } from "./scheduler.js";
import { MemoryOutbox, MemoryShardStore } from "./stores.js";

export interface Settings {
  readonly leaseMs: number;
  readonly marginMs: number;
  readonly heartbeatMs: number;
  readonly dbDeadMs: number;
  readonly coordinatorTermMs: number;
  readonly restateMs: number;
  readonly successors: string[];
}

export interface NodeParts {
  readonly process: Process;
  readonly database: MemoryDatabase;
  readonly network: Network;
  readonly log: MemoryLog;
  readonly siteSet: SiteSet;
  readonly settings: Settings;
  readonly random: Random;
  readonly logger: Logger;
  readonly hooks: ReplicaHooks;
  readonly off: Off;
}

/** One process of a datacenter: the product's engine on the simulation's ground. */
export async function startNode(o: NodeParts) {
  const { process, database, settings, random, siteSet, off } = o;
  const { site, time, name: node } = process;
  const { shards, partitions } = siteSet;
  const messenger = o.network.messenger(process);
  const meet = async (): Promise<void> => {
    process.knows = await database.meet(process, {
      node,
      goneMs: off.has("g-confirm") ? Infinity : goneMs(settings),
      closing: closingNumber(random),
    });
  };
  await meet();
  const plain = new MemoryShardStore(database, process, { forgetsFences: off.has("d-epoch") });
  const base = {
    group: "sim",
    site,
    holder: `${node}-${random.token(8)}`,
    settings,
    time,
    log: o.logger,
    heartbeats: tamperedMessenger(messenger, off),
    store: tamperedStore(plain, off),
    votes: tamperedVotes(plain, off),
    setNumber: () => siteSet.number,
    onNewerSet: () => undefined,
    incarnation: () => process.knows,
  };
  const spoken = createWord(base);
  await spoken.coordinator.start();
  const ground: Ground = {
    ...base,
    node,
    generation: 1,
    shards,
    partitions,
    url: "",
    random,
    main: messenger,
    transport: o.log.transport(process),
    leaders: {
      leader: async (partition) => {
        await time.sleep(1);
        return { leader: o.log.leader(partition) ?? undefined, replicas: siteSet.sites.map((s) => s.name) };
      },
      handOver: async (partition, to) => {
        await time.sleep(1);
        o.log.elect(partition, to, 0.1);
      },
    },
    restores: new MemoryRestoreStore(database, process),
    owner: new MemoryOwnerStore(database, process, { checksNothing: off.has("f-statement") }),
    replica: new MemoryReplicaStore(database, process, o.hooks, { ignoresEpochs: off.has("applier-epoch") }),
    outbox: new MemoryOutbox(database, process),
    siteSet: () => siteSet,
    mayAppend: () => true,
    backlogWaitMs: () => 0,
    room: () => undefined,
    epochEnds: (shard) => database.run(process, "epoch ends", (tables) => tables.heads.get(shard)?.epochEnds ?? []),
    meetAgain: async () => {
      for (;;) {
        try {
          await meet();
          return true;
        } catch {
          await time.sleep(100);
        }
      }
    },
    carry: () => time.sleep(2).then(() => 0),
    opened: async () => true,
    events: {
      owned: () => undefined,
      lost: () => undefined,
      uncertain: () => undefined,
      applied: () => undefined,
      tookOver: () => undefined,
      followed: () => undefined,
      inside: () => undefined,
    },
  };
  const engine = await createEngine(ground, spoken);
  process.onIncarnation = engine.onIncarnation;
  for (const service of engine.services({ coordinator: true, replicator: true })) await service.start();
  return {
    process,
    word: spoken.word,
    map: engine.map,
    leases: engine.leases,
    writer: engine.writer,
    replicator: engine.replicator,
    switchover: engine.switchover,
    /** As an owner read asks, before and after. @returns the epoch, or undefined when it may not be served */
    held(shard: ShardId, after: boolean): number | undefined {
      try {
        return (engine.gate.held as (shard: ShardId, after: boolean) => number).call(engine.gate, shard, after);
      } catch {
        return undefined;
      }
    },
  };
}

export type SimNode = Awaited<ReturnType<typeof startNode>>;
