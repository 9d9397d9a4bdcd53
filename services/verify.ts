import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import { digestBuckets, digestRows, digestShards, type ShardDigest } from "../replication/digest.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import type { VerifyLine } from "./api.js";

const subject = (group: string, dc: SiteName): string => `hothot.${group}.dc.${dc}.digest`;
type Question =
  | { readonly shards: readonly number[] | null }
  /** Digests of a shard's buckets; of the rows of one bucket. */
  | { readonly buckets: number }
  | { readonly rows: number; readonly bucket: number }
  /** Put the digests of your shards into the log. */
  | { readonly tell: readonly number[] };

const askMs = 9_000;
/** How long copies may take to stand at the same position. */
const alignMs = 10_000;
/** Shards that are written all the time never do: they are compared where the log has their digest. */
const tellMs = 1_500;
const pauseMs = 100;
const idsNamed = 100;

/** Compares the copies of all datacenters, recomputed from their rows, shard by shard, where they stand at the same position. */
export class Verifier implements Service {
  readonly name = "verifier";
  #unsubscribe: (() => void) | undefined;

  constructor(
    private readonly o: {
      readonly group: string;
      readonly site: SiteName;
      readonly shards: number;
      readonly database: Database;
      readonly messenger: Messenger;
      readonly time: Time;
      readonly log: Logger;
      readonly datacenters: () => readonly SiteName[];
      readonly owner: (shard: number) => SiteName | null;
      readonly onMismatch: () => void;
      readonly tell: (shards: readonly ShardId[]) => Promise<ReadonlyMap<number, number>>;
    },
  ) {}

