import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createWriteStream, rmSync } from "node:fs";
import path from "node:path";
import { finished } from "node:stream/promises";
import { shardOf } from "../../shards/ids.js";
import { rounded } from "./figures.js";
import { importRows, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";

const usualMb = 200;
const rowBytes = 10_000;
const patienceMs = 900_000;

/** A whole copy of one large shard, from a replica to a replica. */
export const snapshot: Scenario = {
  name: "snapshot",
  what: "one shard of --mb (200) megabytes is loaded anew: MB/s, and by how much memory grows at both ends",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { mb = usualMb, tell }: BenchOptions): Promise<BenchResult> {
  const { stack } = bench;
  const loader = stack.dcs.at(-1) ?? "";
  const [owner = ""] = stack.dcs;
  const shard = [...bench.owners].find(([, dc]) => dc === owner)?.[0] ?? 0;
  const rows = Math.ceil((mb * 1e6) / rowBytes);
  const file = path.join(stack.dir, "rows.ndjson");
  await writeRows(file, shard, rows);
  tell(`loading ${rows} rows of ${rowBytes} bytes into shard ${shard}`);
  await importRows(stack, file);
  rmSync(file);
  const count = async (dc: string): Promise<number> =>
    Number((await bench.query(dc, `SELECT count(*)::int AS n FROM clusters WHERE shard = ${shard}`))[0]?.["n"]);
  await until(
    async () => (await Promise.all(stack.dcs.map(count))).every((each) => each >= rows),
    "the rows are everywhere",
  );
  await new Promise((resolve) => setTimeout(resolve, 5_000));
  const before = residents(bench);
  const peak = new Map(before);
  const watch = setInterval(() => {
    for (const [dc, each] of residents(bench)) peak.set(dc, Math.max(each, peak.get(dc) ?? 0));
  }, 100);
  tell(`${loader} loads the shard anew`);
  const bytesBefore = await snapshotBytes(bench, loader);
  await bench.query(
    loader,
    `UPDATE shard_head SET stopped = 'set by the bench', recopy = true, revision = revision + 1 WHERE shard = ${shard}`,
  );
  const waits = async (): Promise<number> =>
    Number(
      (
        await bench.query(
          loader,
          `SELECT (SELECT count(*) FROM restores) + (SELECT count(*) FROM shard_head WHERE stopped IS NOT NULL) AS n`,
        )
      )[0]?.["n"],
    );
  try {
    await until(async () => (await snapshotBytes(bench, loader)) > bytesBefore, "the load begins");
    const began = performance.now();
    await until(async () => (await waits()) === 0, "the shard is loaded");
    const seconds = (performance.now() - began) / 1000;
    const bytes = (await snapshotBytes(bench, loader)) - bytesBefore;
    const grown = Object.fromEntries(
      [...before].map(([dc, mbBefore]) => [dc, rounded((peak.get(dc) ?? 0) - mbBefore, 0)]),
    );
    const figures = {
      megabytes: rounded(bytes / 1e6, 0),
      seconds: rounded(seconds),
      mbPerSecond: rounded(bytes / 1e6 / seconds),
      grownMb: grown,
      peakMb: Object.fromEntries(peak),
    };
    return {
      rows: [
        ["", ""],
        ["megabytes of rows", figures.megabytes],
        ["seconds", figures.seconds],
        ["MB/s", figures.mbPerSecond],
        ...[...peak].map(([dc, each]) => [
          `memory of ${dc}${dc === loader ? ", which loads" : dc === owner ? ", the owner" : ", a replica"}: before, peak MB`,
          `${before.get(dc) ?? 0}, ${each}`,
        ]),
      ],
      figures,
    };
  } finally {
    clearInterval(watch);
  }
}

async function writeRows(file: string, shard: number, rows: number): Promise<void> {
  const out = createWriteStream(file);
  for (let number = 0, made = 0; made < rows; number++) {
    const id = `large-${number}`;
    if (shardOf(id, 64) !== shard) continue;
    made++;
    // Random, so that nothing shrinks it on the way.
    const text = `${JSON.stringify({ id, name: id, spec: { filler: randomBytes((rowBytes * 3) / 4).toString("base64") } })}\n`;
    if (!out.write(text)) await new Promise<void>((resolve) => out.once("drain", () => resolve()));
  }
  out.end();
  await finished(out);
}

async function snapshotBytes({ client }: Bench, dc: string): Promise<number> {
  const { text } = await client.request(dc, "GET", "/metrics");
  return Number(/^hothot_snapshot_bytes_total (\S+)$/m.exec(text)?.[1] ?? 0);
}

/** Resident memory of each datacenter's hothot process, megabytes. */
function residents({ stack }: Bench): Map<string, number> {
  return new Map(
    stack.dcs.map((dc) => {
      const pid = String(stack.pids(dc).node[0] ?? 0);
      return [dc, rounded(Number(execFileSync("ps", ["-o", "rss=", "-p", pid], { encoding: "utf8" })) / 1000, 0)];
    }),
  );
}

async function until(condition: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + patienceMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
