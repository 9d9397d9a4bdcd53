import {
  append,
  createStream,
  deleteStream,
  firstSince,
  purgeBelow,
  readFrom,
  readLast,
  readOne,
  removePeer,
  scaleStream,
  streamState,
  stepDown,
  type AppendAnswer,
  type Stored,
  type StreamState,
} from "./streams.js";
import type { Link } from "./messaging.js";
import { ObjectStore } from "./object-store.js";

/** Bounds of one read. */
export interface ReadLimits {
  readonly batch: number;
  readonly maxBytes: number;
  readonly timeoutMs: number;
}

/** A message of the log, with the shard that its subject names. */
export interface ShardMessage extends Stored {
  readonly shard: number;
}

/** A partition's number, the control stream (null), or the object store. */
export type GroupStream = number | null | "objects";

const withShard = (stored: Stored): ShardMessage => ({
  ...stored,
  shard: Number(stored.subject.slice(stored.subject.lastIndexOf(".") + 1)),
});
const maybe = (stored: Stored | undefined): ShardMessage | undefined =>
  stored === undefined ? undefined : withShard(stored);

/**
 * The log's streams: names, subjects, and several ways to reach them. Route 0 is the own site's server (or the one that
 * the connection fell back to), the others go through the other sites' servers (section 3: an append that finds no responder).
 */
export class LogStreams {
  /** Large payloads, of which the log carries references. */
  readonly objects: ObjectStore;

  constructor(
    readonly group: string,
    readonly generation: number,
    private readonly links: readonly Link[],
  ) {
    this.objects = new ObjectStore(`HOTHOT_${group}_g${generation}`, links);
  }

  get routes(): number {
    return this.links.length;
  }

  stream(partition: number): string {
    return `HOTHOT_${this.group}_g${this.generation}_p${partition}`;
  }

  subject(partition: number, shard: number): string {
    return `hothot.${this.group}.g${this.generation}.p${partition}.${shard}`;
  }

  append(
    partition: number,
    shard: number,
    data: Uint8Array,
    expected: number,
    timeoutMs: number,
    route: number,
  ): Promise<AppendAnswer> {
    return append(this.#link(route), this.subject(partition, shard), data, expected, timeoutMs);
  }

  async readOne(
    partition: number,
    sequence: number,
    timeoutMs: number,
    route: number,
  ): Promise<ShardMessage | undefined> {
    return maybe(await readOne(this.#link(route), this.stream(partition), sequence, timeoutMs));
  }

  async readLast(
    partition: number,
    shard: number,
    timeoutMs: number,
    route: number,
  ): Promise<ShardMessage | undefined> {
    return maybe(await readLast(this.#link(route), this.stream(partition), this.subject(partition, shard), timeoutMs));
  }

  async readFrom(partition: number, sequence: number, limits: ReadLimits, route: number): Promise<ShardMessage[]> {
    return (await readFrom(this.#link(route), this.stream(partition), sequence, limits)).map(withShard);
  }

  /** The control subject's stream holds the site set. */
  get controlStream(): string {
    return `HOTHOT_${this.group}_g${this.generation}_control`;
  }

  get controlSubject(): string {
    return `hothot.${this.group}.g${this.generation}.control.sites`;
  }

  readControl(timeoutMs: number, route: number): Promise<Stored | undefined> {
    return readLast(this.#link(route), this.controlStream, this.controlSubject, timeoutMs);
  }

  appendControl(data: Uint8Array, expected: number, timeoutMs: number, route: number): Promise<AppendAnswer> {
    return append(this.#link(route), this.controlSubject, data, expected, timeoutMs);
  }

  /** Creates what is missing. @throws StreamError, NoAnswer */
  async create(partitions: number, replicas: number, timeoutMs: number): Promise<void> {
    await createStream(this.#link(0), this.controlStream, [this.controlSubject], replicas, timeoutMs);
    await this.objects.create(replicas, timeoutMs);
    for (let partition = 0; partition < partitions; partition++)
      await createStream(
        this.#link(0),
        this.stream(partition),
        [`hothot.${this.group}.g${this.generation}.p${partition}.*`],
        replicas,
        timeoutMs,
      );
  }

  /** Removes all streams of this generation that are there. @throws StreamError, NoAnswer */
  async destroy(partitions: number, timeoutMs: number): Promise<void> {
    const names = Array.from({ length: partitions }, (_, partition) => this.stream(partition));
    for (const name of [this.controlStream, this.objects.stream, ...names])
      await deleteStream(this.#link(0), name, timeoutMs);
  }

  stateOf(which: GroupStream, timeoutMs: number): Promise<StreamState | undefined> {
    return streamState(this.#link(0), this.#name(which), timeoutMs);
  }

  scale(which: GroupStream, replicas: number, timeoutMs: number): Promise<void> {
    return scaleStream(this.#link(0), this.#name(which), replicas, timeoutMs);
  }

  removePeer(which: GroupStream, server: string, timeoutMs: number): Promise<void> {
    return removePeer(this.#link(0), this.#name(which), server, timeoutMs);
  }

  #name(which: GroupStream): string {
    if (which === "objects") return this.objects.stream;
    return which === null ? this.controlStream : this.stream(which);
  }

  state(partition: number, timeoutMs: number): Promise<StreamState | undefined> {
    return streamState(this.#link(0), this.stream(partition), timeoutMs);
  }

  /** The oldest message of a shard that the log still holds. @throws NoAnswer | NoResponders */
  async readFirst(partition: number, shard: number, timeoutMs: number): Promise<ShardMessage | undefined> {
    const found = await readFrom(this.#link(0), this.stream(partition), 1, {
      batch: 1,
      maxBytes: 1_000_000,
      timeoutMs,
      subject: this.subject(partition, shard),
    });
    return maybe(found[0]);
  }

  firstSince(partition: number, since: Date, timeoutMs: number): Promise<number | undefined> {
    return firstSince(this.#link(0), this.stream(partition), since, timeoutMs);
  }

  purgeBelow(partition: number, sequence: number, timeoutMs: number): Promise<number> {
    return purgeBelow(this.#link(0), this.stream(partition), sequence, timeoutMs);
  }

  stepDown(partition: number, preferred: string, timeoutMs: number): Promise<void> {
    return stepDown(this.#link(0), this.stream(partition), preferred, timeoutMs);
  }

  #link(route: number): Link {
    const link = this.links[route % this.links.length];
    if (link === undefined) throw new RangeError("no NATS connection");
    return link;
  }
}
