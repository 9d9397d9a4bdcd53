import { shapes } from "../../replication/rows.js";
import { median, rounded } from "./figures.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { steady } from "./steady.js";
import { putBytes } from "./wire.js";
import { spentMs } from "./spent.js";

const never = { HOTHOT_DIGEST_MS: "86400000", HOTHOT_SCRUB_MS: "86400000" };

/**
 * Processor time of all hothot and PostgreSQL processes for the same writes, with digests in the log and the scrub as they are
 * by default, and without both, in turns; and of what every write pays for its row's digest, measured alone.
 */
export const digestCpu: Scenario = {
  name: "digest-cpu",
  what: "CPU share of digests at 300 writes/s: of the log's digests and the scrub (turns with and without), and of each row's own",
  async run(options) {
    const found = { usual: [] as Spent[], without: [] as Spent[] };
    for (let turn = 1; turn <= Math.min(options.runs, 5); turn++)
      for (const [name, env] of [
        ["without", never],
        ["usual", {}],
      ] as const) {
        const spent = await onStack(options, (bench) => measure(bench, options), { env });
        found[name].push(spent);
        options.tell(`turn ${turn}, ${name}: ${rounded(spent.msPerWrite)} ms of CPU per write`);
      }
    const [usual, without] = [found.usual, found.without].map(
      (list) => list.reduce((sum, each) => sum + each.msPerWrite, 0) / list.length,
    );
    const rowUs = median([...found.usual, ...found.without].map((each) => each.rowMicroseconds));
    // Owner and both copies compute the digest of what is written; that of what was there stands in its row.
    const rows = (3 * rowUs) / 1000 / (usual ?? 1);
    const logged = ((usual ?? 0) - (without ?? 0)) / (usual ?? 1);
    const figures = {
      msPerWrite: rounded(usual ?? 0, 3),
      msPerWriteWithout: rounded(without ?? 0, 3),
      loggedAndScrubShare: rounded(logged, 4),
      rowMicroseconds: rounded(rowUs),
      rowShare: rounded(rows, 4),
    };
    return {
      rows: [
        ["", "share of all CPU"],
        ["digests in the log, scrub", `${rounded(logged * 100)} %`],
        ["each row's own", `${rounded(rows * 100)} %`],
      ],
      figures,
    } satisfies BenchResult;
  },
};

interface Spent {
  readonly msPerWrite: number;
  readonly rowMicroseconds: number;
}

async function measure(bench: Bench, { seconds, rate = 300, tell }: BenchOptions): Promise<Spent> {
  const { dcs } = bench.stack;
  const targets = dcs.map((dc) => {
    const url = new URL(bench.stack.url(dc));
    return { url, requests: bench.idsOf(dc, 1000).map((id) => putBytes(url, `/v1/clusters/${id}`, clusterBody(id))) };
  });
  const write = async (length: number): Promise<number> => {
    const options = { connections: 8, perSecond: rate / dcs.length, seconds: length };
    const all = await Promise.all(targets.map(({ url, requests }) => steady(url, requests, options)));
    return all.reduce((sum, each) => sum + each.latencies.length, 0);
  };
  await write(5);
  tell(`${rate} writes/s for ${seconds} s`);
  const before = spentMs(bench.stack);
  const writes = await write(seconds);
  const spent = spentMs(bench.stack) - before;
  return { msPerWrite: spent / writes, rowMicroseconds: await rowCost(bench) };
}

/** Processor time of a row's digest: the same scan with it and without it. */
async function rowCost(bench: Bench): Promise<number> {
  const dc = bench.stack.dcs[0] ?? "";
  const [shape] = await bench.query(dc, "SELECT count(*)::int AS n FROM clusters");
  const repeats = 50;
  const timed = async (expression: string): Promise<number> => {
    const began = performance.now();
    await bench.query(dc, `SELECT sum(${expression}) FROM clusters t, generate_series(1, ${repeats})`);
    return performance.now() - began;
  };
  const digest = shapes.clusters.digest?.("t") ?? "0";
  await timed(digest);
  const [scan, whole] = [await timed("t.version"), await timed(digest)];
  return (Math.max(0, whole - scan) * 1000) / (repeats * Number(shape?.["n"] ?? 1));
}
