import type { Bench } from "./scenario.js";

/** A task, as far as a measurement needs it. */
export interface Task {
  readonly id: string;
  readonly token: string;
  readonly stage: string;
}

const atOnce = 32;

/** Calls `action` for every item, some at a time. */
export async function each<T>(items: readonly T[], action: (item: T) => Promise<void>): Promise<void> {
  const left = [...items].reverse();
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (let item = left.pop(); item !== undefined; item = left.pop()) await action(item);
    }),
  );
}

/** Requests of jobs and workers at one datacenter; an answer that is not 2xx is an error. */
export class JobCalls {
  constructor(
    private readonly bench: Bench,
    private readonly dc: string,
  ) {}

  async call<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
    const answer = await this.bench.client.request(this.dc, method, path, { body, headers, timeoutMs: 30_000 });
    if (answer.status < 200 || answer.status >= 300)
      throw new Error(`${method} ${path}: ${answer.failure ?? `${answer.status} ${answer.text}`}`);
    return (answer.text === "" ? undefined : JSON.parse(answer.text)) as T;
  }

  async makeClusters(ids: readonly string[], nodes: readonly string[]): Promise<void> {
    await each(ids, async (id) => void (await this.call("PUT", `/v1/clusters/${id}`, { name: id, spec: { nodes } })));
  }

  async start(clusterId: string, type: string): Promise<string> {
    return (await this.call<{ id: string }>("POST", `/v1/clusters/${clusterId}/operations`, { type })).id;
  }

  /** Registers a worker, and waits until it may take. */
  async register(workerId: string): Promise<void> {
    await this.call("PUT", `/v1/workers/${workerId}`, { capacity: 10_000 });
  }

  async take(workerId: string, max: number, waitMs: number): Promise<readonly Task[]> {
    return (await this.call<{ tasks: Task[] }>("POST", "/v1/tasks/take", { workerId, max, waitMs })).tasks;
  }

  async finish(task: Task, workerId: string): Promise<void> {
    await this.call("POST", `/v1/tasks/${task.id}/finish`, {
      token: task.token,
      workerId,
      status: "ok",
      result: { [`by_${task.stage}`]: workerId },
      stdout: `${task.stage} done\n`,
    });
  }
}

/** Waits until every copy has what every owner has. */
export async function everywhere(bench: Bench): Promise<void> {
  const { stack, client } = bench;
  await stack.until(
    async () => {
      const seen = await Promise.all(
        stack.dcs.map(async (dc) => {
          const answer = await client.request(dc, "GET", "/v1/shards?limit=1000");
          const { items } = JSON.parse(answer.text) as { items: { shard: number; position: number }[] };
          return JSON.stringify(items.map(({ shard, position }) => [shard, position]));
        }),
      );
      return new Set(seen).size === 1;
    },
    60_000,
    "all copies are equally far",
  );
}
