import type { Client } from "../../services/demo/client.js";
import { codeOf } from "../../services/demo/client.js";
import type { JobSeen } from "../../services/demo/group.js";
import type { Journal } from "../../services/demo/journal.js";

interface TakenTask {
  readonly id: string;
  readonly jobId: string;
  readonly attempt: number;
  readonly token: string;
}

/** A worker that takes tasks and sends their finishes much too late, when another attempt of the job runs (invariant 6). */
export class LateWorker {
  readonly #client: Client;
  readonly #journal: Journal;
  readonly #id: string;
  #held: TakenTask[] = [];

  constructor(client: Client, journal: Journal, id: string) {
    this.#client = client;
    this.#journal = journal;
    this.#id = id;
  }

  async register(dc: string): Promise<void> {
    const answer = await this.#client.request(dc, "PUT", `/v1/workers/${this.#id}`, { body: { capacity: 4 } });
    if (answer.status !== 200) throw new Error(`the worker was not registered: ${answer.status} ${answer.text}`);
  }

  /** Takes what it can get of the datacenter's tasks within `waitMs`. @returns how many it holds */
  async take(dc: string, waitMs: number): Promise<number> {
    const body = { workerId: this.#id, waitMs, max: 2 };
    const answer = await this.#client.request(dc, "POST", "/v1/tasks/take", { body, timeoutMs: waitMs + 2000 });
    if (answer.status === 200) this.#held.push(...(JSON.parse(answer.text) as { tasks: TakenTask[] }).tasks);
    return this.#held.length;
  }

  /** Finishes what it holds: late where another attempt of the job has begun, in time elsewhere. @returns how many came late */
  async finishLate(dc: string): Promise<number> {
    const held = this.#held;
    this.#held = [];
    let sent = 0;
    for (const { id, jobId, attempt, token } of held) {
      const job = await this.#client.get<JobSeen>(dc, `/v1/jobs/${jobId}`);
      if (job === null) continue;
      const mark = `late-${this.#id}-${attempt}-${id}`;
      if (job.attempt > attempt) sent++;
      const body = { token, workerId: this.#id, status: "ok", result: { change: mark }, stdout: mark };
      const answer = await this.#client.request(dc, "POST", `/v1/tasks/${id}/finish`, { body });
      const { status } = answer;
      this.#journal.finishes.push({ jobId, attempt, runningAttempt: job.attempt, mark, status, code: codeOf(answer) });
    }
    return sent;
  }
}
