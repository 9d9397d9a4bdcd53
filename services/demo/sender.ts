import { codeOf, placeOf, text, versionOf, type Answer, type Ask, type Client } from "./client.js";
import { type Attempt, type Durability, type JobStart, type Journal, type Outcome, type Write } from "./journal.js";

export interface Unsent {
  readonly clusterId: string;
  readonly mark: string;
  readonly durability: Durability;
  readonly key: string | null;
  /** Deadline of one attempt, milliseconds. */
  readonly timeoutMs: number;
}

export interface UnsentPut extends Unsent {
  readonly name: string;
  readonly spec: unknown;
  readonly labels: Readonly<Record<string, string>>;
}

/** Sends writes and writes into the journal what came of each. */
export class Sender {
  readonly #client: Client;
  readonly #journal: Journal;

  constructor(client: Client, journal: Journal) {
    this.#client = client;
    this.#journal = journal;
  }

  begin(write: UnsentPut): Write {
    const { clusterId, mark, durability, key } = write;
    return this.#journal.write({ kind: "put", clusterId, mark, durability, key });
  }

  /** One attempt of a PUT. The mark goes along as label `change`. */
  async put(dc: string, write: Write, put: UnsentPut): Promise<Attempt> {
    const body = { name: put.name, spec: put.spec, labels: { ...put.labels, change: put.mark } };
    return this.#attempt(write.attempts, dc, "PUT", `/v1/clusters/${encodeURIComponent(put.clusterId)}`, put, body);
  }

  /** Starts a job, sending it again at the other datacenters while that is safe and `untilMs` (monotonic) is ahead. */
  async startJob(dcs: readonly string[], type: string, job: Unsent, input: object, untilMs: number): Promise<JobStart> {
    const { clusterId, mark, durability, key } = job;
    const start = this.#journal.job({ clusterId, type, mark, durability, key });
    const path = `/v1/clusters/${encodeURIComponent(clusterId)}/operations`;
    for (let turn = 0; ; turn++) {
      const dc = dcs[turn % dcs.length] ?? "";
      const answers: Answer[] = [];
      const body = { type, input: { ...input, change: mark } };
      const attempt = await this.#attempt(start.attempts, dc, "POST", path, job, body, (answer) =>
        answers.push(answer),
      );
      if (attempt.outcome === "ok") start.jobId = jobIdOf(answers[0]);
      if (!mayRepeat(attempt, key) || performance.now() > untilMs) return start;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  async #attempt(
    attempts: Attempt[],
    dc: string,
    method: string,
    path: string,
    { durability, key, timeoutMs }: Unsent,
    body: unknown,
    seen?: (answer: Answer) => void,
  ): Promise<Attempt> {
    const headers: Record<string, string> = { "hothot-durability": durability };
    if (key !== null) headers["idempotency-key"] = key;
    const ask: Ask = { body, headers, timeoutMs };
    const answer = await this.#client.request(dc, method, path, ask);
    seen?.(answer);
    const attempt = attemptOf(dc, answer, key !== null);
    attempts.push(attempt);
    return attempt;
  }
}

/** A repetition is safe when nothing can have happened, or when a key sees to it that it happens once. */
export function mayRepeat(attempt: Attempt, key: string | null): boolean {
  if (attempt.outcome === "ok") return false;
  if (attempt.outcome === "unknown") return key !== null;
  return attempt.status === 0 || attempt.status === 503 || attempt.status === 504 || attempt.status === 429;
}

export function attemptOf(dc: string, answer: Answer, keepAnswer: boolean): Attempt {
  const ok = answer.status >= 200 && answer.status < 300;
  const servedBy = text(answer.headers["hothot-served-by"]);
  return {
    dc,
    startedAt: answer.startedAt,
    endedAt: answer.endedAt,
    outcome: outcomeOfAnswer(answer),
    status: answer.status,
    code: codeOf(answer) ?? answer.failure,
    place: ok ? placeOf(answer.headers) : null,
    version: ok ? versionOf(answer.headers) : null,
    owner: text(answer.headers["hothot-owner"]),
    servedBy: servedBy?.split("/")[0] ?? null,
    replayed: answer.headers["idempotency-replayed"] === "true",
    answer: ok && keepAnswer ? answer.text : null,
  };
}

/** 4xx, 503 and `deadline_exceeded` promise that nothing happened; so does a connection that was refused. */
export function outcomeOfAnswer(answer: Answer): Outcome {
  if (answer.failure !== null) return answer.failure === "refused" ? "fail" : "unknown";
  if (answer.status >= 200 && answer.status < 300) return "ok";
  if (answer.status < 500 || answer.status === 503) return "fail";
  return codeOf(answer) === "deadline_exceeded" ? "fail" : "unknown";
}

function jobIdOf(answer: Answer | undefined): string | null {
  try {
    return (JSON.parse(answer?.text ?? "") as { id?: string }).id ?? null;
  } catch {
    return null;
  }
}
