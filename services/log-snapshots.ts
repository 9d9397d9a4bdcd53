import type { Time } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import type { Logger } from "../infra/logger.js";
import type { Metrics } from "../infra/metrics/index.js";
import type { LogStreams } from "../infra/nats/log-streams.js";
import type { Database } from "../infra/postgres/database.js";
import type { Random } from "../infra/random.js";
import type { Service } from "../infra/service.js";
import { CopySource } from "../replication/copy-source.js";
import { isReadable } from "../replication/record.js";
import { Snapshots } from "../replication/snapshot.js";
import { SnapshotStore } from "../replication/snapshot-store.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import type { Peers } from "../shards/peers.js";
import { datacentersOf, type SiteSet } from "../shards/site-set.js";
import type { Engine } from "./engine/engine.js";
import type { Links } from "./links.js";

/** Giving copies of shards and loading them, on the parts of a process. */
export function createSnapshots(o: {
  readonly config: Config;
  readonly partitions: number;
  readonly links: Links;
  readonly streams: LogStreams;
  readonly data: Database;
  readonly peers: Peers;
  readonly engine: Engine;
  readonly metrics: Metrics;
  readonly siteSet: () => SiteSet;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
}): readonly Service[] {
  const { links, data, peers, engine, metrics, time, random, log } = o;
  const { site, group } = o.config;
  const { applier, replicator, restorer, map, publisher, shardLog } = engine;
  /** A replica holds nothing that its owner has not published, and the owner has enough to do: it comes last of those that serve. */
  const sources = (shard: ShardId | null): SiteName[] => {
    const owner = shard === null ? null : (map.get(shard)?.owner ?? null);
    const rank = (dc: SiteName): number => (peers.state(dc) === "serving" ? 0 : 2) + (dc === owner ? 1 : 0);
    return datacentersOf(o.siteSet())
      .filter((dc) => dc !== site && peers.state(dc) !== "dead")
      .sort((a, b) => rank(a) - rank(b));
  };
  return [
    new CopySource({ group, site, database: data, messenger: links.main, log }),
    new Snapshots({
      group,
      link: links.main,
      store: new SnapshotStore(data, site),
      applier,
      partitions: o.partitions,
      state: (partition, timeoutMs) => o.streams.state(partition, timeoutMs),
      hasStopped: () => map.all().some((head) => head.stopped !== null),
      canRead: async (partition, sequence) => {
        const [message] = await o.streams.readFrom(
          partition,
          sequence,
          { batch: 1, maxBytes: 1_000_000, timeoutMs: 3_000 },
          0,
        );
        return message?.sequence === sequence && isReadable(message.data);
      },
      sources,
      time,
      random,
      log,
      active: () => replicator.holding,
      onJumped: async (jumped) => {
        await restorer.refresh();
        for (const { head, before, ended } of jumped) {
          if (head.epoch > before.epoch) publisher.ended(head.shard, before.epoch, ended);
          shardLog.forget(head.shard);
        }
        await engine.refresh();
      },
      onChunk: (bytes, rows) => {
        metrics.snapshotBytes.inc(bytes);
        metrics.snapshotRows.inc(rows);
      },
      onDiffers: () => metrics.digestMismatches.inc(),
    }),
  ];
}
