import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";

type Json = Record<string, unknown>;

export interface ProvisionerTask {
  readonly taskId: string;
  readonly jobId: string;
  readonly clusterId: string;
  readonly taskName: string;
  readonly nodeId: string;
  readonly config: Json;
}

/** What a plug-in gives: a worker adds its ids to that and sends it as it is. */
export type Plugin = (task: ProvisionerTask) => Promise<Json> | Json;

export interface ProvisionerOptions {
  readonly id: string;
  /** Where the server is, now: `http://host:port`. */
  readonly server: () => string;
  readonly plugin: Plugin;
  readonly capacity?: number;
  readonly heartbeatMs?: number;
  readonly pollMs?: number;
}

export interface Finished {
  readonly task: ProvisionerTask;
  /** 0: no answer came. */
  readonly status: number;
}

/**
 * A provisioner that speaks as the real one does: JSON under a form's content type, numbers as texts, workers only after it
 * was told of a tenant, one task per worker, each finish sent once and never again.
 */
export class FakeProvisioner {
  readonly finished: Finished[] = [];
  readonly taken: ProvisionerTask[] = [];
  /** What the server called: `PUT superadmin 2`, `DELETE superadmin`. */
  readonly called: string[] = [];
  /** Answers to heartbeats. */
  readonly beats: number[] = [];
  /** How many of the server's next calls are answered 500. */
  refuseCalls = 0;
  readonly #o: ProvisionerOptions;
  readonly #usage = new Map<string, number>();
  readonly #loops = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  readonly #api = createServer((request, response) => {
    void bodyOf(request).then((text) => {
      const tenant = /^\/v2\/tenants\/([^/]+)$/.exec(request.url ?? "")?.[1];
      if (tenant === undefined) return response.writeHead(404).end();
      const workers = (text === "" ? undefined : (JSON.parse(text) as Json))?.["workers"];
      this.called.push(`${request.method} ${tenant}${workers === undefined ? "" : ` ${Number(workers)}`}`);
      if (this.refuseCalls > 0) {
        this.refuseCalls--;
        return response.writeHead(500).end();
      }
      this.#assign(tenant, request.method === "PUT" ? Number(workers) : 0);
      return response.writeHead(200).end(request.method === "PUT" ? text : "OK");
    });
  });

  constructor(options: ProvisionerOptions) {
    this.#o = options;
  }

  /** Listens, registers, and goes on in the background. @returns the status of the registration */
  async start(): Promise<number> {
    await new Promise<void>((resolve) => this.#api.listen(0, "127.0.0.1", resolve));
    const status = await this.register();
    this.#loops.add(this.#beat());
    return status;
  }

  async register(): Promise<number> {
    const { id, capacity = 2 } = this.#o;
    const { port } = this.#api.address() as AddressInfo;
    const body = { id, capacityTotal: String(capacity), host: "127.0.0.1", port: String(port) };
    return (await this.send("PUT", `/v2/provisioners/${id}`, body)).status;
  }

  /** As on SIGTERM: workers end what they do, then it unregisters. */
  async stop(): Promise<number> {
    this.#usage.clear();
    await this.kill();
    return (await this.send("DELETE", `/v2/provisioners/${this.#o.id}`)).status;
  }

  /** As on SIGKILL, but for the tasks under way. */
  async kill(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#loops);
    this.#api.closeAllConnections();
    await new Promise((resolve) => this.#api.close(resolve));
  }

  /** One request, as its HTTP library sends it. Status 0: no answer. */
  async send(method: string, path: string, body?: unknown): Promise<{ status: number; body: unknown }> {
    try {
      const answer = await fetch(`${this.#o.server()}${path}`, {
        method,
        headers: {
          "Coopr-UserID": "admin",
          Accept: "*/*",
          ...(body === undefined ? {} : { "Content-Type": "application/x-www-form-urlencoded" }),
        },
        ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
        signal: AbortSignal.timeout(60_000),
      });
      const text = await answer.text();
      return { status: answer.status, body: text === "" ? undefined : JSON.parse(text) };
    } catch {
      return { status: 0, body: undefined };
    }
  }

  #assign(tenant: string, workers: number): void {
    const before = this.#usage.get(tenant) ?? 0;
    this.#usage.set(tenant, workers);
    for (let number = before + 1; number <= workers; number++) this.#loops.add(this.#work(tenant, number));
  }

  async #beat(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const usage = Object.fromEntries([...this.#usage].filter(([, count]) => count > 0));
      this.beats.push((await this.send("POST", `/v2/provisioners/${this.#o.id}/heartbeat`, { usage })).status);
      await pause(this.#o.heartbeatMs ?? 250, this.#stop.signal);
    }
  }

  async #work(tenant: string, number: number): Promise<void> {
    const { id, plugin, pollMs = 50 } = this.#o;
    const ids = { provisionerId: id, workerId: `${id}.worker${number}`, tenantId: tenant };
    while (!this.#stop.signal.aborted && (this.#usage.get(tenant) ?? 0) >= number) {
      const answer = await this.send("POST", "/v2/tasks/take", ids);
      if (answer.status !== 200) {
        await pause(answer.status === 204 ? pollMs : 4 * pollMs, this.#stop.signal);
        continue;
      }
      const task = answer.body as ProvisionerTask;
      this.taken.push(task);
      const result = await plugin(task);
      const finish = await this.send("POST", "/v2/tasks/finish", { ...result, ...ids, taskId: task.taskId });
      this.finished.push({ task, status: finish.status });
    }
  }
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  let text = "";
  for await (const chunk of request.setEncoding("utf8")) text += chunk as string;
  return text;
}

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
  });
