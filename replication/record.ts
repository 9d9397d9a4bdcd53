import { Packr } from "msgpackr";
import { crc32 } from "node:zlib";
import type { ObjectRef } from "../infra/nats/object-store.js";
import { epoch, position, shardId, type Epoch, type Position, type ShardId, type SiteName } from "../shards/ids.js";
import type { ClusterRow, DocumentRow, JobRow, KeyRow, WorkerRow } from "./entities.js";
import type { RecordType, Trace } from "./work.js";

/** Version of the format; a reader refuses a newer one. README.md describes it byte for byte. */
export const formatVersion = 1;
const magic = 0x4848;
const fixedLength = 49;

export type BatchKind = "records" | "open" | "statement";
const kinds: readonly BatchKind[] = ["records", "open", "statement"];

/** Header of a log message: one batch of records of one shard and one epoch, or an ownership record. */
export interface BatchHeader {
  readonly kind: BatchKind;
  readonly generation: number;
  readonly shard: ShardId;
  readonly epoch: Epoch;
  readonly owner: SiteName;
  /** 16 hex digits; tells our own append from another's. */
  readonly batchId: string;
  /** Of the first record; for open and statement one more than the last position that they state. */
  readonly first: Position;
  readonly count: number;
  /** Milliseconds since 1970, the owner's clock. */
  readonly committedAt: number;
}

export interface EpochEnd {
  readonly epoch: Epoch;
  readonly owner: SiteName;
  readonly last: Position;
}

export type OpenKind = "initial" | "takeover" | "switchover" | "drain" | "failback" | "rebalance";

/** Body of `open` and `statement`. */
export interface OpenBody {
  readonly from: SiteName | null;
  readonly kind: OpenKind;
  readonly reason: string;
  readonly by: string;
  /** The owner stays the same and nothing was forgotten: attempts of jobs go on. */
  readonly sameTenure: boolean;
  /** The closing that the sender's database stood under when this was sent (rule i); 0: none, or a takeover. */
  readonly closing: number;
  readonly phasesMs: Readonly<Record<string, number>>;
  readonly drained: number;
  readonly epochEnds: readonly EpochEnd[];
}

export interface Batch {
  readonly header: BatchHeader;
  /** Encoded records, of kind `records`. */
  readonly records: readonly Uint8Array[];
  readonly open: OpenBody | null;
}

/** Last position that a log message holds or states. */
export const lastOf = (header: BatchHeader): Position => position(header.first + header.count - 1);

/** The message can't be read by this version, or is damaged: its shard stops with an alarm, nothing is skipped. */
export class UnreadableRecord extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UnreadableRecord";
  }
}

/** One replicated fact, decoded. */
export interface LogRecord {
  readonly type: RecordType;
  readonly at: number;
  readonly cluster?: Unplaced<ClusterRow>;
  readonly job?: Unplaced<JobRow>;
  readonly worker?: Unplaced<WorkerRow>;
  readonly key?: Unplaced<KeyRow>;
  readonly audit?: unknown;
  /** Of a shard's rows after all records before this one, of type `digest`. */
  readonly digest?: number;
  readonly document?: Unplaced<DocumentRow>;
  readonly trace?: Trace;
  readonly load?: Load;
}

/** Many clusters under one position: the text of a COPY, or where that is. */
export interface Load {
  readonly rows: number;
  /** None of the rows was there before, not even as a tombstone. */
  readonly fresh: boolean;
  /** What the load changed in the shard's digest. */
  readonly delta: number;
  readonly payload: Uint8Array | ObjectRef;
}
type Unplaced<T> = Omit<T, "changedEpoch" | "changedPosition">;

const packr = new Packr({ useRecords: false, encodeUndefinedAsNil: true, int64AsType: "number" });

const recordTypes: readonly RecordType[] = [
  "cluster.put",
  "cluster.delete",
  "job.start",
  "job.restart",
  "job.checkpoint",
  "job.change",
  "job.end",
  "worker.put",
  "worker.delete",
  "digest",
  "audit",
  "document.put",
  "key",
  "cluster.load",
];

