import { createHash } from "node:crypto";
import type { Link } from "./messaging.js";
import { append, callApi, readFrom, StreamError } from "./streams.js";

/** Where an object's bytes are, and what they are. */
export interface ObjectRef {
  /** Of its chunks; never used twice. */
  readonly id: string;
  /** Of its first chunk in the store's stream. */
  readonly sequence: number;
  readonly chunks: number;
  readonly bytes: number;
  /** SHA-256, base64url. */
  readonly digest: string;
}

/** The object is not whole where it was looked for; perhaps it is elsewhere, or later. */
export class ObjectMissing extends Error {
  constructor(id: string) {
    super(`object ${id} can't be found whole`);
    this.name = "ObjectMissing";
  }
}

const chunkBytes = 256 * 1024;
const tries = 5;

/**
 * Objects in JetStream's own layout of an object store (ADR-20), so that its tools show them. Read by direct gets from the nearest
 * replica, never by a consumer, whose leader may be in a dead site.
 */
export class ObjectStore {
  constructor(
    private readonly bucket: string,
    private readonly links: readonly Link[],
  ) {}

  get stream(): string {
    return `OBJ_${this.bucket}`;
  }

  /** Nothing happens when it is there. @throws StreamError, NoAnswer */
  async create(replicas: number, timeoutMs: number): Promise<void> {
    await callApi(
      this.#link(0),
      `STREAM.CREATE.${this.stream}`,
      {
        name: this.stream,
        subjects: [`$O.${this.bucket}.C.>`, `$O.${this.bucket}.M.>`],
        retention: "limits",
        storage: "file",
        discard: "new",
        num_replicas: replicas,
        allow_rollup_hdrs: true,
        allow_direct: true,
        duplicate_window: 100_000_000,
      },
      timeoutMs,
    );
  }

  /** Stores bytes under an id that was never used. @throws Error when they are not certainly stored; what is there then is nobody's */
  async put(id: string, data: Uint8Array, timeoutMs: number): Promise<ObjectRef> {
    const subject = `$O.${this.bucket}.C.${id}`;
    const digest = createHash("sha256").update(data).digest("base64url");
    const chunks = Math.max(1, Math.ceil(data.length / chunkBytes));
    let first = 0;
    // Each chunk behind the one before: an answer that was lost is settled by sending the chunk again.
    for (let index = 0, expected = 0; index < chunks; index++) {
      expected = await this.#append(
        subject,
        data.subarray(index * chunkBytes, (index + 1) * chunkBytes),
        expected,
        timeoutMs,
      );
      if (index === 0) first = expected;
    }
    const meta = {
      name: id,
      bucket: this.bucket,
      nuid: id,
      size: data.length,
      chunks,
      digest: `SHA-256=${digest}`,
      mtime: "",
    };
    const name = Buffer.from(id).toString("base64url");
    await this.#append(`$O.${this.bucket}.M.${name}`, Buffer.from(JSON.stringify(meta)), 0, timeoutMs);
    return { id, sequence: first, chunks, bytes: data.length, digest };
  }

  /** @throws ObjectMissing, NoAnswer, NoResponders */
  async get(ref: ObjectRef, timeoutMs: number, route: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (let next = ref.sequence; parts.length < ref.chunks;) {
      const found = await readFrom(this.#link(route), this.stream, next, {
        batch: ref.chunks - parts.length,
        maxBytes: 4_000_000,
        timeoutMs,
        subject: `$O.${this.bucket}.C.${ref.id}`,
      });
      const last = found.at(-1);
      if (last === undefined) throw new ObjectMissing(ref.id);
      parts.push(...found.map((message) => message.data));
      next = last.sequence + 1;
    }
    const data = parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts);
    if (data.length !== ref.bytes || createHash("sha256").update(data).digest("base64url") !== ref.digest)
      throw new ObjectMissing(ref.id);
    return data;
  }

  get routes(): number {
    return this.links.length;
  }

  /** Ids of all objects, whole or not. @throws StreamError, NoAnswer */
  async list(timeoutMs: number): Promise<string[]> {
    const prefix = `$O.${this.bucket}.C.`;
    const ids: string[] = [];
    for (let offset = 0; ;) {
      const info = await callApi<{ total?: number; state: { subjects?: Record<string, number> } }>(
        this.#link(0),
        `STREAM.INFO.${this.stream}`,
        { subjects_filter: `${prefix}>`, offset },
        timeoutMs,
      );
      const found = Object.keys(info.state.subjects ?? {});
      ids.push(...found.map((subject) => subject.slice(prefix.length)));
      offset += found.length;
      if (found.length === 0 || offset >= (info.total ?? 0)) return ids;
    }
  }

  /** @throws StreamError, NoAnswer */
  async remove(id: string, timeoutMs: number): Promise<void> {
    const name = Buffer.from(id).toString("base64url");
    for (const filter of [`$O.${this.bucket}.C.${id}`, `$O.${this.bucket}.M.${name}`])
      await callApi(this.#link(0), `STREAM.PURGE.${this.stream}`, { filter }, timeoutMs);
  }

  async #append(subject: string, data: Uint8Array, expected: number, timeoutMs: number): Promise<number> {
    for (let n = 0; n < tries; n++) {
      const answer = await append(this.#link(n), subject, data, expected, timeoutMs);
      if (answer.kind === "stored") return answer.sequence;
      // Nobody else writes under this id: what stands there is our own earlier try.
      if (answer.kind === "refused" && answer.lastSequence > expected) return answer.lastSequence;
      await new Promise((resolve) => setTimeout(resolve, 20 * (n + 1)));
    }
    throw new StreamError(0, `${this.stream} did not take an object`);
  }

  #link(route: number): Link {
    const link = this.links[route % this.links.length];
    if (link === undefined) throw new RangeError("no NATS connection");
    return link;
  }
}
