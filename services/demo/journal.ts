/** `fail` had no effect for certain; `unknown` may have had one, also later. */
export type Outcome = "ok" | "fail" | "unknown";
export type Durability = "local" | "replicated";

/** `<shard>:<epoch>:<position>` as numbers. */
export interface Place {
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
}

/** One request of a write, as its client saw it. Times are monotonic milliseconds. */
export interface Attempt {
  readonly dc: string;
  readonly startedAt: number;
  readonly endedAt: number;
  readonly outcome: Outcome;
  /** HTTP status, 0 without an answer. */
  readonly status: number;
  readonly code: string | null;
  /** Where the write stands; of a replayed answer it says nothing. */
  readonly place: Place | null;
  readonly version: number | null;
  /** Hothot-Owner. */
  readonly owner: string | null;
  /** The datacenter of Hothot-Served-By. */
  readonly servedBy: string | null;
  readonly replayed: boolean;
  /** The body of a keyed write's answer, to compare it with the answers of its repetitions. */
  readonly answer: string | null;
}

/** One write, with its repetitions where it has an idempotency key. `mark` is unique, and readable in the cluster as label `change`. */
export interface Write {
  readonly kind: "put" | "delete";
  readonly clusterId: string;
  readonly mark: string;
  readonly durability: Durability;
  readonly key: string | null;
  readonly attempts: Attempt[];
}

/** A job that a client asked for. `mark` is unique, and readable in the job as `input.change`. */
export interface JobStart {
  readonly clusterId: string;
  readonly type: string;
  readonly mark: string;
  readonly durability: Durability;
  readonly key: string | null;
  readonly attempts: Attempt[];
  /** From the first answer that named it. */
  jobId: string | null;
}

/** A task's finish that was sent with a token; `runningAttempt` is the job's attempt as read before it was sent. */
export interface Finish {
  readonly jobId: string;
  readonly attempt: number;
  readonly runningAttempt: number;
  /** Unique text, sent as the task's result; it must not turn up when the token was outdated. */
  readonly mark: string;
  readonly status: number;
  readonly code: string | null;
}

/** A job as a datacenter showed it at a time; noted when it looks other than before. */
export interface Sighting {
  readonly dc: string;
  readonly at: number;
  readonly jobId: string;
  readonly status: string;
  readonly attempt: number;
  readonly finishedAt: string | null;
}

/** A read of one cluster; `mark` is its label `change`, null without one, and version 0 means that there was none. */
export interface Read {
  readonly dc: string;
  readonly clusterId: string;
  readonly startedAt: number;
  readonly endedAt: number;
  readonly mark: string | null;
  readonly version: number;
}

/** An entry of GET /v1/divergent-operations, as far as we compare it. */
export interface DivergentItem {
  readonly dc: string;
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
  readonly clusterId: string | null;
  readonly type: string;
  readonly idempotencyKey: string | null;
  /** The whole value as JSON text, in which marks are looked for. */
  readonly value: string;
  readonly status: string;
}

export interface FinalCluster {
  readonly version: number;
  readonly mark: string | null;
  /** The whole cluster as canonical JSON text. */
  readonly json: string;
}

export interface FinalJob {
  readonly status: string;
  readonly attempt: number;
  readonly clusterId: string;
  readonly mark: string | null;
  readonly startedIn: string;
  readonly finishedAt: string | null;
  readonly json: string;
}

/** What one datacenter shows when all is quiet. */
export interface FinalView {
  readonly dc: string;
  readonly clusters: ReadonlyMap<string, FinalCluster>;
  readonly jobs: ReadonlyMap<string, FinalJob>;
}

/** All that was done from outside, and what was found in the end: the checks are functions of it. */
export interface History {
  readonly writes: readonly Write[];
  readonly jobs: readonly JobStart[];
  readonly finishes: readonly Finish[];
  readonly reads: readonly Read[];
  readonly sightings: readonly Sighting[];
  readonly finals: readonly FinalView[];
  readonly divergent: readonly DivergentItem[];
}

/** Collects what clients do while they do it. */
export class Journal {
  readonly writes: Write[] = [];
  readonly jobs: JobStart[] = [];
  readonly finishes: Finish[] = [];
  readonly reads: Read[] = [];
  readonly sightings: Sighting[] = [];
  readonly #lastSeen = new Map<string, string>();

  write(write: Omit<Write, "attempts">): Write {
    const begun: Write = { ...write, attempts: [] };
    this.writes.push(begun);
    return begun;
  }

  job(start: Omit<JobStart, "attempts" | "jobId">): JobStart {
    const begun: JobStart = { ...start, attempts: [], jobId: null };
    this.jobs.push(begun);
    return begun;
  }

  /** Notes how `dc` shows its jobs now. */
  sight(dc: string, jobs: readonly (Omit<Sighting, "dc" | "at" | "jobId"> & { readonly id: string })[]): void {
    for (const { id, status, attempt, finishedAt } of jobs) {
      const [key, look] = [`${dc} ${id}`, `${status} ${attempt} ${finishedAt ?? ""}`];
      if (this.#lastSeen.get(key) === look) continue;
      this.#lastSeen.set(key, look);
      this.sightings.push({ dc, at: performance.now(), jobId: id, status, attempt, finishedAt });
    }
  }

  closed(finals: readonly FinalView[], divergent: readonly DivergentItem[]): History {
    const { writes, jobs, finishes, reads, sightings } = this;
    return { writes, jobs, finishes, reads, sightings, finals, divergent };
  }
}

/** The outcome of all attempts together. */
export function outcomeOf(attempts: readonly Attempt[]): Outcome {
  if (attempts.some(({ outcome }) => outcome === "ok")) return "ok";
  return attempts.some(({ outcome }) => outcome === "unknown") ? "unknown" : "fail";
}
