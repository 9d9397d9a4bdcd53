import { randomUUID } from "node:crypto";
import {
  closeSync,
  createReadStream,
  existsSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import type { Writable } from "node:stream";
import type { Command } from "commander";
import { Failure, UsageError } from "./failure.js";
import { bar, endProgress, type Row } from "./output.js";
import { common, verb, type Session } from "./session.js";

/** What a cluster is made of, without what the service adds. */
const fields = ["name", "spec", "state", "labels", "expiresAt"];

/** Of one request; what may have to be sent again is held in memory. */
const sliceLines = 16_384;
const sliceBytes = 8_000_000;
const sliceMs = 120_000;
const tries = 8;
/** These pass: the same lines are sent again. */
const passing = new Set([
  "no_lease",
  "no_majority",
  "owner_unreachable",
  "shard_moving",
  "unpublished_limit",
  "overloaded",
  "draining",
  "deadline_exceeded",
  "outcome_unknown",
  "rate_limited",
]);

interface ImportOptions {
  readonly rejects?: string;
  readonly key?: string;
  readonly restart?: boolean;
}

interface Result {
  readonly line: number;
  readonly id?: string;
  readonly status?: number;
  readonly code?: string;
  readonly detail?: string;
}

export function addTransfer(clusters: Command): void {
  const load = clusters
    .command("import [file]")
    .description("create or replace those of a file (or standard input), one JSON object a line");
  load
    .option("--rejects <file>", "write the lines that were refused here")
    .option(
      "--key <key>",
      "a repeated import with the same key and input takes effect once (default: kept beside the file until it is through)",
    )
    .option("--restart", "begin anew where an interrupted import of the file would go on");
  common(load, true).action(verb<ImportOptions>((session, options, [file]) => importClusters(session, options, file)));
  common(clusters.command("export").description("all clusters, one JSON object a line, as import takes them")).action(
    verb(async (session) => {
      const items: Row[] = [];
      let cursor: string | undefined;
      do {
        const query = new URLSearchParams({ limit: "1000", ...(cursor === undefined ? {} : { cursor }) });
        const page = await session.client.get<{ items: Row[]; nextCursor: string | null }>(
          `/v1/clusters?${query.toString()}`,
        );
        const found = page.items.map((item) => pick(item, ["id", ...fields]));
        if (session.json) items.push(...found);
        else await write(process.stdout, found.map((item) => `${JSON.stringify(item)}\n`).join(""));
        cursor = page.nextCursor ?? undefined;
      } while (cursor !== undefined);
      if (session.json) session.show({ items, nextCursor: null });
      return 0;
    }),
  );
}

async function importClusters(session: Session, options: ImportOptions, given: string | undefined): Promise<number> {
  const file = given === undefined || given === "-" ? undefined : given;
  if (file !== undefined && !existsSync(file)) throw new UsageError(`${file}: there is no such file`);
  const journal =
    file === undefined || session.dryRun ? undefined : ImportJournal.open(file, options.restart === true, options.key);
  const key = journal?.key ?? options.key ?? randomUUID();
  const started = journal?.reached ?? nothing;
  if (started.line > 0) session.say(`goes on behind line ${started.line}\n`);
  const rejects =
    options.rejects === undefined || session.dryRun ? undefined : RejectsFile.open(options.rejects, started.rejects);
  const total = file === undefined ? undefined : statSync(file).size;
  const refused: Result[] = [];
  const began = performance.now();
  let { done, rejected } = started;
  for await (const slice of slicesOf(
    file === undefined ? process.stdin : createReadStream(file, { start: started.byte }),
    started,
  )) {
    const results = session.dryRun
      ? slice.lines.map((_, index): Result => ({ line: index + 1 }))
      : await sendAll(session, slice, key);
    for (const result of results) {
      if (result.code === undefined) {
        done++;
        continue;
      }
      const line = slice.first + result.line;
      rejected++;
      if (refused.length < 1000) refused.push({ ...result, line });
      rejects?.add({ ...result, line, input: slice.lines[result.line - 1] ?? "" });
      process.stderr.write(`line ${line}: ${result.code}: ${result.detail ?? ""}\n`);
    }
    // Refused lines are in their file before they count as dealt with.
    const place = rejects?.flush();
    journal?.advance({
      line: slice.first + slice.lines.length,
      byte: slice.endByte,
      done,
      rejected,
      ...(place === undefined ? {} : { rejects: place }),
    });
    session.say(
      progressText(done - started.done, performance.now() - began, slice.endByte - started.byte, total, started.byte),
    );
  }
  endProgress();
  rejects?.close();
  journal?.end();
  session.show({ done, rejected, rejects: refused }, `${done} done, ${rejected} refused`);
  return rejected === 0 ? 0 : 1;
}

interface Slice {
  /** Lines before its own. */
  readonly first: number;
  readonly lines: readonly string[];
  /** Where in the file it ends. */
  readonly endByte: number;
}

/** The input in pieces that are cut by lines and bytes alone, so that a repeated import sends the same requests. */
async function* slicesOf(
  input: AsyncIterable<Buffer | string>,
  from: { readonly line: number; readonly byte: number },
): AsyncGenerator<Slice> {
  let first = from.line;
  let byte = from.byte;
  let lines: string[] = [];
  let bytes = 0;
  let rest = Buffer.alloc(0);
  const cut = (): Slice => {
    const slice = { first, lines, endByte: byte };
    first += lines.length;
    lines = [];
    bytes = 0;
    return slice;
  };
  for await (const chunk of input) {
    rest = Buffer.concat([rest, typeof chunk === "string" ? Buffer.from(chunk) : chunk]);
    let at = 0;
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10, at)) {
      lines.push(rest.toString("utf8", at, end));
      bytes += end - at;
      byte += end + 1 - at;
      at = end + 1;
      if (lines.length >= sliceLines || bytes >= sliceBytes) yield cut();
    }
    rest = rest.subarray(at);
  }
  if (rest.length > 0) {
    lines.push(rest.toString("utf8"));
    byte += rest.length;
  }
  if (lines.length > 0) yield cut();
}

