import type { Client } from "./client.js";
import type { DivergentItem, FinalCluster, FinalJob, FinalView } from "./journal.js";

export interface DatacenterSeen {
  readonly name: string;
  readonly state: string;
  readonly shardsOwned: number;
  readonly lag: { readonly positions: number; readonly ms: number } | null;
}

export interface ShardSeen {
  readonly shard: number;
  readonly owner: string | null;
  readonly epoch: number;
  readonly state: string;
}

export interface JobSeen {
  readonly id: string;
  readonly clusterId: string;
  readonly type: string;
  readonly input: { readonly change?: string } | null;
  readonly status: string;
  readonly attempt: number;
  readonly startedIn: string;
  readonly runsIn: string;
  readonly finishedAt: string | null;
}

interface ClusterSeen {
  readonly id: string;
  readonly version: number;
  readonly labels: Readonly<Record<string, string>> | null;
}

/** What the datacenters say of themselves. */
export class Group {
  readonly client: Client;

  constructor(client: Client) {
    this.client = client;
  }

  get dcs(): readonly string[] {
    return this.client.datacenters;
  }

  async topology(dc: string): Promise<readonly DatacenterSeen[] | null> {
    return (await this.client.get<{ datacenters: DatacenterSeen[] }>(dc, "/v1/topology"))?.datacenters ?? null;
  }

  async shards(dc: string): Promise<readonly ShardSeen[] | null> {
    return this.client.list<ShardSeen>(dc, "/v1/shards");
  }

  async jobs(dc: string): Promise<readonly JobSeen[] | null> {
    return this.client.list<JobSeen>(dc, "/v1/jobs");
  }

  /** Every shard has an owner that serves it, as `dc` sees it. */
  async owners(dc: string): Promise<ReadonlyMap<number, string> | null> {
    const shards = await this.shards(dc);
    if (shards === null || shards.length === 0) return null;
    if (shards.some(({ owner, state }) => owner === null || state !== "owned")) return null;
    return new Map(shards.map(({ shard, owner }) => [shard, owner ?? ""]));
  }

  /** Why the group has not converged yet: a datacenter that doesn't serve, lag, or copies that differ. Null when it has. */
  async whyNotConverged(): Promise<string | null> {
    for (const dc of this.dcs) {
      const seen = await this.topology(dc);
      if (seen === null) return `${dc} does not answer`;
      const other = seen.find(({ state }) => state !== "serving");
      if (other !== undefined) return `${other.name} is ${other.state}, as ${dc} sees it`;
      const late = seen.find(({ name, lag }) => name === dc && (lag?.positions ?? 0) > 0);
      if (late !== undefined) return `${dc} lags by ${late.lag?.positions ?? 0} positions`;
      if ((await this.owners(dc)) === null) return `${dc} does not know an owner of every shard`;
    }
    return this.whyNotEqual();
  }

  /** What `verify` finds unequal, or null. */
  async whyNotEqual(): Promise<string | null> {
    const [dc] = this.dcs;
    const answer = await this.client.request(dc ?? "", "GET", "/v1/verify", { timeoutMs: 15_000 });
    if (answer.status !== 200) return `verify answered ${answer.status} ${answer.text.slice(0, 200)}`;
    const lines = answer.text
      .split("\n")
      .filter((line) => line.trim() !== "")
      .map((line) => JSON.parse(line) as { shard: number; dc: string; equal: boolean; clusters?: string[] });
    const unequal = lines.find(({ equal }) => !equal);
    if (unequal !== undefined)
      return `shard ${unequal.shard} differs at ${unequal.dc}: ${(unequal.clusters ?? []).slice(0, 3).join(", ")}`;
    const copies = new Set(lines.map(({ shard, dc: where }) => `${shard} ${where}`));
    const shards = new Set(lines.map(({ shard }) => shard)).size;
    if (shards === 0 || copies.size !== shards * this.dcs.length)
      return `verify saw ${copies.size} copies of ${shards} shards`;
    return null;
  }

  /** All clusters and jobs as `dc` shows them; null when it does not answer. */
  async view(dc: string): Promise<FinalView | null> {
    const [clusters, jobs] = [await this.client.list<ClusterSeen>(dc, "/v1/clusters"), await this.jobs(dc)];
    if (clusters === null || jobs === null) return null;
    return {
      dc,
      clusters: new Map(clusters.map((cluster): [string, FinalCluster] => [cluster.id, finalCluster(cluster)])),
      jobs: new Map(jobs.map((job): [string, FinalJob] => [job.id, finalJob(job)])),
    };
  }

  async views(): Promise<FinalView[]> {
    const views: FinalView[] = [];
    for (const dc of this.dcs) {
      const view = await this.view(dc);
      if (view === null) throw new Error(`${dc} does not list its clusters and jobs`);
      views.push(view);
    }
    return views;
  }

  /** The divergent operations of every datacenter, with their values. */
  async divergent(): Promise<DivergentItem[]> {
    const all: DivergentItem[] = [];
    for (const dc of this.dcs) {
      const items = await this.client.list<Omit<DivergentItem, "value"> & { value: unknown }>(
        dc,
        "/v1/divergent-operations",
      );
      if (items === null) throw new Error(`${dc} does not list its divergent operations`);
      all.push(...items.map((item) => ({ ...item, dc, value: JSON.stringify(item.value ?? null) })));
    }
    return all;
  }
}

/** Calls `condition` until it answers null, with what it last said when `ms` are over. `onWait` hears each reason once. */
export async function until(
  ms: number,
  condition: () => Promise<string | null>,
  onWait: (why: string) => void = () => undefined,
  everyMs = 100,
): Promise<{ readonly tookMs: number; readonly why: string | null }> {
  const startedAt = performance.now();
  let last: string | null = null;
  for (;;) {
    const why = await condition();
    const tookMs = performance.now() - startedAt;
    if (why === null || tookMs > ms) return { tookMs, why };
    if (why !== last) onWait((last = why));
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

function finalCluster(cluster: ClusterSeen): FinalCluster {
  // The owner is today's, as this datacenter knows it: no part of the replicated state.
  return {
    version: cluster.version,
    mark: cluster.labels?.["change"] ?? null,
    json: canonical({ ...cluster, owner: undefined }),
  };
}

function finalJob(job: JobSeen): FinalJob {
  const { status, attempt, clusterId, startedIn, finishedAt } = job;
  // Stages are changed without a record, so only of an ended job they are the same everywhere.
  return {
    status,
    attempt,
    clusterId,
    startedIn,
    finishedAt,
    mark: job.input?.change ?? null,
    json: canonical({ ...job, stage: undefined }),
  };
}

/** JSON text with the names of objects in order. */
export function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === "object" && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}