const clusterFields = [
  "tenant",
  "id",
  "shard",
  "status",
  "name",
  "spec",
  "state",
  "labels",
  "expiresAt",
  "version",
  "createdAt",
  "updatedAt",
  "deleted",
] as const;
const jobFields = [
  "id",
  "shard",
  "tenant",
  "clusterId",
  "type",
  "input",
  "status",
  "attempt",
  "epoch",
  "stages",
  "checkpoint",
  "startedIn",
  "runsIn",
  "notBefore",
  "createdAt",
  "finishedAt",
  "error",
] as const;
const workerFields = ["id", "shard", "tenant", "capacity", "labels", "registeredAt", "deleted"] as const;
const documentFields = ["kind", "id", "shard", "body", "updatedAt", "deleted"] as const;
const keyFields = ["tenant", "key", "shard", "fingerprint", "status", "body", "version", "createdAt"] as const;
/** Times travel as milliseconds. */
const times = new Set(["expiresAt", "createdAt", "updatedAt", "notBefore", "finishedAt", "registeredAt"]);

function toList(row: object | undefined, fields: readonly string[]): unknown[] | null {
  if (row === undefined) return null;
  const source = row as Record<string, unknown>;
  return fields.map((field) => {
    const value = source[field];
    return times.has(field) && typeof value === "string" ? Date.parse(value) : (value ?? null);
  });
}

function fromList<T>(list: unknown, fields: readonly string[], extra: object = {}): T | undefined {
  if (list === null || list === undefined) return undefined;
  if (!Array.isArray(list) || list.length < fields.length)
    throw new UnreadableRecord("a row is shorter than its format");
  const row: Record<string, unknown> = { ...extra };
  fields.forEach((field, index) => {
    const value: unknown = list[index];
    row[field] = times.has(field) && typeof value === "number" ? new Date(value).toISOString() : value;
  });
  return row as T;
}

export function encodeRecord(record: LogRecord): Uint8Array {
  const type = recordTypes.indexOf(record.type);
  if (type < 0) throw new TypeError(`unknown record type ${record.type}`);
  const { document, trace, load } = record;
  const last = load !== undefined ? 3 : trace !== undefined ? 2 : document !== undefined ? 1 : 0;
  return packr.pack([
    type,
    record.at,
    toList(record.cluster, clusterFields),
    toList(record.job, jobFields),
    toList(record.worker, workerFields),
    toList(record.key, keyFields),
    record.digest ?? record.audit ?? null,
    // Most records have none of these, and are shorter by it.
    ...[toList(document, documentFields), traceList(trace), loadList(load)].slice(0, last),
  ]);
}

/** @throws UnreadableRecord for a type that this version does not know, or damage. */
export function decodeRecord(bytes: Uint8Array): LogRecord {
  let list: unknown;
  try {
    list = packr.unpack(bytes);
  } catch (error) {
    throw new UnreadableRecord(`a record is damaged: ${(error as Error).message}`);
  }
  if (!Array.isArray(list) || list.length < 7) throw new UnreadableRecord("a record is shorter than its format");
  const type = recordTypes[list[0] as number];
  if (type === undefined) throw new UnreadableRecord(`record type ${String(list[0])} is newer than this program`);
  const cluster = fromList<Unplaced<ClusterRow>>(list[2], clusterFields);
  const job = fromList<Unplaced<JobRow>>(list[3], jobFields, { stage: null });
  const worker = fromList<Unplaced<WorkerRow>>(list[4], workerFields);
  const key = fromList<Unplaced<KeyRow>>(list[5], keyFields);
  const document = fromList<Unplaced<DocumentRow>>(list[7], documentFields);
  const trace = traceOf(list[8]);
  const load = loadOf(list[9]);
  return {
    type,
    at: list[1] as number,
    ...(cluster === undefined ? {} : { cluster }),
    ...(job === undefined ? {} : { job }),
    ...(worker === undefined ? {} : { worker }),
    ...(key === undefined ? {} : { key }),
    ...(list[6] === null ? {} : type === "digest" ? { digest: Number(list[6]) } : { audit: list[6] }),
    ...(document === undefined ? {} : { document }),
    ...(trace === undefined ? {} : { trace }),
    ...(load === undefined ? {} : { load }),
  };
}

/** Whether this version can read a log message and every record in it. */
export function isReadable(data: Uint8Array): boolean {
  try {
    for (const record of decodeBatch(data).records) decodeRecord(record);
    return true;
  } catch (error) {
    if (error instanceof UnreadableRecord) return false;
    throw error;
  }
}

/** Whether an encoded record is of this type; without decoding it. */
export const isOfType = (bytes: Uint8Array, type: RecordType): boolean => bytes[1] === recordTypes.indexOf(type);

function traceList(trace: Trace | undefined): unknown {
  if (trace === undefined) return null;
  return trace.traceparent === null ? trace.requestId : [trace.requestId, trace.traceparent];
}

function loadList(load: Load | undefined): unknown {
  if (load === undefined) return null;
  const { rows, fresh, delta, payload } = load;
  if (payload instanceof Uint8Array) return [rows, fresh, delta, payload];
  return [rows, fresh, delta, [payload.id, payload.sequence, payload.chunks, payload.bytes, payload.digest]];
}

