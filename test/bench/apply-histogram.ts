import { rounded } from "./figures.js";
import type { Bench } from "./scenario.js";

/** Upper bounds (seconds) and how many batches were applied within each, over all datacenters. */
export type Cumulative = ReadonlyMap<number, number>;

/** What the peers count themselves: from a batch's first commit at its owner until it was applied (hothot_apply_seconds). */
export async function applyHistogram({ client, stack }: Pick<Bench, "client" | "stack">): Promise<Cumulative> {
  const sum = new Map<number, number>();
  for (const dc of stack.dcs) {
    const { text: metrics } = await client.request(dc, "GET", "/metrics");
    for (const [, bound = "", count = "0"] of metrics.matchAll(
      /^hothot_apply_seconds_bucket\{[^}]*le="([^"]+)"[^}]*\} (\d+)$/gm,
    )) {
      const le = bound === "+Inf" ? Infinity : Number(bound);
      sum.set(le, (sum.get(le) ?? 0) + Number(count));
    }
  }
  return sum;
}

/** What came between two readings; quantiles in milliseconds, linear within a bucket. */
export function since(before: Cumulative, after: Cumulative): { count: number; at: (share: number) => number } {
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => (after.get(bound) ?? 0) - (before.get(bound) ?? 0));
  const count = counts.at(-1) ?? 0;
  const at = (share: number): number => {
    const rank = share * count;
    const index = counts.findIndex((within) => within >= rank);
    const [low, high] = [bounds[index - 1] ?? 0, bounds[index] ?? NaN];
    const [under, through] = [counts[index - 1] ?? 0, counts[index] ?? 0];
    if (high === Infinity) return low * 1000;
    return rounded((low + ((high - low) * (rank - under)) / Math.max(1, through - under)) * 1000);
  };
  return { count, at };
}
