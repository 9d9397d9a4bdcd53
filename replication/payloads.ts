import type { Time } from "../infra/clock.js";
import type { Random } from "../infra/random.js";
import type { ObjectRef } from "../infra/nats/object-store.js";
import type { Epoch, ShardId } from "../shards/ids.js";
import type { OutboxRow } from "./outbox.js";
import { decodeRecord, encodeRecord, isOfType } from "./record.js";
import type { Incoming } from "./replica-store.js";

/** The object store as it is needed here: ObjectStore of infra/nats. */
export interface Objects {
  readonly routes: number;
  put(id: string, data: Uint8Array, timeoutMs: number): Promise<ObjectRef>;
  get(ref: ObjectRef, timeoutMs: number, route: number): Promise<Uint8Array>;
}

/** Smaller loads stay in their record. */
const inlineBytes = 32_000;
/** Of the payloads of one stretch of the log that is applied at once. */
const stretchBytes = 2_000_000;
const putMs = 2_000;
const getMs = 1_000;
/** A payload that no site has by then stops its shard. */
const patienceMs = 60_000;

/**
 * Large payloads travel once: the owner's outbox holds them whole, the log a reference, each datacenter fetches them from the nearest
 * replica of the object store. An object is there before its reference is appended; one whose reference never was is nobody's.
 */
export class Payloads {
  /** Since when (monotonic) an object can't be found. */
  readonly #missing = new Map<string, number>();

  constructor(
    private readonly objects: Objects,
    private readonly time: Time,
    private readonly random: Random,
  ) {}

  /** Records as the log gets them. */
  readonly outgoing = async (
    shard: ShardId,
    epoch: Epoch,
    rows: readonly OutboxRow[],
  ): Promise<readonly OutboxRow[]> => {
    if (!rows.some(({ record }) => isLarge(record))) return rows;
    return Promise.all(
      rows.map(async (row): Promise<OutboxRow> => {
        if (!isLarge(row.record)) return row;
        const record = decodeRecord(row.record);
        const payload = record.load?.payload;
        if (record.load === undefined || !(payload instanceof Uint8Array)) return row;
        // The id says when the object is of no use any more: see `isPast`.
        const id = `${shard}-${epoch}-${row.position}-${this.random.token(8)}`;
        const reference = await this.objects.put(id, payload, putMs);
        return { ...row, record: encodeRecord({ ...record, load: { ...record.load, payload: reference } }) };
      }),
    );
  };

  /** Messages with their payloads, as their owner wrote them; fewer of them where the payloads are many. @throws Error to try again */
  readonly incoming = async (messages: readonly Incoming[]): Promise<readonly Incoming[]> => {
    const out: Incoming[] = [];
    let bytes = 0;
    for (const message of messages) {
      if (message.batch === null || !message.batch.records.some((record) => isOfType(record, "cluster.load"))) {
        out.push(message);
        continue;
      }
      if (bytes >= stretchBytes) break;
      try {
        const records = await Promise.all(message.batch.records.map((record) => this.#whole(record)));
        bytes += records.reduce((sum, record) => sum + record.length, 0);
        out.push({ ...message, batch: { ...message.batch, records } });
      } catch (error) {
        if (error instanceof Lost) {
          out.push({
            sequence: message.sequence,
            shard: message.shard,
            header: null,
            batch: null,
            fault: error.message,
          });
          continue;
        }
        // What came before it is applied; it is tried again with the next stretch.
        if (out.length > 0) break;
        throw error;
      }
    }
    return out;
  };

  async #whole(bytes: Uint8Array): Promise<Uint8Array> {
    if (!isOfType(bytes, "cluster.load")) return bytes;
    const record = decodeRecord(bytes);
    if (record.load === undefined || record.load.payload instanceof Uint8Array) return bytes;
    const payload = await this.#fetch(record.load.payload);
    return encodeRecord({ ...record, load: { ...record.load, payload } });
  }

  async #fetch(reference: ObjectRef): Promise<Uint8Array> {
    let failure: unknown;
    for (let route = 0; route < this.objects.routes; route++) {
      try {
        const data = await this.objects.get(reference, getMs, route);
        this.#missing.delete(reference.id);
        return data;
      } catch (error) {
        failure = error;
      }
    }
    const since = this.#missing.get(reference.id) ?? this.time.monotonic();
    this.#missing.set(reference.id, since);
    if (this.time.monotonic() - since < patienceMs) throw failure;
    this.#missing.delete(reference.id);
    throw new Lost(`the payload ${reference.id} of a load can't be found at any site`);
  }
}

class Lost extends Error {}

const isLarge = (record: Uint8Array): boolean => record.length > inlineBytes && isOfType(record, "cluster.load");

/** Whether an object is of no use: the log's oldest message of its shard begins behind it. Of other names nothing is said. */
export function isPast(
  id: string,
  oldest: { readonly shard: number; readonly epoch: number; readonly first: number },
): boolean {
  const match = /^(\d+)-(\d+)-(\d+)-/.exec(id);
  if (match === null || Number(match[1]) !== oldest.shard) return false;
  const [at, position] = [Number(match[2]), Number(match[3])];
  return at < oldest.epoch || (at === oldest.epoch && position < oldest.first);
}
