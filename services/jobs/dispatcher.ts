import type { Time, Timer } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Service } from "../../infra/service.js";
import type { ShardWriter } from "../../replication/work.js";
import type { Epoch, ShardId } from "../../shards/ids.js";
import type { JobEvents, OfferedTask } from "./job-events.js";
import { JobKeeper } from "./job-keeper.js";
import type { JobOperations } from "./job-operations.js";
import type { JobSource, KnownWorker } from "./job-source.js";
import type { TaskOperations } from "./task-operations.js";
import { againMs, Taker } from "./taker.js";
import { TaskPool, type Wanted } from "./task-pool.js";
import type { TakenTask } from "./views.js";
import { unknownWorker } from "./worker-operations.js";

export interface DispatcherOptions {
  readonly source: JobSource;
  readonly writer: ShardWriter;
  readonly jobs: JobOperations;
  readonly tasks: TaskOperations;
  readonly events: JobEvents;
  readonly time: Time;
  readonly log: Logger;
  /** Tasks kept in memory; beyond it they are found in the database when there is room again. */
  readonly poolLimit?: number;
  /** Takes that wait at once; beyond it they are refused as `overloaded`. */
  readonly waitingLimit?: number;
  /** Milliseconds; see KeeperOptions. */
  readonly scanMs?: number;
  readonly reloadMs?: number;
  readonly batch?: number;
  readonly writesAtOnce?: number;
}

export interface TakeOrder extends Wanted {
  /** Who will hold the task; also the registration's id, unless that is named apart. */
  readonly workerId: string;
  /** The registration that one of several workers takes under: its capacity is for all of them together. */
  readonly registration?: { readonly tenant: string; readonly id: string };
  /** How long the task stays the worker's without a sign of life, milliseconds; default: JobSettings.leaseMs. */
  readonly leaseMs?: number;
  /** How long to wait for a first task, milliseconds; at most 60 s. */
  readonly waitMs: number;
  readonly max: number;
}

interface Waiter {
  readonly order: TakeOrder;
  readonly room: number;
  readonly resolve: (tasks: readonly OfferedTask[]) => void;
}

const longestWaitMs = 60_000;
const mostPerTake = 100;
const heldLimit = 2_000;
/** A registration that was just made elsewhere may still be on its way. */
const unknownWorkerGraceMs = 500;

/**
 * Hands out the tasks of the shards that this datacenter owns. Committed writes wake it up, so a take that waits on an
 * idle system is served at once; the database is read when ownership changes, and slowly as a safety net.
 */
