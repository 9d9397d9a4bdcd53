import { execFile } from "node:child_process";
import path from "node:path";
import { promisify } from "node:util";
import { checkout } from "../../infra/local/checkout.js";
import { treeOf } from "../../infra/local/processes.js";
import { silentLogger } from "../../infra/logger.js";
import { Database } from "../../infra/postgres/database.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { latencyOf, rounded, type Latency } from "./figures.js";
import { clusterBody, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { steady } from "./steady.js";
import { hammer, putBytes } from "./wire.js";
import { shardOf } from "../../shards/ids.js";

const connections = 32;
/** Writes per second while it is measured what a return does to those who write; two datacenters do them on one core. */
const usualRate = 60;
const sampleMs = 100;
const patienceMs = 120_000;

/** The core of those who stay and of the bench, and the one of who returns: a datacenter has machines of its own. */
const [stays, returns] = ["0", "1"];

/** From now on the bench and these datacenters run on these cores. */
async function pin(stack: TestStack, dcs: readonly string[], cores: string): Promise<void> {
  const trees = dcs.flatMap((dc) => stack.stack.site(dc).processes().flatMap(treeOf));
  for (const pid of [process.pid, ...trees])
    // One of PostgreSQL's may have ended meanwhile.
    await promisify(execFile)("taskset", ["-acp", cores, String(pid)]).catch(() => undefined);
}

async function restartApart(stack: TestStack, dc: string): Promise<void> {
  const hothot = path.join(checkout, "infra/local/hothot.mjs");
  const args = ["simulate", "restart", dc, "--dir", stack.dir];
  await promisify(execFile)("taskset", ["-c", returns, process.execPath, hothot, ...args]);
}

/** How fast a datacenter that was away comes back while the others go on: by the log, and by snapshots. */
export const catchUp: Scenario = {
  name: "catch-up",
  what: "a datacenter returns while writes go on: what it applies per second, by the log and by snapshots, as multiples of the live rate",
  async run(options) {
    const log = await measure(options, {});
    // A log that keeps two seconds has nothing left for it.
    const snapshot = await measure(options, { HOTHOT_LOG_RETENTION_MS: "2000", HOTHOT_RESTATE_MS: "500" });
    const figures = { log, snapshot };
    const row = (name: string, found: Found): (string | number)[] => [
      name,
      found.livePerSecond,
      found.missed,
      found.seconds,
      found.perSecond,
      found.multiple,
      found.snapshotMbPerSecond,
      found.writeMs.before.p50,
      found.writeMs.during.p50,
      found.writeMs.before.p99,
      found.writeMs.during.p99,
    ];
    return {
      rows: [
        [
          "",
          "live writes/s",
          "missed",
          "s",
          "applied/s",
          "x live",
          "snapshot MB/s",
          "write p50 ms before",
          "during",
          "p99 before",
          "during",
        ],
        row("by the log", log),
        row("by snapshots", snapshot),
      ],
      figures,
    } satisfies BenchResult;
  },
};

interface Found {
  readonly livePerSecond: number;
  readonly missed: number;
  readonly seconds: number;
  readonly perSecond: number;
  readonly multiple: number;
  readonly snapshotMbPerSecond: number;
  /** Writes at another datacenter, at a steady rate: while this one is away, and while it returns. */
  readonly writeMs: { readonly before: Latency; readonly during: Latency };
}

interface HeadSeen {
  readonly shard: number;
  readonly owner: string | null;
  readonly position: number;
}

async function heads(stack: TestStack, dc: string): Promise<readonly HeadSeen[]> {
  return ((await stack.request(dc, "GET", "/v1/shards?limit=1000")).body as { items: HeadSeen[] }).items;
}

/** Positions of all shards together. */
async function total(stack: TestStack, dc: string): Promise<number> {
  return (await heads(stack, dc)).reduce((sum, head) => sum + head.position, 0);
}

function idsIn(shards: ReadonlySet<number>, count: number): string[] {
  const ids: string[] = [];
  for (let number = 0; ids.length < count; number++)
    if (shards.has(shardOf(`catch-up-${number}`, 64))) ids.push(`catch-up-${number}`);
  return ids;
}

/** From the first record that west applies (its database tells) until it has what is there and says it is ready. */
async function follow(
  stack: TestStack,
  before: number,
): Promise<Omit<Found, "livePerSecond" | "multiple" | "writeMs">> {
  const database = new Database({
    url: stack.stack.site("west").postgres?.url() ?? "",
    connections: 1,
    name: "bench",
    log: silentLogger,
  });
  const applied = async (): Promise<number> =>
    (await database.pool.query<{ n: number }>("SELECT sum(position)::bigint AS n FROM shard_head")).rows[0]?.n ?? 0;
  const deadline = performance.now() + patienceMs;
  let began: number | undefined;
  const missed = (await total(stack, "east")) - before;
  try {
    for (;;) {
      if (performance.now() > deadline) throw new Error("west has not caught up");
      await new Promise((resolve) => setTimeout(resolve, sampleMs));
      const there = await applied().catch(() => undefined);
      if (there === undefined || there <= before) continue;
      began ??= performance.now();
      const left = (await total(stack, "east")) - there;
      const ready = await stack.request("west", "GET", "/readyz").catch(() => undefined);
      if (ready?.status !== 200 || left > missed / 50) continue;
      const seconds = (performance.now() - began) / 1000;
      const { body } = await stack.request("west", "GET", "/metrics");
      const bytes = Number(/^hothot_snapshot_bytes_total (\S+)$/m.exec(String(body))?.[1] ?? 0);
      return {
        missed,
        seconds: rounded(seconds),
        perSecond: rounded((there - before) / seconds, 0),
        snapshotMbPerSecond: rounded(bytes / 1e6 / seconds),
      };
    }
  } finally {
    await database.close();
  }
}

async function measure(
  { seconds, rows = 0, rate = usualRate, tell }: BenchOptions,
  env: Readonly<Record<string, string>>,
): Promise<Found> {
  tell("starting three datacenters");
  const stack = await startStack({ worker: false, env: { ...env, HOTHOT_AUTOMATIC_FAILBACK: "false" } });
  try {
    const url = new URL(stack.url("east"));
    await stack.simulate("crash", "west");
    await stack.until(
      async () => (await heads(stack, "east")).every((head) => head.owner === "east" || head.owner === "central"),
      30_000,
      "west is taken over",
    );
    const mine = new Set((await heads(stack, "east")).filter((h) => h.owner === "east").map((h) => h.shard));
    const requests = idsIn(mine, 2_000).map((id) => putBytes(url, `/v1/clusters/${id}`, clusterBody(id)));
    const before = await total(stack, "east");
    tell(`west is away for ${seconds} s of writes`);
    const began = performance.now();
    let missed = 0;
    do {
      await hammer(url, requests, connections, seconds);
      missed = (await total(stack, "east")) - before;
    } while (missed < rows);
    const livePerSecond = missed / ((performance.now() - began) / 1000);
    if (env["HOTHOT_LOG_RETENTION_MS"] !== undefined) await new Promise((resolve) => setTimeout(resolve, 8_000));
    await pin(stack, ["east", "central"], stays);
    const pace = { connections: 16, perSecond: rate };
    const calm = await steady(url, requests, { ...pace, seconds: 10 });
    const returned = new AbortController();
    const during = steady(url, requests, { ...pace, seconds: patienceMs / 1000 }, returned.signal);
    try {
      const [found] = await Promise.all([follow(stack, before), restartApart(stack, "west")]);
      returned.abort();
      tell(`${found.missed} records were missed; ${found.perSecond} a second were applied`);
      return {
        ...found,
        livePerSecond: rounded(livePerSecond, 0),
        multiple: rounded(found.perSecond / livePerSecond),
        writeMs: { before: latencyOf(calm.latencies), during: latencyOf((await during).latencies) },
      };
    } finally {
      returned.abort();
      await during;
    }
  } finally {
    await pin(stack, [], `${stays},${returns}`);
    await stack.stop();
  }
}
