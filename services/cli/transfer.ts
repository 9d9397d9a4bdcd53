import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Writable } from "node:stream";
import type { Command } from "commander";
import PQueue from "p-queue";
import { Failure, UsageError } from "./failure.js";
import type { Row } from "./output.js";
import { wholeNumber } from "./parse.js";
import { common, verb, type Session } from "./session.js";

/** What a cluster is made of, without what the service adds. */
const fields = ["name", "spec", "state", "labels", "expiresAt"];

/** Requests under way, and lines read ahead. */
const concurrency = 16;
const ahead = 64;

interface ImportOptions {
  readonly rejects?: string;
  readonly concurrency?: number;
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
    .option("--concurrency <n>", "requests under way", wholeNumber(1, 1000));
  common(load, true).action(verb<ImportOptions>((session, options, [file]) => importClusters(session, options, file)));
  common(clusters.command("export").description("all clusters, one JSON object a line, as import takes them")).action(
    verb(async (session) => {
      const items: Row[] = [];
      let cursor: string | undefined;
      do {
        const query = new URLSearchParams({ limit: "100", ...(cursor === undefined ? {} : { cursor }) });
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

async function importClusters(session: Session, options: ImportOptions, file: string | undefined): Promise<number> {
  if (file !== undefined && !existsSync(file)) throw new UsageError(`${file}: there is no such file`);
  const queue = new PQueue({ concurrency: options.concurrency ?? concurrency });
  const rejects = options.rejects === undefined ? undefined : createWriteStream(options.rejects);
  const refused: Result[] = [];
  let done = 0;
  let rejected = 0;
  let number = 0;
  const input = createInterface({ input: file === undefined || file === "-" ? process.stdin : createReadStream(file) });
  for await (const text of input) {
    const line = ++number;
    if (text.trim() === "") continue;
    await queue.onSizeLessThan(ahead);
    void queue.add(async () => {
      const result = await importLine(session, line, text);
      if (result.code === undefined) {
        if (++done % 1000 === 0) session.say(`${done} done`);
        return;
      }
      // Each is also in the rejects' file; here the first thousand tell enough.
      if (refused.push(result) > 1000) refused.length = 1000;
      rejected++;
      rejects?.write(`${text}\n`);
      process.stderr.write(`line ${line}: ${result.code}: ${result.detail ?? ""}\n`);
    });
  }
  await queue.onIdle();
  if (rejects !== undefined) await new Promise<void>((resolve) => rejects.end(resolve));
  session.show({ done, rejected, rejects: refused }, `${done} done, ${rejected} refused`);
  return rejected === 0 ? 0 : 1;
}

async function importLine(session: Session, line: number, text: string): Promise<Result> {
  let value: Row;
  try {
    value = JSON.parse(text) as Row;
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw new TypeError("not an object");
  } catch (error) {
    return { line, code: "invalid_request", detail: (error as Error).message };
  }
  const { id, ...body } = value;
  if (id !== undefined && typeof id !== "string")
    return { line, code: "invalid_request", detail: "`id` must be a string" };
  if (session.dryRun) return { line };
  try {
    if (id === undefined) await session.client.request("POST", "/v1/clusters", { body });
    else await session.client.request("PUT", `/v1/clusters/${encodeURIComponent(id)}`, { body });
    return { line };
  } catch (error) {
    if (error instanceof Failure) return { line, code: error.code, detail: error.message };
    throw error;
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