/**
 * Lines beyond the tenant's writes a second are sent again as long as some get through: the whole slice, under its one key, so that ids
 * which follow from key and line stay the same, and a line takes effect once, whenever the import is interrupted and repeated.
 */
async function sendAll(session: Session, slice: Slice, key: string): Promise<Result[]> {
  const beyond = (results: readonly Result[]): number => results.filter(({ code }) => code === "quota_exceeded").length;
  for (let before = Infinity; ;) {
    const results = await sendSlice(session, slice, key);
    const left = beyond(results);
    if (left === 0 || left >= before) return results;
    before = left;
    session.say(`${left} lines beyond what the tenant may write go again`);
  }
}

/** One bulk request; sent again with the same key while the service can't take all of it, so that each line takes effect once. */
async function sendSlice(session: Session, slice: Slice, key: string): Promise<Result[]> {
  for (let n = 1; ; n++) {
    try {
      const results = await session.client.bulk<Result>(
        `${slice.lines.join("\n")}\n`,
        `${key}-${slice.first}`,
        sliceMs,
      );
      if (n >= tries || !results.some(({ code }) => code !== undefined && passing.has(code))) return results;
    } catch (error) {
      const again = error instanceof Failure && (passing.has(error.code) || error.code === "unreachable");
      if (n >= tries || !again) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500 * n));
  }
}

/**
 * How far an import is: lines done and their rate; of a file also its share and the time left.
 * @param bytes read since it began or went on. @param total of the file. @param from where it went on
 */
