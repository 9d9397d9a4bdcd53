import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import copyStreams from "pg-copy-streams";
import type { Client } from "./database.js";

/** Runs a `COPY ... FROM STDIN` with these bytes, at the server's pace. */
export async function copyIn(client: Client, sql: string, chunks: Iterable<Uint8Array | string>): Promise<void> {
  await pipeline(Readable.from(chunks, { objectMode: true }), client.query(copyStreams.from(sql)));
}
