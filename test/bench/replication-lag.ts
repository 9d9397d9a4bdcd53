import { text } from "../../services/demo/client.js";
import { applyHistogram, since } from "./apply-histogram.js";
import { latencyOf } from "./figures.js";
import {
  atRate,
  clusterBody,
  onStack,
  type Bench,
  type BenchOptions,
  type BenchResult,
  type Scenario,
} from "./scenario.js";

/** Until the engine has compiled what runs for each write: before that every figure is twice as large. */
const warmUpSeconds = 40;
/** Every so manieth write is waited for at the peers: more would load the machine with reads. */
const sampled = 30;

/**
 * Two views of the same lag. `applied`: from the commit at the owner until it is committed at a peer, every batch, as the
 * peers count it themselves (hothot_apply_seconds; quantiles interpolated between the histogram's bounds). `readable`: from
 * the owner's acknowledgement until a peer's answer to a reader that waits for it, by samples, HTTP included.
 */
export const replicationLag: Scenario = {
  name: "replication-lag",
  what: "300 local writes/s over all datacenters: commit at the owner until applied at a peer; milliseconds",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, rate = 300, tell }: BenchOptions): Promise<BenchResult> {
  const { dcs } = bench.stack;
  const ids = new Map(dcs.map((dc) => [dc, bench.idsOf(dc, 200)]));
  const lags: number[] = [];
  const plain: number[] = [];
  let failed = 0;
  const write = async (number: number): Promise<void> => {
    const dc = dcs[number % dcs.length] ?? "";
    const own = ids.get(dc) ?? [];
    const path = `/v1/clusters/${own[Math.floor(number / dcs.length) % own.length] ?? ""}`;
    const written = await bench.client.request(dc, "PUT", path, { body: clusterBody(`lag-${number}`) });
    const position = text(written.headers["hothot-position"]);
    if (written.status >= 300 || position === null) return void failed++;
    if (number % sampled !== 0) return;
    await Promise.all(
      dcs.map(async (peer) => {
        if (peer === dc) return;
        const read = await bench.client.request(peer, "GET", path, { headers: { "hothot-min-position": position } });
        if (read.status === 200) lags.push(read.endedAt - written.endedAt);
        else failed++;
      }),
    );
    // The same read without a wait: what of the figure above is HTTP.
    const again = await bench.client.request(dcs.find((peer) => peer !== dc) ?? "", "GET", path);
    if (again.status === 200) plain.push(again.endedAt - again.startedAt);
  };
  tell("warming up");
  await atRate(rate, warmUpSeconds, write);
  lags.length = plain.length = failed = 0;
  const before = await applyHistogram(bench);
  tell(`${rate} writes/s for ${seconds} s`);
  await atRate(rate, seconds, write);
  if (failed > 0) throw new Error(`${failed} writes or reads failed`);
  const applied = since(before, await applyHistogram(bench));
  const figures = {
    appliedMs: { count: applied.count, p50: applied.at(0.5), p99: applied.at(0.99) },
    lagMs: latencyOf(lags),
    plainReadMs: latencyOf(plain),
  };
  const row = (what: string, { count, p50, p99, max }: typeof figures.lagMs) => [what, count, p50, p99, max];
  return {
    rows: [
      ["", "count", "p50 ms", "p99 ms", "max ms"],
      ["applied at a peer", figures.appliedMs.count, figures.appliedMs.p50, figures.appliedMs.p99, ""],
      row("readable at a peer", figures.lagMs),
      row("the read alone", figures.plainReadMs),
    ],
    figures,
  };
}
