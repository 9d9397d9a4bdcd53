import { pack, unpack } from "msgpackr";
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

export const hintSubject = (group: string): string => `hothot.${group}.tail`;

/** Tells all datacenters what the log holds: a hint only, gathered over one turn of the event loop. */
export class HintSender {
  readonly #pending = new Map<Partition, number>();

  constructor(
    private readonly group: string,
    private readonly link: { publish(subject: string, data: Uint8Array): void },
  ) {}

  add(partition: Partition, sequence: number): void {
    if (this.#pending.size === 0)
      setImmediate(() => {
        const list = [...this.#pending].flat();
        this.#pending.clear();
        this.link.publish(hintSubject(this.group), pack(list));
      });
    this.#pending.set(partition, Math.max(sequence, this.#pending.get(partition) ?? 0));
  }
}

/** Between the processes of one datacenter; silent while there is only one. */
export class InsideBus {
  #marks: number[] = [];

  constructor(
    private readonly subject: string,
    private readonly link: {
      publish(subject: string, data: Uint8Array): void;
      subscribe(subject: string, handler: (message: { data: Uint8Array }) => void): () => void;
    },
    private readonly wanted: () => boolean,
    private readonly received: (message: Inside) => void,
  ) {}

  start(): void {
    this.link.subscribe(this.subject, (message) => this.received(unpack(message.data) as Inside));
  }

  send(message: Inside): void {
    if (this.wanted()) this.link.publish(this.subject, pack(message));
  }

  mark(shard: ShardId, epoch: Epoch, mark: Position): void {
    if (!this.wanted()) return;
    if (this.#marks.length === 0)
      setImmediate(() => {
        const marks = this.#marks;
        this.#marks = [];
        this.send({ marks });
      });
    this.#marks.push(shard, epoch, mark);
  }
}
