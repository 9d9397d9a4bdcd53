import { pack, unpack } from "msgpackr";
import type { Timers } from "../infra/clock.js";
import type { Epoch, Partition, Position, ShardId } from "../shards/ids.js";
import type { OfferedTask } from "./jobs/operations.js";

/** Messages between the processes of one datacenter. */
export interface Inside {
  /** Shards whose head changed. */
  readonly heads?: readonly number[];
  /** Shards with something to publish. */
  readonly wake?: readonly number[];
  /** shard, epoch, position, mark; flattened. */
  readonly marks?: readonly number[];
  /** The log holds this message of the partition, and whoever reads it has not heard: partition, sequence. */
  readonly tail?: readonly [number, number];
  /** Tasks that became available by a write of the sender. */
  readonly offered?: readonly OfferedTask[];
}

/** A batch that is larger is read from the log. */
const pushedBytes = 32_768;
/** What one word carries at most. */
const wordBytes = 262_144;

/** The log holds this message; with its bytes where they are few. */
export interface Hint {
  readonly partition: Partition;
  readonly sequence: number;
  readonly shard: number;
  readonly data: Uint8Array | null;
}

/** Tells the other datacenters what the log holds, with the batch itself where it is small: gathered over one turn of the event loop. */
export class Hints {
  readonly #heard = new Map<string, () => void>();
  #pending: Hint[] = [];
  #bytes = 0;

  constructor(
    private readonly o: {
      readonly group: string;
      readonly generation: number;
      readonly site: string;
      readonly link: {
        publish(subject: string, data: Uint8Array): void;
        subscribe(subject: string, handler: (message: { data: Uint8Array }) => void): () => void;
      };
      readonly time: Timers;
      readonly received: (hint: Hint) => void;
    },
  ) {}

  add(partition: Partition, sequence: number, shard: number, data: Uint8Array | null = null): void {
    if (this.#pending.length === 0) this.o.time.soon(() => this.#send());
    const carried = data !== null && data.length <= pushedBytes ? data : null;
    this.#pending.push({ partition, sequence, shard, data: carried });
    this.#bytes += carried?.length ?? 0;
    if (this.#bytes > wordBytes) this.#send();
  }

  /** From now on those of these datacenters are heard, but not the own ones: they would be news to nobody. */
  listen(datacenters: readonly string[]): void {
    for (const [dc, end] of this.#heard)
      if (!datacenters.includes(dc)) {
        end();
        this.#heard.delete(dc);
      }
    for (const dc of datacenters)
      if (dc !== this.o.site && !this.#heard.has(dc))
        this.#heard.set(
          dc,
          this.o.link.subscribe(this.#subject(dc), (message) => this.#receive(message.data)),
        );
  }

  #subject(dc: string): string {
    return `hothot.${this.o.group}.g${this.o.generation}.tail.${dc}`;
  }

  #receive(data: Uint8Array): void {
    const list = unpack(data) as unknown[];
    for (let i = 0; i + 3 < list.length; i += 4)
      this.o.received({
        partition: list[i] as Partition,
        sequence: list[i + 1] as number,
        shard: list[i + 2] as number,
        data: list[i + 3] as Uint8Array | null,
      });
  }

  #send(): void {
    if (this.#pending.length === 0) return;
    const list = this.#pending.flatMap(({ partition, sequence, shard, data }) => [partition, sequence, shard, data]);
    this.#pending = [];
    this.#bytes = 0;
    this.o.link.publish(this.#subject(this.o.site), pack(list));
  }
}

/** Between the processes of one datacenter; silent while there is only one. */
export class InsideBus {
  #marks: number[] = [];

  constructor(
    private readonly o: {
      readonly subject: string;
      readonly link: {
        publish(subject: string, data: Uint8Array): void;
        subscribe(subject: string, handler: (message: { data: Uint8Array }) => void): () => void;
      };
      readonly time: Timers;
      readonly wanted: () => boolean;
      readonly received: (message: Inside) => void;
    },
  ) {}

  start(): void {
    this.o.link.subscribe(this.o.subject, (message) => this.o.received(unpack(message.data) as Inside));
  }

  send(message: Inside): void {
    if (this.o.wanted()) this.o.link.publish(this.o.subject, pack(message));
  }

  mark(shard: ShardId, epoch: Epoch, mark: Position): void {
    if (!this.o.wanted()) return;
    if (this.#marks.length === 0)
      this.o.time.soon(() => {
        const marks = this.#marks;
        this.#marks = [];
        this.send({ marks });
      });
    this.#marks.push(shard, epoch, mark);
  }
}
