import type { Time } from "../infra/clock.js";
import { Problem } from "../infra/errors.js";
import { epoch as toEpoch, position as toPosition, type Epoch, type Position, type ShardId } from "../shards/ids.js";
import type { Peers } from "../shards/peers.js";

interface Place {
  epoch: Epoch;
  position: Position;
}

interface Waiter {
  readonly epoch: Epoch;
  readonly position: Position;
  readonly wake: () => void;
}

interface Sample {
  readonly epoch: Epoch;
  readonly position: Position;
  readonly at: number;
}

const samplesKept = 64;

/** How far this datacenter's copy of each shard is: for read-your-writes, and for the lag. By the own monotonic clock. */
export class Progress {
  readonly #places = new Map<ShardId, Place>();
  readonly #waiters = new Map<ShardId, Set<Waiter>>();
  /** Owner positions as they were heard, oldest first, that have not been reached. */
  readonly #behind = new Map<ShardId, Sample[]>();
  readonly #time: Time;
  readonly #peers: Peers;

  constructor(time: Time, peers: Peers) {
    this.#time = time;
    this.#peers = peers;
  }

  place(shard: ShardId): Readonly<Place> {
    return this.#places.get(shard) ?? { epoch: toEpoch(0), position: toPosition(0) };
  }

  /** Committed or applied up to here. An older place never replaces a newer one. */
  reached(shard: ShardId, epoch: Epoch, position: Position): void {
    const known = this.#places.get(shard);
    if (known === undefined) this.#places.set(shard, { epoch, position });
    else if (epoch > known.epoch || (epoch === known.epoch && position > known.position)) {
      known.epoch = epoch;
      known.position = position;
    } else return;
    const waiting = this.#waiters.get(shard);
    if (waiting !== undefined)
      for (const waiter of [...waiting])
        if (epoch > waiter.epoch || (epoch === waiter.epoch && position >= waiter.position)) waiter.wake();
    const behind = this.#behind.get(shard);
    if (behind !== undefined) this.#trim(shard, behind);
  }

  /** The database may have gone back in time: nothing is known any more. */
  reset(): void {
    this.#places.clear();
    this.#behind.clear();
  }

  /** Notes how far the owners are said to be; call it now and then. */
  sample(shards: Iterable<ShardId>): void {
    for (const shard of shards) {
      const head = this.#peers.head(shard);
      const here = this.place(shard);
      if (
        head === undefined ||
        head.epoch < here.epoch ||
        (head.epoch === here.epoch && head.position <= here.position)
      )
        continue;
      const behind = this.#behind.get(shard) ?? [];
      const last = behind.at(-1);
      if (last !== undefined && last.epoch === head.epoch && last.position === head.position) continue;
      if (behind.length >= samplesKept) behind.splice(1, 1);
      behind.push({ epoch: head.epoch, position: head.position, at: head.at });
      this.#behind.set(shard, behind);
    }
  }

  /** Behind the owner as it was last heard: 0 when nothing is missing, also when the owner is dead or idle. */
  lag(shard: ShardId): { readonly positions: number; readonly ms: number } {
    const here = this.place(shard);
    const head = this.#peers.head(shard);
    const behind = this.#trim(shard, this.#behind.get(shard) ?? []);
    const oldest = behind[0];
    const positions = head === undefined || head.epoch < here.epoch ? 0 : Math.max(0, head.position - here.position);
    return {
      positions,
      ms: positions === 0 || oldest === undefined ? 0 : Math.max(0, Math.round(this.#time.monotonic() - oldest.at)),
    };
  }

  /** Whether the copy has reached the place. */
  has(shard: ShardId, epoch: Epoch, position: Position): boolean {
    const here = this.place(shard);
    return here.epoch > epoch || (here.epoch === epoch && here.position >= position);
  }

  /** Resolves when the copy has reached the place. @throws Problem deadline_exceeded, also when `signal` aborts */
  async wait(shard: ShardId, epoch: Epoch, position: Position, deadline: number, signal?: AbortSignal): Promise<void> {
    if (this.has(shard, epoch, position)) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        timer.cancel();
        signal?.removeEventListener("abort", done);
        this.#waiters.get(shard)?.delete(waiter);
        resolve();
      };
      const waiter: Waiter = { epoch, position, wake: done };
      const timer = this.#time.after(Math.max(0, deadline - this.#time.monotonic()), done);
      const waiting = this.#waiters.get(shard);
      if (waiting === undefined) this.#waiters.set(shard, new Set([waiter]));
      else waiting.add(waiter);
      signal?.addEventListener("abort", done, { once: true });
      if (signal?.aborted === true) done();
    });
    if (!this.has(shard, epoch, position))
      throw new Problem("deadline_exceeded", "this datacenter has not applied that position in time");
  }

  #trim(shard: ShardId, behind: Sample[]): Sample[] {
    const here = this.place(shard);
    while (
      behind[0] !== undefined &&
      (behind[0].epoch < here.epoch || (behind[0].epoch === here.epoch && behind[0].position <= here.position))
    )
      behind.shift();
    if (behind.length === 0) this.#behind.delete(shard);
    return behind;
  }
}
