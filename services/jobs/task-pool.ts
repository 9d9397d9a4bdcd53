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

/**
 * Tasks that may be taken, in memory, oldest first within a name. Bounded: what does not fit is left to the next look
 * into the database, and `overflowed` says that there is more.
 */
export class TaskPool {
  readonly #limit: number;
  /** By tenant and name; the maps keep the order of arrival. */
  readonly #ready = new Map<string, Map<string, OfferedTask>>();
  readonly #delayed = new Map<string, OfferedTask>();
  readonly #where = new Map<string, OfferedTask>();
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
    this.#where.set(task.id, task);
    if (task.notBefore > now) this.#delayed.set(task.id, task);
    else this.#group(task).set(task.id, task);
    return true;
  }

  remove(id: string): void {
    const task = this.#where.get(id);
    if (task === undefined) return;
    this.#where.delete(id);
    this.#delayed.delete(id);
    const key = keyOf(task.tenant, task.name);
    const group = this.#ready.get(key);
    group?.delete(id);
    if (group?.size === 0) this.#ready.delete(key);
  }

  removeShard(shard: ShardId): void {
    for (const task of [...this.#where.values()]) if (task.shard === shard) this.remove(task.id);
  }

  /** Tasks whose time has come are ready. True when there was one. */
  ripen(now: number): boolean {
    let any = false;
    for (const [id, task] of this.#delayed) {
      if (task.notBefore > now) continue;
      this.#delayed.delete(id);
      this.#group(task).set(id, task);
      any = true;
    }
    return any;
  }

  /** Takes up to `max` ready tasks out of the pool. */
  pick(wanted: Wanted, max: number): OfferedTask[] {
    const picked: OfferedTask[] = [];
    const keys =
      wanted.names === undefined
        ? [...this.#ready.keys()].filter((key) => key.startsWith(keyOf(wanted.tenant, "")))
        : wanted.names.map((name) => keyOf(wanted.tenant, name));
    for (const key of keys) {
      for (const task of this.#ready.get(key)?.values() ?? []) {
        if (picked.length >= max) break;
        if (fits(task, wanted.labels)) picked.push(task);
      }
    }
    for (const task of picked) this.remove(task.id);
    return picked;
  }

  #group(task: OfferedTask): Map<string, OfferedTask> {
    const key = keyOf(task.tenant, task.name);
    let group = this.#ready.get(key);
    if (group === undefined) this.#ready.set(key, (group = new Map<string, OfferedTask>()));
    return group;
  }
}

const keyOf = (tenant: string, name: string): string => `${tenant}\u0000${name}`;

function fits(task: OfferedTask, labels: Wanted["labels"]): boolean {
  return labels === undefined || Object.entries(labels).every(([name, value]) => task.labels[name] === value);
}
