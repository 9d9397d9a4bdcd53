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
import { steady, type Steady } from "./steady.js";
import { putBytes } from "./wire.js";

/** Until the engine has compiled what runs for each write: before that every figure is twice as large. */
const warmUpSeconds = 40;
const connections = 8;
/** Milliseconds between two writes that are waited for at the peers: more would load the machine with reads. */
const sampleMs = 200;

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
  const targets = dcs.map((dc) => {
    const url = new URL(bench.stack.url(dc));
    const requests = (ids.get(dc) ?? []).map((id) => putBytes(url, `/v1/clusters/${id}`, clusterBody(id)));
    return { url, requests };
  });
  const lags: number[] = [];
  const plain: number[] = [];
  const sample = async (number: number): Promise<void> => {
    const dc = dcs[number % dcs.length] ?? "";
    const path = `/v1/clusters/${ids.get(dc)?.[number % 200] ?? ""}`;
    const written = await bench.client.request(dc, "PUT", path, { body: clusterBody(`lag-${number}`) });
    const position = text(written.headers["hothot-position"]);
    if (written.status >= 300 || position === null) throw new Error(`a write failed: ${written.text}`);
    await Promise.all(
      dcs.map(async (peer) => {
        if (peer === dc) return;
        const read = await bench.client.request(peer, "GET", path, { headers: { "hothot-min-position": position } });
        if (read.status !== 200) throw new Error(`a read failed: ${read.text}`);
        lags.push(read.endedAt - written.endedAt);
      }),
    );
    // The same read without a wait: what of the figure above is HTTP.
    const again = await bench.client.request(dcs.find((peer) => peer !== dc) ?? "", "GET", path);
    plain.push(again.endedAt - again.startedAt);
  };
  const write = async (length: number): Promise<readonly Steady[]> =>
    Promise.all(
      targets.map(({ url, requests }) =>
        steady(url, requests, { connections, perSecond: rate / dcs.length, seconds: length }),
      ),
    );
  tell("warming up");
  await Promise.all([write(warmUpSeconds), atRate(1000 / sampleMs, warmUpSeconds, sample)]);
  lags.length = plain.length = 0;
  const before = await applyHistogram(bench);
  tell(`${rate} writes/s for ${seconds} s`);
  const [written] = await Promise.all([write(seconds), atRate(1000 / sampleMs, seconds, sample)]);
  const failed = written.reduce((sum, each) => sum + each.failed, 0);
  // Those that still wait for a connection at the end count as failed.
  if (failed > rate) throw new Error(`${failed} writes failed`);
  const applied = since(before, await applyHistogram(bench));
  const figures = {
    writeMs: latencyOf(written.flatMap((each) => each.latencies)),
    appliedMs: { count: applied.count, p50: applied.at(0.5), p99: applied.at(0.99) },
    lagMs: latencyOf(lags),
    plainReadMs: latencyOf(plain),
  };
  const row = (what: string, { count, p50, p99, max }: typeof figures.lagMs) => [what, count, p50, p99, max];
  return {
    rows: [
      ["", "count", "p50 ms", "p99 ms", "max ms"],
      row("write", figures.writeMs),
      ["applied at a peer", figures.appliedMs.count, figures.appliedMs.p50, figures.appliedMs.p99, ""],
      row("readable at a peer", figures.lagMs),
      row("the read alone", figures.plainReadMs),
    ],
    figures,
  };
}