export class Dispatcher implements Service {
  readonly name = "dispatcher";
  readonly #options: DispatcherOptions;
  readonly #time: Time;
  readonly #log: Logger;
  readonly #pool: TaskPool;
  readonly #keeper: JobKeeper;
  readonly #taker: Taker;
  /** In the order in which they came. */
  readonly #waiters = new Set<Waiter>();
  /** Of each take under way: ends its waiting. */
  readonly #takes = new Set<AbortController>();
  readonly #stopped = new AbortController();
  #draining = false;
  #off: (() => void) | undefined;
  #ripener: { readonly at: number; readonly timer: Timer } | undefined;
  #matching = false;

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#time = options.time;
    this.#log = options.log.with({ component: "dispatcher" });
    this.#pool = new TaskPool(options.poolLimit ?? 20_000);
    this.#keeper = new JobKeeper({
      ...options,
      scanMs: options.scanMs ?? 1_000,
      reloadMs: options.reloadMs ?? 15_000,
      batch: options.batch ?? 500,
      writesAtOnce: options.writesAtOnce ?? 64,
      onAvailable: (tasks) => this.#add(tasks),
    });
    this.#taker = new Taker({
      ...options,
      log: this.#log,
      offer: (tasks) => void this.#add(tasks),
      stopped: this.#stopped.signal,
    });
  }

  async start(): Promise<void> {
    this.#off = this.#options.events.on({ offered: (tasks) => this.offer(tasks) });
    this.#keeper.start();
  }

  /** Takes that wait get an empty answer; new ones are refused. */
  async drain(): Promise<void> {
    this.#draining = true;
    for (const take of this.#takes) take.abort();
  }

  async stop(): Promise<void> {
    await this.drain();
    this.#stopped.abort();
    this.#off?.();
    this.#ripener?.timer.cancel();
    await this.#keeper.stop();
  }

  /** The shard is served from now on. Unfinished jobs of an earlier tenure restart, available tasks are offered. */
  onOwned(shard: ShardId, epoch: Epoch, tenure: Epoch): void {
    this.#keeper.onOwned(shard, epoch, tenure);
  }

  onLost(shard: ShardId): void {
    this.#keeper.onLost(shard);
    this.#pool.removeShard(shard);
  }

  /** Writes of these shards were perhaps committed, and nobody was told: what they made available is looked for. */
  onUncertain(shards: readonly ShardId[]): void {
    const owned = new Set(this.#keeper.shards);
    this.#keeper.lookAgain(shards.filter((shard) => owned.has(shard)));
  }

  /** Tasks that became available, by a write of this process or (told by it) of another one of the datacenter. */
  offer(tasks: readonly OfferedTask[]): void {
    this.#add(tasks);
  }

  /**
   * A sign of life of all that take under a registration: their tasks here get this much lease; 0: they are offered again.
   * @returns how many tasks
   */
  async heard(registration: string, leaseMs: number): Promise<number> {
    const { source, writer, tasks } = this.#options;
    const held = await source.heldTasks(registration, this.#keeper.shards, heldLimit);
    const isHolder = (workerId: string): boolean => workerId.startsWith(`${registration}/`);
    const options = { durability: "local", deadline: this.#time.monotonic() + 5_000 } as const;
    await Promise.all(held.map(({ id }) => writer.write(tasks.setLease(id, isHolder, leaseMs), options)));
    return held.length;
  }

  /**
   * Tasks that now are the worker's; empty when none came in time.
   * @throws Problem not_found for a worker that is not registered; overloaded; draining.
   */
  async take(order: TakeOrder, signal: AbortSignal): Promise<TakenTask[]> {
    const until = this.#time.monotonic() + Math.min(Math.max(0, order.waitMs), longestWaitMs);
    if (this.#draining) throw new Problem("draining");
    const ending = new AbortController();
    const end = (): void => ending.abort();
    this.#takes.add(ending);
    signal.addEventListener("abort", end, { once: true });
    if (signal.aborted) end();
    try {
      return await this.#takeUntil(order, until, signal, ending.signal);
    } finally {
      this.#takes.delete(ending);
      signal.removeEventListener("abort", end);
    }
  }

  /** 200's body. @throws Problem not_found. */
  async workerHeartbeat(tenant: string, workerId: string): Promise<Record<string, never>> {
    if ((await this.#options.source.worker({ tenant, id: workerId }, [])) === undefined) throw unknownWorker(workerId);
    return {};
  }

  /** `signal`: the client has hung up; `stop`: that, or this process drains. */
  async #takeUntil(order: TakeOrder, until: number, signal: AbortSignal, stop: AbortSignal): Promise<TakenTask[]> {
    for (;;) {
      const worker = await this.#worker(order, stop);
      const room = Math.min(order.max, mostPerTake, worker.capacity - worker.held);
      const left = until - this.#time.monotonic();
      let candidates: readonly OfferedTask[] = room > 0 ? this.#pool.pick(order, room) : [];
      if (this.#pool.overflowed && this.#pool.size < (this.#options.poolLimit ?? 20_000) / 2) this.#refill();
      if (candidates.length === 0) {
        if (left <= 0 || stop.aborted) return [];
        if (room > 0) candidates = await this.#wait(order, room, left, stop);
        else await this.#time.sleep(Math.min(left, againMs), stop);
      }
      const taken = await this.#taker.takeAll(candidates, order.workerId, order.leaseMs);
      if (signal.aborted) {
        await this.#taker.giveBack(taken, order.workerId);
        return [];
      }
      if (taken.length > 0) return taken;
      if (stop.aborted || this.#time.monotonic() >= until) return [];
    }
  }

  async #worker(order: TakeOrder, stop: AbortSignal): Promise<KnownWorker> {
    const until = this.#time.monotonic() + unknownWorkerGraceMs;
    for (;;) {
      const registration = order.registration ?? { tenant: order.tenant, id: order.workerId };
      const worker = await this.#options.source.worker(registration, this.#keeper.shards);
      if (worker !== undefined) return worker;
      if (stop.aborted || this.#time.monotonic() >= until) throw unknownWorker(registration.id);
      await this.#time.sleep(50, stop);
    }
  }

  /** Candidates for a take, out of the pool; empty when the time is over. */
  #wait(order: TakeOrder, room: number, ms: number, stop: AbortSignal): Promise<readonly OfferedTask[]> {
    if (this.#waiters.size >= (this.#options.waitingLimit ?? 2_000))
      throw new Problem("overloaded", "Too many takes wait.", { retryAfterSeconds: 1 });
    return new Promise((resolve) => {
      const over = (): void => waiter.resolve([]);
      const timer = this.#time.after(ms, over);
      const waiter: Waiter = {
        order,
        room,
        resolve: (tasks) => {
          timer.cancel();
          stop.removeEventListener("abort", over);
          this.#waiters.delete(waiter);
          resolve(tasks);
        },
      };
      this.#waiters.add(waiter);
      stop.addEventListener("abort", over, { once: true });
      if (stop.aborted) over();
    });
  }

  /** False when the pool is full. */
  #add(tasks: readonly OfferedTask[]): boolean {
    const now = this.#time.wall();
    let room = true;
    for (const task of tasks) room = this.#pool.add(task, now) && room;
    this.#ripenInTime();
    this.#match();
    return room;
  }

  #refill(): void {
    this.#pool.overflowed = false;
    this.#keeper.lookAgain(this.#keeper.shards);
  }

  /** One timer, for the earliest task whose time is to come. */
  #ripenInTime(): void {
    const next = this.#pool.nextDue;
    if (next === undefined || (this.#ripener !== undefined && this.#ripener.at <= next)) return;
    this.#ripener?.timer.cancel();
    const timer = this.#time.after(next - this.#time.wall(), () => {
      this.#ripener = undefined;
      if (this.#pool.ripen(this.#time.wall())) this.#match();
      this.#ripenInTime();
    });
    this.#ripener = { at: next, timer };
  }

  /** Serves those who wait, first come first served; once for all tasks that one commit offers. */
  #match(): void {
    if (this.#matching) return;
    this.#matching = true;
    queueMicrotask(() => {
      this.#matching = false;
      for (const waiter of [...this.#waiters]) {
        const tasks = this.#pool.pick(waiter.order, waiter.room);
        if (tasks.length > 0) waiter.resolve(tasks);
      }
    });
  }
}
