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

/** Tells all datacenters what the log holds, with the batch itself where it is small: gathered over one turn of the event loop. */
export class Hints {
  readonly #subject: string;
  #pending: Hint[] = [];
  #bytes = 0;

  constructor(
    group: string,
    generation: number,
    private readonly link: {
      publish(subject: string, data: Uint8Array): void;
      subscribe(subject: string, handler: (message: { data: Uint8Array }) => void): () => void;
    },
    private readonly time: Timers,
  ) {
    this.#subject = `hothot.${group}.g${generation}.tail`;
  }

  add(partition: Partition, sequence: number, shard: number, data: Uint8Array | null = null): void {
    if (this.#pending.length === 0) this.time.soon(() => this.#send());
    const carried = data !== null && data.length <= pushedBytes ? data : null;
    this.#pending.push({ partition, sequence, shard, data: carried });
    this.#bytes += carried?.length ?? 0;
    if (this.#bytes > wordBytes) this.#send();
  }

  subscribe(handler: (hint: Hint) => void): void {
    this.link.subscribe(this.#subject, (message) => {
      const list = unpack(message.data) as unknown[];
      for (let i = 0; i + 3 < list.length; i += 4)
        handler({
          partition: list[i] as Partition,
          sequence: list[i + 1] as number,
          shard: list[i + 2] as number,
          data: list[i + 3] as Uint8Array | null,
        });
    });
  }

  #send(): void {
    if (this.#pending.length === 0) return;
    const list = this.#pending.flatMap(({ partition, sequence, shard, data }) => [partition, sequence, shard, data]);
    this.#pending = [];
    this.#bytes = 0;
    this.link.publish(this.#subject, pack(list));
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
