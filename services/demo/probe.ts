import { shardId, shardOf } from "../../shards/ids.js";
import { mayRepeat, type Sender, type UnsentPut } from "./sender.js";
import type { Write } from "./journal.js";

export interface ProbeOptions {
  readonly sender: Sender;
  /** The shards whose owner dies. */
  readonly shards: readonly number[];
  /** Shards of the group. */
  readonly total: number;
  /** The datacenters that stay. */
  readonly survivors: readonly string[];
  /** Prefix of the marks. */
  readonly name: string;
  readonly everyMs?: number;
  readonly attemptMs?: number;
}

/** One writer per shard, with one request under way each: tells when the first write after the owner's death is accepted. */
export class Probe {
  readonly #options: ProbeOptions;
  readonly #puts: UnsentPut[];

  constructor(options: ProbeOptions) {
    this.#options = options;
    this.#puts = options.shards.map((shard) => ({
      clusterId: clusterOfShard(shard, options.total),
      mark: "",
      name: `canary of shard ${shard}`,
      spec: { template: "canary", nodes: [] },
      labels: { team: "platform", env: "test", purpose: "canary" },
      durability: "local",
      key: null,
      timeoutMs: options.attemptMs ?? 250,
    }));
  }

  /**
   * Probes from now on.
   * @returns per shard the monotonic time of the first accepted write, null where `ms` passed without one.
   */
  async run(ms: number): Promise<ReadonlyMap<number, number | null>> {
    const deadline = performance.now() + ms;
    const found = await Promise.all(
      this.#options.shards.map(async (shard, index): Promise<[number, number | null]> => [
        shard,
        await this.#first(index, deadline),
      ]),
    );
    return new Map(found);
  }

  async #first(index: number, deadline: number): Promise<number | null> {
    const { sender, survivors, everyMs = 25, name } = this.#options;
    const put = this.#puts[index];
    if (put === undefined) return null;
    for (let turn = 0; performance.now() < deadline; turn++) {
      const dc = survivors[(index + turn) % survivors.length] ?? "";
      const marked = { ...put, mark: `${name}-${index}-${turn}` };
      const begun: Write = sender.begin(marked);
      const startedAt = performance.now();
      const attempt = await sender.put(dc, begun, marked);
      if (attempt.outcome === "ok") return attempt.endedAt;
      if (!mayRepeat(attempt, null) && attempt.outcome === "fail")
        throw new Error(`a probe was refused: ${attempt.status} ${attempt.code ?? ""}`);
      const rest = everyMs - (performance.now() - startedAt);
      if (rest > 0) await new Promise((resolve) => setTimeout(resolve, rest));
    }
    return null;
  }
}

/** A cluster id that hashes to the shard. */
export function clusterOfShard(shard: number, total: number): string {
  const wanted = shardId(shard);
  for (let number = 0; ; number++) {
    const id = `canary-${wanted}-${number}`;
    if (shardOf(id, total) === wanted) return id;
  }
}

/** The worst and the median of some figures; null for none. */
export function spread(figures: readonly number[]): { readonly worst: number; readonly median: number } | null {
  const sorted = [...figures].sort((a, b) => a - b);
  const worst = sorted.at(-1);
  if (worst === undefined) return null;
  const [low, high] = [sorted[Math.floor((sorted.length - 1) / 2)] ?? 0, sorted[Math.floor(sorted.length / 2)] ?? 0];
  return { worst: Math.round(worst), median: Math.round((low + high) / 2) };
}
