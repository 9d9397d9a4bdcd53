import { pack, unpack } from "msgpackr";
import type { Time } from "../infra/clock.js";
import { asError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Messenger } from "../infra/nats/messaging.js";
import type { Database } from "../infra/postgres/database.js";
import type { Service } from "../infra/service.js";
import { digestBuckets, digestEach, digestMs, digestRows, type ShardDigest } from "../replication/digest.js";
import type { ShardId, SiteName } from "../shards/ids.js";
import type { VerifyLine } from "./api.js";

const subject = (group: string, dc: SiteName): string => `hothot.${group}.dc.${dc}.digest`;
type Question =
  /** Digests of some shards: of as many, in this order, as take no longer than `answerMs`, and one at least. */
  | { readonly shards: readonly number[] }
  /** Digests of a shard's buckets; of the rows of one bucket. */
  | { readonly buckets: number }
  | { readonly rows: number; readonly bucket: number }
  /** Put the digests of your shards into the log. */
  | { readonly tell: readonly number[] };

/** A copy that can't be digested now. */
interface Unable {
  readonly shard: number;
  readonly failed: string;
}

/** Instead of the list that each question is answered with. */
interface Refused {
  readonly refused: string;
}

/** By shard; null: this copy can't be digested. */
type Collected = ReadonlyMap<number, ShardDigest | null>;

