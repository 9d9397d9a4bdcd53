import type { ShardId } from "../../shards/ids.js";
import type { OfferedTask } from "./job-events.js";

/** What a worker would take. */
export interface Wanted {
  readonly tenant: string;
  /** Names of tasks; all when left out. */
  readonly names?: readonly string[] | undefined;
  /** All of them must be among the labels of the task's cluster. */
  readonly labels?: Readonly<Record<string, string>> | undefined;
}

interface Entry {
  readonly task: OfferedTask;
  /** Of its arrival: the order of tasks of one job. */
  readonly number: number;
}

/**
 * Tasks that may be taken, in memory, those of the oldest job first: what has begun ends before what is new, also where new jobs
 * never cease to come. Bounded: what does not fit is left to the next look into the database, and `overflowed` says that there is more.
 */
export class TaskPool {
  readonly #limit: number;
  /** By tenant and name, in the order in which they are handed out. */
  readonly #ready = new Map<string, Entry[]>();
  readonly #delayed = new Map<string, OfferedTask>();
  readonly #where = new Map<string, Entry>();
  #arrivals = 0;
  overflowed = false;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get size(): number {
    return this.#where.size;
  }

  /** When the earliest task that waits for its time is due, milliseconds since 1970. */
  get nextDue(): number | undefined {
    let next: number | undefined;
    for (const { notBefore } of this.#delayed.values()) if (next === undefined || notBefore < next) next = notBefore;
    return next;
  }

  /** False when there is no room. */
  add(task: OfferedTask, now: number): boolean {
    this.remove(task.id);
    if (this.#where.size >= this.#limit) {
      this.overflowed = true;
      return false;
    }
    const entry = { task, number: this.#arrivals++ };
    this.#where.set(task.id, entry);
    if (task.notBefore > now) this.#delayed.set(task.id, task);
    else this.#line(entry);
    return true;
  }

  remove(id: string): void {
    const entry = this.#where.get(id);
    if (entry === undefined) return;
    this.#where.delete(id);
    if (this.#delayed.delete(id)) return;
    const key = keyOf(entry.task.tenant, entry.task.name);
    const line = this.#ready.get(key) ?? [];
    line.splice(placeIn(line, entry), 1);
    if (line.length === 0) this.#ready.delete(key);
  }

  removeShard(shard: ShardId): void {
    for (const { task } of [...this.#where.values()]) if (task.shard === shard) this.remove(task.id);
  }

  /** Tasks whose time has come are ready. True when there was one. */
  ripen(now: number): boolean {
    let any = false;
    for (const [id, task] of this.#delayed) {
      const entry = this.#where.get(id);
      if (task.notBefore > now || entry === undefined) continue;
      this.#delayed.delete(id);
      this.#line(entry);
      any = true;
    }
    return any;
  }

  /** Takes up to `max` ready tasks out of the pool. */
  pick(wanted: Wanted, max: number): OfferedTask[] {
    const keys =
      wanted.names === undefined
        ? [...this.#ready.keys()].filter((key) => key.startsWith(keyOf(wanted.tenant, "")))
        : [...new Set(wanted.names)].map((name) => keyOf(wanted.tenant, name));
    const heads = keys.map((key) => ({ line: this.#ready.get(key) ?? [], at: 0 }));
    const picked: OfferedTask[] = [];
    while (picked.length < max) {
      let first: { head: (typeof heads)[number]; entry: Entry } | undefined;
      for (const head of heads) {
        while (head.at < head.line.length && !fits(head.line[head.at]?.task, wanted.labels)) head.at++;
        const entry = head.line[head.at];
        if (entry !== undefined && (first === undefined || isBefore(entry, first.entry))) first = { head, entry };
      }
      if (first === undefined) break;
      picked.push(first.entry.task);
      first.head.at++;
    }
    for (const task of picked) this.remove(task.id);
    return picked;
  }

  #line(entry: Entry): void {
    const key = keyOf(entry.task.tenant, entry.task.name);
    const line = this.#ready.get(key);
    if (line === undefined) this.#ready.set(key, [entry]);
    else line.splice(placeIn(line, entry), 0, entry);
  }
}

const keyOf = (tenant: string, name: string): string => `${tenant}\u0000${name}`;

const isBefore = (a: Entry, b: Entry): boolean =>
  a.task.jobSince < b.task.jobSince || (a.task.jobSince === b.task.jobSince && a.number < b.number);

/** Index of the entry in the ordered line, or where it belongs. */
function placeIn(line: readonly Entry[], entry: Entry): number {
  let [from, to] = [0, line.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    const there = line[middle];
    if (there !== undefined && isBefore(there, entry)) from = middle + 1;
    else to = middle;
  }
  return from;
}

function fits(task: OfferedTask | undefined, labels: Wanted["labels"]): boolean {
  return (
    task !== undefined &&
    (labels === undefined || Object.entries(labels).every(([name, value]) => task.labels[name] === value))
  );
}
