import { systemRandom } from "../infra/random.js";
import { systemTime } from "../infra/clock.js";
import type { Config } from "../infra/config.js";
import { asError, FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import { LogStreams } from "../infra/nats/log-streams.js";
import type { Link } from "../infra/nats/messaging.js";
import { jetStreamReady, StreamError } from "../infra/nats/streams.js";
import { encodeBatch } from "../replication/record.js";
import { batchId } from "../replication/ownership.js";
import { epoch, partitionOf, position, shardId, type SiteName } from "../shards/ids.js";
import { datacentersOf, decodeSiteSet, encodeSiteSet, replicasDue, type SiteSet } from "../shards/site-set.js";
import { firstOwner, preferredLeader } from "../shards/successor.js";
import { openLinks } from "./links.js";

export interface GroupPlan {
  readonly datacenters: readonly SiteName[];
  readonly witnesses: readonly SiteName[];
  readonly shards: number;
  readonly partitions: number;
}

const patienceMs = 60_000;

/**
 * Creates a group's log and first shard map, once; a second call finds them and changes nothing.
 * @returns whether anything was created
 * @throws FatalError when the log can't be reached, or belongs to a group of another shape
 */
export async function initialise(config: Config, plan: GroupPlan, log: Logger): Promise<boolean> {
  const links = await openLinks(config, log);
  try {
    const streams = new LogStreams(config.group, config.logGeneration, links.routes);
    const deadline = systemTime.monotonic() + patienceMs;
    await jetStreamLeads(links.main, deadline);
    const sites = [
      ...plan.datacenters.map((name) => ({ name, witness: false })),
      ...plan.witnesses.map((name) => ({ name, witness: true })),
    ];
    await createStreams(streams, plan.partitions, replicasDue(sites.length), deadline);
    const known = await streams.readControl(2_000, 0);
    const set: SiteSet = {
      number: 1,
      sites,
      removed: [],
      failoverPaused: false,
      shards: plan.shards,
      partitions: plan.partitions,
    };
    if (known !== undefined) {
      const there = decodeSiteSet(known.data);
      if (there.shards !== plan.shards || there.partitions !== plan.partitions)
        throw new FatalError(
          "another_group",
          `the log has ${there.shards} shards in ${there.partitions} partitions, not ${plan.shards} in ${plan.partitions}: these are fixed for life`,
          "Use the numbers that it has, or another group name.",
        );
      await openAll(streams, there, deadline);
      return false;
    }
    await openAll(streams, set, deadline);
    await placeLeaders(streams, set);
    const stored = await streams.appendControl(encodeSiteSet(set), 0, 5_000, 0);
    if (stored.kind !== "stored" && (await streams.readControl(2_000, 0)) === undefined)
      throw new FatalError(
        "log_not_created",
        "the site set could not be stored in the log",
        "Repeat: what is there already is kept.",
      );
    return true;
  } finally {
    await links.close();
  }
}

/** @throws FatalError no_majority */
export async function jetStreamLeads(link: Link, deadline: number): Promise<void> {
  while (!(await jetStreamReady(link, 1_000))) {
    if (systemTime.monotonic() > deadline)
      throw new FatalError(
        "no_majority",
        "JetStream has no leader: a majority of the sites' NATS servers must run",
        "Start the other sites' nats-server, then repeat.",
      );
    await systemTime.sleep(100);
  }
}

/** @throws FatalError log_not_created */
export async function createStreams(
  streams: LogStreams,
  partitions: number,
  replicas: number,
  deadline: number,
): Promise<void> {
  for (;;) {
    try {
      return await streams.create(partitions, replicas, 5_000);
    } catch (error) {
      // While the servers still find each other there are too few peers for the replicas.
      const temporary = !(error instanceof StreamError) || [10005, 10074, 10008].includes(error.errorCode);
      if (!temporary || systemTime.monotonic() > deadline)
        throw new FatalError(
          "log_not_created",
          `the log's streams can't be created: ${asError(error).message}`,
          "See the logs of the nats-servers; all sites must run for this.",
          error,
        );
      await systemTime.sleep(200);
    }
  }
}

/** The first `open` of every shard: expected sequence 0 is legal here only. */
async function openAll(streams: LogStreams, set: SiteSet, deadline: number): Promise<void> {
  const datacenters = datacentersOf(set);
  const open = async (shard: number): Promise<void> => {
    const id = shardId(shard);
    const partition = partitionOf(id, set.partitions);
    const owner = firstOwner(partition, datacenters);
    const bytes = encodeBatch({
      header: {
        kind: "open",
        generation: streams.generation,
        shard: id,
        epoch: epoch(1),
        owner,
        batchId: batchId(systemRandom),
        first: position(1),
        count: 0,
        committedAt: systemTime.wall(),
      },
      records: [],
      open: {
        from: null,
        kind: "initial",
        reason: "the group was created",
        by: "init",
        sameTenure: false,
        closing: 0,
        phasesMs: {},
        drained: 0,
        epochEnds: [],
      },
    });
    for (;;) {
      const answer = await streams.append(partition, shard, bytes, 0, 1_000, 0);
      if (answer.kind === "stored" || answer.kind === "refused") return;
      if (systemTime.monotonic() > deadline)
        throw new FatalError(
          "log_not_created",
          `the first record of shard ${shard} can't be stored`,
          "All sites' nats-servers must run; repeat then.",
        );
      await systemTime.sleep(50);
    }
  };
  const shards = Array.from({ length: set.shards }, (_, shard) => shard);
  for (let at = 0; at < shards.length; at += 32) await Promise.all(shards.slice(at, at + 32).map(open));
}

/** Leaders away from the owners from the first start on, so that the first failure already finds them there. */
async function placeLeaders(streams: LogStreams, set: SiteSet): Promise<void> {
  const leads = new Map<SiteName, number>();
  for (let partition = 0; partition < set.partitions; partition++) {
    try {
      const state = await streams.state(partition, 2_000);
      if (state?.leader === undefined) continue;
      const owner = firstOwner(partition as never, datacentersOf(set));
      const present = [state.leader, ...state.replicas.map((replica) => replica.name)];
      const candidates = set.sites
        .filter((site) => present.includes(site.name))
        .map((site) => ({ site: site.name, witness: site.witness, owned: 0, leads: leads.get(site.name) ?? 0 }));
      const wanted = preferredLeader({ owners: [owner], leader: state.leader, candidates });
      if (wanted !== undefined && wanted !== state.leader) await streams.stepDown(partition, wanted, 2_000);
      if (wanted !== undefined) leads.set(wanted, (leads.get(wanted) ?? 0) + 1);
    } catch {
      // The leader keeper of the running service looks after it.
    }
  }
}

export function planOf(
  sites: { readonly datacenters: readonly string[]; readonly witnesses: readonly string[] },
  shards: number,
  partitions: number | undefined,
): GroupPlan {
  return { ...sites, shards, partitions: partitions ?? Math.min(shards, Math.max(12, 4 * sites.datacenters.length)) };
}
