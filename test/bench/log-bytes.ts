import { rounded } from "./figures.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { steady } from "./steady.js";
import { putBytes } from "./wire.js";

/** What one plain write costs on the wire and on disk. */
export const logBytes: Scenario = {
  name: "log-bytes",
  what: "bytes of one plain PUT of about 1 KiB: in the log (each replica of it), in the owner's and in a copy's WAL",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, rate = 300, tell }: BenchOptions): Promise<BenchResult> {
  const { dcs } = bench.stack;
  const [owner = "", peer = ""] = dcs;
  const url = new URL(bench.stack.url(owner));
  const bodyBytes = Buffer.byteLength(JSON.stringify(clusterBody("bench-east-0")));
  const requests = bench.idsOf(owner, 500).map((id) => putBytes(url, `/v1/clusters/${id}`, clusterBody(id)));
  const write = (length: number) => steady(url, requests, { connections: 16, perSecond: rate, seconds: length });
  tell("warming up");
  await write(4);
  const wal = async (dc: string): Promise<number> =>
    Number((await bench.query(dc, "SELECT pg_current_wal_lsn() - '0/0' AS n"))[0]?.["n"]);
  const before = [await bench.logBytes(), await wal(owner), await wal(peer)] as const;
  tell(`${rate} writes/s for ${seconds} s`);
  const { latencies } = await write(seconds);
  const after = [await bench.logBytes(), await wal(owner), await wal(peer)] as const;
  const each = (index: 0 | 1 | 2): number => rounded((after[index] - before[index]) / latencies.length, 0);
  const figures = { writes: latencies.length, bodyBytes, log: each(0), ownerWal: each(1), copyWal: each(2) };
  return {
    rows: [
      ["", "bytes per write"],
      ["body", figures.bodyBytes],
      ["log", figures.log],
      ["WAL of the owner", figures.ownerWal],
      ["WAL of a copy", figures.copyWal],
    ],
    figures,
  };
}
