import { readLog } from "../integration/log-reader.js";
import { rounded } from "./figures.js";
import { each, everywhere, JobCalls } from "./jobs.js";
import { clusterBody, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";

const jobs = 300;
const writes = 3_000;
const nodes = ["a", "b", "c"];

/** What a job costs the links between datacenters, beside what it costs the owner's PostgreSQL. */
export const jobBytes: Scenario = {
  name: "job-bytes",
  what: "records and bytes in the log per job of 7 stages on 3 nodes and per plain write, beside the owner's WAL bytes for the same work",
  run: (options) => onStack(options, (bench) => measure(bench, options), { env: { HOTHOT_SIMULATED_TASK_MS: "5" } }),
};

interface Cost {
  readonly records: number;
  readonly messages: number;
  readonly logBytes: number;
  readonly walBytes: number;
  readonly share: number;
}

async function measure(bench: Bench, { tell }: BenchOptions): Promise<BenchResult> {
  const [dc = ""] = bench.stack.dcs;
  const calls = new JobCalls(bench, dc);
  const run = async (prefix: string): Promise<void> => {
    const ids = bench.idsOf(dc, jobs);
    await each(ids, async (id) => {
      const job = await calls.start(id, prefix);
      await bench.stack.until(
        async () => (await calls.call<{ status: string }>("GET", `/v1/jobs/${job}`)).status === "complete",
        120_000,
        `${job} is complete`,
      );
    });
  };
  const clusters = bench.idsOf(dc, jobs);
  await calls.makeClusters(clusters, nodes);
  tell("warming up");
  await run("create");
  tell(`${jobs} jobs`);
  const job = await cost(bench, dc, jobs, () => run("create"));
  const put = (): Promise<void> =>
    each(
      Array.from({ length: writes }, (_, number) => number),
      async (number) =>
        void (await calls.call("PUT", `/v1/clusters/${clusters[number % jobs] ?? ""}`, clusterBody(String(number)))),
    );
  tell("warming up");
  await put();
  tell(`${writes} plain writes`);
  const write = await cost(bench, dc, writes, put);
  const row = (what: string, c: Cost) => [what, c.records, c.messages, c.logBytes, c.walBytes, c.share];
  return {
    rows: [
      ["", "records", "log messages", "log bytes", "WAL bytes", "log / WAL"],
      row("job of 7 stages, 3 nodes", job),
      row("plain write of 1 KiB", write),
    ],
    figures: { job, write },
  };
}

/** Per unit of the work that `action` does `count` of. What an idle datacenter writes to its WAL meanwhile is taken off. */
async function cost(bench: Bench, dc: string, count: number, action: () => Promise<void>): Promise<Cost> {
  const wal = async (): Promise<{ readonly bytes: number; readonly at: number }> => {
    const [row] = await bench.query(dc, "SELECT pg_current_wal_lsn() - '0/0' AS bytes");
    return { bytes: Number(row?.["bytes"]), at: performance.now() };
  };
  await everywhere(bench);
  const idle = await wal();
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  const log = await readLog(bench.stack, dc);
  const before = await wal();
  await action();
  await everywhere(bench);
  const after = await wal();
  const { batches, entries, bytes } = await readLog(bench.stack, dc);
  const idlePerMs = (before.bytes - idle.bytes) / (before.at - idle.at);
  const logBytes = (bytes - log.bytes) / count;
  const walBytes = (after.bytes - before.bytes - idlePerMs * (after.at - before.at)) / count;
  return {
    records: rounded((entries.length - log.entries.length) / count),
    messages: rounded((batches.length - log.batches.length) / count),
    logBytes: rounded(logBytes, 0),
    walBytes: rounded(walBytes, 0),
    share: rounded(logBytes / walBytes, 3),
  };
}