  async start(): Promise<void> {
    this.#unsubscribe = this.o.messenger.subscribe(
      subject(this.o.group, this.o.site),
      (message) => {
        void this.#answer(unpack(message.data) as Question)
          .then((answer) => message.respond(pack(answer)))
          .catch((error: unknown) => this.o.log.warn("a digest could not be given", { error: asError(error) }));
      },
      { queue: "digest" },
    );
  }

  async stop(): Promise<void> {
    this.#unsubscribe?.();
  }

  /** A line per shard and copy, in shard order; a copy that does not answer, or never stands at its owner's position, is not equal. */
  async *run(signal: AbortSignal): AsyncIterable<VerifyLine> {
    let open = Array.from({ length: this.o.shards }, (_, shard) => shard);
    const done = new Map<number, VerifyLine[]>();
    const began = this.o.time.monotonic();
    const deadline = began + alignMs;
    /** Where the log has a digest that is to be compared, by shard. */
    let told: ReadonlyMap<number, number> | undefined;
    let next = 0;
    while (open.length > 0 && !signal.aborted) {
      const last = this.o.time.monotonic() >= deadline;
      const copies = await this.#collect(open);
      for (const shard of open) {
        const lines = await this.#compare(shard, copies, last, told?.get(shard));
        if (lines !== null) done.set(shard, lines);
      }
      for (; done.has(next); next++) yield* done.get(next) ?? [];
      open = open.filter((shard) => !done.has(shard));
      if (told === undefined && open.length > 0 && this.o.time.monotonic() - began > tellMs)
        told = await this.#tell(open);
      if (open.length > 0) await this.o.time.sleep(pauseMs, signal);
    }
  }

  /** Every datacenter's digest of a shard; of those that answer. */
  async digests(shard: number): Promise<Map<SiteName, ShardDigest>> {
    const found = await this.#collect([shard]);
    return new Map([...found].flatMap(([dc, digests]) => [...digests.values()].map((digest) => [dc, digest] as const)));
  }

  async #tell(shards: readonly number[]): Promise<Map<number, number>> {
    const told = new Map<number, number>();
    await Promise.all(
      this.o.datacenters().map(async (dc) => {
        const own = shards.filter((shard) => this.o.owner(shard) === dc);
        if (own.length === 0) return;
        try {
          for (const [shard, position] of await this.#ask<[number, number][]>(dc, { tell: own }))
            told.set(shard, position);
        } catch (error) {
          this.o.log.warn("a datacenter puts no digests into the log", { dc, error: asError(error) });
        }
      }),
    );
    return told;
  }

  async #collect(shards: readonly number[]): Promise<Map<SiteName, Map<number, ShardDigest>>> {
    const copies = new Map<SiteName, Map<number, ShardDigest>>();
    await Promise.all(
      this.o.datacenters().map(async (dc) => {
        try {
          const digests = await this.#ask<ShardDigest[]>(dc, { shards });
          copies.set(dc, new Map(digests.map((digest) => [digest.shard, digest])));
        } catch (error) {
          this.o.log.warn("a datacenter gives no digests", { dc, error: asError(error) });
        }
      }),
    );
    return copies;
  }

  /** Null: the copies don't stand at the same position yet. */
  async #compare(
    shard: number,
    copies: ReadonlyMap<SiteName, ReadonlyMap<number, ShardDigest>>,
    last: boolean,
    told: number | undefined,
  ): Promise<VerifyLine[] | null> {
    const all = this.o.datacenters().map((dc) => ({ dc, digest: copies.get(dc)?.get(shard) }));
    const owner = this.o.owner(shard);
    const truth =
      all.find((copy) => copy.dc === owner)?.digest ?? all.find((copy) => copy.digest !== undefined)?.digest;
    const aligned = all.every(
      ({ digest }) =>
        digest !== undefined &&
        digest.restoring === 0 &&
        digest.epoch === truth?.epoch &&
        digest.position === truth.position,
    );
    const compared =
      told !== undefined &&
      told > 0 &&
      all.every(({ digest }) => digest !== undefined && digest.restoring === 0 && isComparedAt(digest, truth, told));
    if (!aligned && !compared && !last) return null;
    const lines: VerifyLine[] = [];
    for (const { dc, digest } of all) {
      const sound = digest?.restoring === 0 && digest.digest === digest.expected;
      const agrees = aligned ? digest?.expected === truth?.expected : compared && digest?.comparedEqual === true;
      const equal = sound && agrees;
      let clusters: readonly string[] = [];
      if (!equal && digest !== undefined && (aligned || compared)) {
        this.o.onMismatch();
        const other = all.find((copy) => copy.dc !== dc && copy.digest?.digest === copy.digest?.expected)?.dc;
        if (other !== undefined) clusters = await this.#differing(shard, other, dc).catch(() => []);
      }
      lines.push({ shard, dc, epoch: digest?.epoch ?? 0, position: digest?.position ?? 0, equal, clusters });
    }
    return lines;
  }

  /** The ids of some clusters that differ. */
  async #differing(shard: number, owner: SiteName, other: SiteName): Promise<string[]> {
    const pair = async <K>(question: Question): Promise<K[]> => {
      const [a, b] = await Promise.all([owner, other].map((dc) => this.#ask<[K, number][]>(dc, question)));
      return differingKeys(new Map(a), new Map(b));
    };
    const ids: string[] = [];
    for (const bucket of await pair<number>({ buckets: shard })) {
      ids.push(...(await pair<string>({ rows: shard, bucket })));
      if (ids.length >= idsNamed) break;
    }
    return ids.slice(0, idsNamed);
  }

  async #ask<T>(dc: SiteName, question: Question): Promise<T> {
    if (dc === this.o.site) return (await this.#answer(question)) as T;
    return unpack(await this.o.messenger.request(subject(this.o.group, dc), pack(question), askMs)) as T;
  }

  async #answer(question: Question): Promise<unknown> {
    if ("tell" in question) return [...(await this.o.tell(question.tell as ShardId[]))];
    if ("buckets" in question) return [...(await digestBuckets(this.o.database, question.buckets))];
    if ("rows" in question) return [...(await digestRows(this.o.database, question.rows, question.bucket))];
    return digestShards(this.o.database, question.shards);
  }
}

const differingKeys = <K>(here: ReadonlyMap<K, number>, there: ReadonlyMap<K, number>): K[] =>
  [...new Set([...here.keys(), ...there.keys()])].filter((key) => here.get(key) !== there.get(key));

const isComparedAt = (digest: ShardDigest, truth: ShardDigest | undefined, position: number): boolean =>
  digest.comparedEpoch === truth?.epoch && digest.comparedPosition >= position;