function loadOf(value: unknown): Load | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value) || value.length < 4) throw new UnreadableRecord("a load is shorter than its format");
  const [rows, fresh, delta, payload] = value as [number, boolean, number, unknown];
  if (payload instanceof Uint8Array) return { rows, fresh, delta, payload };
  if (!Array.isArray(payload) || payload.length < 5)
    throw new UnreadableRecord("a reference is shorter than its format");
  const [id, sequence, chunks, bytes, digest] = payload as [string, number, number, number, string];
  return { rows, fresh, delta, payload: { id, sequence, chunks, bytes, digest } };
}

function traceOf(value: unknown): Trace | undefined {
  if (typeof value === "string") return { requestId: value, traceparent: null };
  if (!Array.isArray(value)) return undefined;
  const [requestId, traceparent] = value as unknown[];
  return { requestId: String(requestId), traceparent: typeof traceparent === "string" ? traceparent : null };
}

/** A whole log message. */
export function encodeBatch(batch: Batch): Uint8Array {
  const { header } = batch;
  const owner = Buffer.from(header.owner, "utf8");
  const bodies: Uint8Array[] = [];
  if (batch.open === null) {
    for (const record of batch.records) {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(record.length);
      bodies.push(length, record);
    }
  } else bodies.push(packr.pack(batch.open));
  const head = Buffer.alloc(fixedLength + owner.length);
  head.writeUInt16BE(magic, 0);
  head.writeUInt8(formatVersion, 2);
  head.writeUInt8(kinds.indexOf(header.kind), 3);
  head.writeUInt32BE(header.generation, 4);
  head.writeUInt32BE(header.shard, 8);
  head.writeBigUInt64BE(BigInt(header.epoch), 12);
  head.writeBigUInt64BE(BigInt(header.first), 20);
  head.writeUInt32BE(header.count, 28);
  head.writeBigUInt64BE(BigInt(Math.floor(header.committedAt)), 32);
  head.write(header.batchId, 40, 8, "hex");
  head.writeUInt8(owner.length, 48);
  owner.copy(head, fixedLength);
  const whole = Buffer.concat([head, ...bodies, Buffer.alloc(4)]);
  whole.writeUInt32BE(crc32(whole.subarray(0, -4)), whole.length - 4);
  return whole;
}

/** @throws UnreadableRecord */
export function decodeHeader(data: Uint8Array): BatchHeader {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  if (bytes.length < fixedLength + 4 || bytes.readUInt16BE(0) !== magic)
    throw new UnreadableRecord("not a log message of ours");
  const version = bytes.readUInt8(2);
  if (version > formatVersion)
    throw new UnreadableRecord(`format version ${version} is newer than this program's ${formatVersion}`);
  if (crc32(bytes.subarray(0, -4)) !== bytes.readUInt32BE(bytes.length - 4))
    throw new UnreadableRecord("the checksum of a log message differs");
  const kind = kinds[bytes.readUInt8(3)];
  if (kind === undefined) throw new UnreadableRecord(`message kind ${bytes.readUInt8(3)} is newer than this program`);
  const ownerLength = bytes.readUInt8(48);
  return {
    kind,
    generation: bytes.readUInt32BE(4),
    shard: shardId(bytes.readUInt32BE(8)),
    epoch: epoch(Number(bytes.readBigUInt64BE(12))),
    first: position(Number(bytes.readBigUInt64BE(20))),
    count: bytes.readUInt32BE(28),
    committedAt: Number(bytes.readBigUInt64BE(32)),
    batchId: bytes.toString("hex", 40, 48),
    owner: bytes.toString("utf8", fixedLength, fixedLength + ownerLength),
  };
}

/** @throws UnreadableRecord */
export function decodeBatch(data: Uint8Array): Batch {
  const header = decodeHeader(data);
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  let at = fixedLength + Buffer.byteLength(header.owner, "utf8");
  const end = bytes.length - 4;
  if (header.kind !== "records")
    return { header, records: [], open: packr.unpack(bytes.subarray(at, end)) as OpenBody };
  const records: Uint8Array[] = [];
  while (at < end) {
    const length = at + 4 <= end ? bytes.readUInt32BE(at) : end;
    if (at + 4 + length > end) throw new UnreadableRecord("a record goes beyond its batch");
    records.push(bytes.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  if (records.length !== header.count) throw new UnreadableRecord("a batch does not hold as many records as it says");
  return { header, records, open: null };
}