export function progressText(done: number, ms: number, bytes: number, total: number | undefined, from: number): string {
  const rate = `${done} done, ${Math.round((done * 1000) / Math.max(1, ms))}/s`;
  if (total === undefined || bytes <= 0) return rate;
  const share = Math.min(1, (from + bytes) / total);
  const left = Math.round(((total - from - bytes) / bytes) * (ms / 1000));
  return `${bar(share)}, ${rate}, ${left} s left`;
}

/** How far an import is. */
interface Reached {
  readonly line: number;
  readonly byte: number;
  /** Lines that took effect, and that were refused. */
  readonly done: number;
  readonly rejected: number;
  /** Where the refused ones are, and how many bytes they take there. */
  readonly rejects?: RejectsPlace;
}

interface RejectsPlace {
  readonly path: string;
  readonly bytes: number;
}

const nothing: Reached = { line: 0, byte: 0, done: 0, rejected: 0 };

/** How far the import of a file is, beside the file: one that was interrupted goes on there, with its key, when it is repeated. */
class ImportJournal {
  private constructor(
    private readonly path: string,
    readonly key: string,
    private readonly of: string,
    readonly reached: Reached,
  ) {}

  /** @param key another one than the interrupted import's begins anew */
  static open(file: string, anew: boolean, key: string | undefined): ImportJournal {
    const path = `${file}.import`;
    const { size, mtimeMs } = statSync(file);
    const of = `${size} ${mtimeMs}`;
    if (!anew && existsSync(path)) {
      try {
        const found = JSON.parse(readFileSync(path, "utf8")) as Reached & { key: string; of: string };
        if (found.of === of && (key === undefined || key === found.key))
          return new ImportJournal(path, found.key, of, { ...nothing, ...found });
      } catch {
        // What can't be read is begun anew.
      }
    }
    const journal = new ImportJournal(path, key ?? randomUUID(), of, nothing);
    journal.advance(nothing);
    return journal;
  }

  /** In a folder that can't be written, an import can't be taken up again; it is carried out all the same. */
  advance(reached: Reached): void {
    try {
      writeFileSync(`${this.path}.new`, JSON.stringify({ ...reached, key: this.key, of: this.of }));
      renameSync(`${this.path}.new`, this.path);
    } catch (error) {
      if (reached.line === 0)
        process.stderr.write(`hothot: ${this.path} can't be written: ${(error as Error).message}\n`);
    }
  }

  end(): void {
    rmSync(this.path, { force: true });
  }
}

/** The lines that were refused, each once: what an interrupted import wrote beyond its last step is written anew. */
class RejectsFile {
  #waiting = "";

  private constructor(
    private readonly file: number,
    private readonly path: string,
    private bytes: number,
  ) {}

  static open(name: string, before: RejectsPlace | undefined): RejectsFile {
    const place = path.resolve(name);
    const kept = before?.path === place && existsSync(place) ? Math.min(before.bytes, statSync(place).size) : 0;
    if (kept > 0) truncateSync(place, kept);
    return new RejectsFile(openSync(place, kept > 0 ? "a" : "w"), place, kept);
  }

  add(line: Row): void {
    this.#waiting += `${JSON.stringify(line)}\n`;
  }

  /** @returns where they are; the system has them when this returns */
  flush(): RejectsPlace {
    const bytes = Buffer.from(this.#waiting);
    this.#waiting = "";
    for (let at = 0; at < bytes.length;) at += writeSync(this.file, bytes, at);
    this.bytes += bytes.length;
    return { path: this.path, bytes: this.bytes };
  }

  close(): void {
    closeSync(this.file);
  }
}

function pick(item: Row, keys: readonly string[]): Row {
  return Object.fromEntries(
    keys.filter((key) => item[key] !== undefined && item[key] !== null).map((key) => [key, item[key]]),
  );
}

async function write(stream: Writable, text: string): Promise<void> {
  if (text !== "" && !stream.write(text)) await new Promise((resolve) => stream.once("drain", resolve));
}
