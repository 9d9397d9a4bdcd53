import { natsUser } from "../../infra/local/nats-config.js";
import { silentLogger } from "../../infra/logger.js";
import { LogStreams } from "../../infra/nats/log-streams.js";
import { NatsLink } from "../../infra/nats/nats-link.js";
import { Database } from "../../infra/postgres/database.js";
import { Client } from "../../services/demo/client.js";
import { Group, until } from "../../services/demo/group.js";
import { shardOf } from "../../shards/ids.js";
import { runCli, startStack, type TestStack, type TestStackOptions } from "../harness/stack.js";

const importMs = 1_800_000;

export interface BenchOptions {
  /** Length of each measurement, seconds. */
  readonly seconds: number;
  /** Repetitions, where a scenario has them. */
  readonly runs: number;
  /** Writes per second, where a scenario has a rate; undefined: its own. */
  readonly rate: number | undefined;
  /** Shards of the stack; undefined: the scenario's own number, or the usual 64. */
  readonly shards?: number | undefined;
  /** Rows of a load; undefined: the scenario's own number. */
  readonly rows?: number | undefined;
  /** Megabytes of what is copied; undefined: the scenario's own number. */
  readonly mb?: number | undefined;
  /** Numbers of clusters that are loaded before, one after the other, where a scenario measures by them. */
  readonly clusters?: readonly number[] | undefined;
  readonly tell: (line: string) => void;
}

/** What a scenario found: a table to read, and figures to compare. */
export interface BenchResult {
  readonly rows: readonly (readonly (string | number)[])[];
  readonly figures: Readonly<Record<string, unknown>>;
}

export interface Scenario {
  readonly name: string;
  readonly what: string;
  run(options: BenchOptions): Promise<BenchResult>;
}

export interface Bench {
  readonly stack: TestStack;
  readonly client: Client;
  readonly group: Group;
  readonly owners: ReadonlyMap<number, string>;
  /** `count` cluster ids of shards that `dc` owns. */
  idsOf(dc: string, count: number): string[];
  /** Asks a datacenter's own database. */
  query(dc: string, sql: string): Promise<readonly Readonly<Record<string, unknown>>[]>;
  /** Bytes in the log, all partitions, one replica of each. */
  logBytes(): Promise<number>;
}

/** Runs `action` on a fresh stack, of which nothing stays. */
export async function onStack<T>(
  options: BenchOptions,
  action: (bench: Bench) => Promise<T>,
  more: TestStackOptions = {},
): Promise<T> {
  options.tell("starting three datacenters");
  const stack = await startStack({ ...more, ...(options.shards === undefined ? {} : { shards: options.shards }) });
  const databases = new Map<string, Database>();
  const query: Bench["query"] = async (dc, sql) => {
    let database = databases.get(dc);
    if (database === undefined) {
      const url = stack.stack.site(dc).postgres?.url() ?? "";
      database = new Database({ url, connections: 1, name: "bench", log: silentLogger });
      databases.set(dc, database);
    }
    return (await database.pool.query<Record<string, unknown>>(sql)).rows;
  };
  const client = new Client(Object.fromEntries(stack.dcs.map((dc) => [dc, stack.url(dc)])));
  try {
    const group = new Group(client);
    const { why } = await until(60_000, () => group.whyNotConverged());
    if (why !== null) throw new Error(`the stack is not ready: ${why}`);
    const owners = await group.owners(stack.dcs[0] ?? "");
    if (owners === null) throw new Error("not every shard has an owner");
    return await action({
      stack,
      client,
      group,
      owners,
      idsOf: (dc, count) => idsOf(owners, dc, count),
      query,
      logBytes: () => logBytes(stack),
    });
  } finally {
    await Promise.allSettled([...databases.values()].map((database) => database.close()));
    client.close();
    await stack.stop();
  }
}

/** `clusters import` of a file that may be large. */
export async function importRows(stack: TestStack, file: string): Promise<void> {
  const { code, stderr } = await runCli(["clusters", "import", file, "--dir", stack.dir], {}, undefined, importMs);
  if (code !== 0) throw new Error(`the import failed: ${stderr.slice(-500)}`);
}

async function logBytes(stack: TestStack): Promise<number> {
  const [dc = ""] = stack.dcs;
  const { partitions } = (await stack.request(dc, "GET", "/v1/topology")).body as { partitions: number };
  const link = await NatsLink.open({
    servers: [stack.stack.site(dc).nats.url(natsUser)],
    name: "bench",
    waitMs: 5_000,
    log: silentLogger,
  });
  try {
    const streams = new LogStreams("local", 1, [link]);
    let bytes = 0;
    for (let partition = 0; partition < partitions; partition++)
      bytes += (await streams.state(partition, 5_000))?.bytes ?? 0;
    return bytes;
  } finally {
    await link.close();
  }
}

function idsOf(owners: ReadonlyMap<number, string>, dc: string, count: number): string[] {
  const ids: string[] = [];
  for (let number = 0; ids.length < count; number++) {
    const id = `bench-${dc}-${number}`;
    if (owners.get(shardOf(id, owners.size)) === dc) ids.push(id);
  }
  return ids;
}

/** A cluster of the size of a usual one, about 1 KiB. */
export function clusterBody(mark: string): unknown {
  const node = (number: number) => ({
    name: `worker-${String(number).padStart(2, "0")}`,
    services: ["hadoop-hdfs-datanode", "hadoop-yarn-nodemanager"],
    hardware: "storage-heavy",
    flavor: "d2.large",
  });
  return {
    name: `bench ${mark}`,
    spec: { template: "hadoop-distributed", nodes: Array.from({ length: 6 }, (_, index) => node(index + 1)) },
    labels: { team: "platform", env: "test", change: mark },
  };
}

/** Calls `action` `perSecond` times a second for `seconds`, and waits for all. Timers that fire late are made up for. */
export async function atRate(
  perSecond: number,
  seconds: number,
  action: (number: number) => Promise<void>,
): Promise<void> {
  const underWay: Promise<void>[] = [];
  const startedAt = performance.now();
  await new Promise<void>((resolve) => {
    const timer = setInterval(
      () => {
        const elapsed = Math.min(seconds * 1000, performance.now() - startedAt);
        const due = Math.floor((elapsed * perSecond) / 1000);
        while (underWay.length < due) underWay.push(action(underWay.length));
        if (elapsed < seconds * 1000) return;
        clearInterval(timer);
        resolve();
      },
      Math.min(5, 1000 / perSecond),
    );
  });
  await Promise.all(underWay);
}