/** Who does not answer a question without work in it is not there. */
const askMs = 5_000;
const answerMs = 20_000;
/** An answer, and the statement with which it began too late to be quick. */
const workMs = answerMs + digestMs + 10_000;
const shardsAtOnce = 16;
/** How long copies may take to stand at the same position, from the first look at all of them on. */
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
          .catch((error: unknown) => {
            this.o.log.warn("a digest could not be given", { error: asError(error) });
            message.respond(pack({ refused: asError(error).message } satisfies Refused));
          });
      },
      { queue: "digest" },
    );
  }

  async stop(): Promise<void> {
    this.#unsubscribe?.();
  }

  /**
   * A line per shard and copy, in shard order. A copy that never stands at its owner's position is not equal; nor is one that does not
   * answer, whose line has epoch 0.
   */
  async *run(signal: AbortSignal): AsyncIterable<VerifyLine> {
    let open = Array.from({ length: this.o.shards }, (_, shard) => shard);
    const done = new Map<number, VerifyLine[]>();
    const unable = new Set<string>();
    let deadline = Infinity;
    /** Where the log has a digest that is to be compared, by shard. */
    let told: ReadonlyMap<number, number> | undefined;
    let next = 0;
    const began = this.o.time.monotonic();
    while (open.length > 0 && !signal.aborted) {
      const last = this.o.time.monotonic() >= deadline;
      const there = await this.#there();
      for (let at = 0; at < open.length && !signal.aborted; at += shardsAtOnce) {
        const some = open.slice(at, at + shardsAtOnce);
        const copies = await this.#collect(some, there, unable);
        for (const shard of some) {
          const lines = await this.#compare(shard, copies, last, told?.get(shard));
          if (lines !== null) done.set(shard, lines);
        }
        for (; done.has(next); next++) yield* done.get(next) ?? [];
      }
      open = open.filter((shard) => !done.has(shard));
      deadline = Math.min(deadline, this.o.time.monotonic() + alignMs);
      if (told === undefined && open.length > 0 && this.o.time.monotonic() - began > tellMs)
        told = await this.tell(open);
      if (open.length > 0) await this.o.time.sleep(pauseMs, signal);
    }
  }

  /** Every datacenter's digest of a shard; of those that answer. */
  async digests(shard: number): Promise<Map<SiteName, ShardDigest>> {
    const found = await this.#collect([shard], await this.#there(), new Set());
    return new Map(
      [...found].flatMap(([dc, digests]) => {
        const digest = digests.get(shard) ?? null;
        return digest === null ? [] : [[dc, digest] as const];
      }),
    );
  }

  /** Has owners put digests of these shards into the log. @returns their positions, by shard */
  async tell(shards: readonly number[]): Promise<Map<number, number>> {
    const told = new Map<number, number>();
    await Promise.all(
      this.o.datacenters().map(async (dc) => {
        const own = shards.filter((shard) => this.o.owner(shard) === dc);
        if (own.length === 0) return;
        try {
          for (const [shard, position] of await this.#ask<[number, number]>(dc, { tell: own }, askMs))
            told.set(shard, position);
        } catch (error) {
          this.o.log.warn("a datacenter puts no digests into the log", { dc, error: asError(error) });
        }
      }),
    );
    return told;
  }

  /** Datacenters that answer. */
  async #there(): Promise<SiteName[]> {
    const there: SiteName[] = [];
    await Promise.all(
      this.o.datacenters().map(async (dc) => {
        try {
          await this.#ask(dc, { shards: [] }, askMs);
          there.push(dc);
        } catch (error) {
          this.o.log.warn("a datacenter gives no digests", { dc, error: asError(error) });
        }
      }),
    );
    return there;
  }

  /**
   * @param there datacenters that are asked; who leaves questions open is taken out
   * @param unable copies that could not be digested before, which is not tried again
   */
  async #collect(shards: readonly number[], there: SiteName[], unable: Set<string>): Promise<Map<SiteName, Collected>> {
    const copies = new Map<SiteName, Collected>();
    await Promise.all(
      [...there].map(async (dc) => {
        const found = new Map<number, ShardDigest | null>();
        for (const shard of shards) if (unable.has(`${dc} ${shard}`)) found.set(shard, null);
        copies.set(dc, found);
        try {
          for (;;) {
            const left = shards.filter((shard) => !found.has(shard));
            if (left.length === 0) return;
            const answer = await this.#ask<ShardDigest | Unable>(dc, { shards: left }, workMs);
            if (answer.length === 0) throw new Error("it does not know these shards");
            for (const each of answer) {
              const failed = "failed" in each;
              found.set(each.shard, failed ? null : each);
              if (!failed) continue;
              unable.add(`${dc} ${each.shard}`);
              this.o.log.warn("a copy can't be digested", { dc, shard: each.shard, error: each.failed });
            }
          }
        } catch (error) {
          there.splice(there.indexOf(dc), 1);
          this.o.log.warn("a datacenter gives no digests", { dc, error: asError(error) });
        }
      }),
    );
    return copies;
  }

  /** Null: the copies don't stand at the same position yet. */
  async #compare(
    shard: number,
    copies: ReadonlyMap<SiteName, Collected>,
    last: boolean,
    told: number | undefined,
  ): Promise<VerifyLine[] | null> {
    const all = this.o.datacenters().map((dc) => ({ dc, digest: copies.get(dc)?.get(shard) }));
    // Who can't answer, or did not to the last, keeps the others from nothing.
    if (!last && all.some(({ digest }) => digest === undefined)) return null;
    const answered = all.flatMap(({ dc, digest }) => (digest == null ? [] : [{ dc, digest }]));
    const owner = this.o.owner(shard);
    const truth = (answered.find((copy) => copy.dc === owner) ?? answered[0])?.digest;
    const aligned = answered.every(
      ({ digest }) => digest.restoring === 0 && digest.epoch === truth?.epoch && digest.position === truth.position,
    );
    const compared =
      told !== undefined &&
      told > 0 &&
      answered.every(({ digest }) => digest.restoring === 0 && isComparedAt(digest, truth, told));
    if (!aligned && !compared && !last) return null;
    const lines: VerifyLine[] = [];
    for (const { dc, digest } of all) {
      if (digest == null) {
        lines.push({ shard, dc, epoch: 0, position: 0, equal: false, clusters: [] });
        continue;
      }
      const sound = digest.restoring === 0 && digest.digest === digest.expected;
      const agrees = aligned ? digest.expected === truth?.expected : compared && digest.comparedEqual;
      const equal = sound && agrees;
      let clusters: readonly string[] = [];
      if (!equal && (aligned || compared)) {
        this.o.onMismatch();
        const other = answered.find((copy) => copy.dc !== dc && copy.digest.digest === copy.digest.expected)?.dc;
        if (other !== undefined) clusters = await this.#differing(shard, other, dc).catch(() => []);
      }
      lines.push({ shard, dc, epoch: digest.epoch, position: digest.position, equal, clusters });
    }
    return lines;
  }

  /** The ids of some clusters that differ. */
  async #differing(shard: number, owner: SiteName, other: SiteName): Promise<string[]> {
    const pair = async <K>(question: Question): Promise<K[]> => {
      const [a, b] = await Promise.all([owner, other].map((dc) => this.#ask<[K, number]>(dc, question, workMs)));
      return differingKeys(new Map(a), new Map(b));
    };
    const ids: string[] = [];
    for (const bucket of await pair<number>({ buckets: shard })) {
      ids.push(...(await pair<string>({ rows: shard, bucket })));
      if (ids.length >= idsNamed) break;
    }
    return ids.slice(0, idsNamed);
  }

  async #ask<T>(dc: SiteName, question: Question, timeoutMs: number): Promise<T[]> {
    if (dc === this.o.site) return (await this.#answer(question)) as T[];
    const data = await this.o.messenger.request(subject(this.o.group, dc), pack(question), timeoutMs);
    const answer = unpack(data) as T[] | Refused;
    if ("refused" in answer) throw new Error(answer.refused);
    return answer;
  }

  async #answer(question: Question): Promise<unknown[]> {
    if ("tell" in question) return [...(await this.o.tell(question.tell as ShardId[]))];
    if ("buckets" in question) return [...(await digestBuckets(this.o.database, question.buckets))];
    if ("rows" in question) return [...(await digestRows(this.o.database, question.rows, question.bucket))];
    return this.#digests(question.shards);
  }

  async #digests(shards: readonly number[]): Promise<(ShardDigest | Unable)[]> {
    const answers: (ShardDigest | Unable)[] = [];
    const { time } = this.o;
    const began = time.monotonic();
    for await (const { found, failed } of digestEach(this.o.database, shards, shardsAtOnce, () => time.monotonic())) {
      answers.push(...found);
      if (failed !== null) answers.push({ shard: failed.shard, failed: failed.error.message });
      if (time.monotonic() - began > answerMs) break;
    }
    return answers;
  }
}

const differingKeys = <K>(here: ReadonlyMap<K, number>, there: ReadonlyMap<K, number>): K[] =>
  [...new Set([...here.keys(), ...there.keys()])].filter((key) => here.get(key) !== there.get(key));

const isComparedAt = (digest: ShardDigest, truth: ShardDigest | undefined, position: number): boolean =>
  digest.comparedEpoch === truth?.epoch && digest.comparedPosition >= position;
