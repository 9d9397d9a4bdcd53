import assert from "node:assert/strict";
import test from "node:test";
import type { Client } from "../../infra/postgres/database.js";
import { CannotSetAside, setAside } from "../../replication/divergence.js";
import type { FullHead } from "../../replication/heads.js";
import { encodeRecord } from "../../replication/record.js";
import { epoch, position, shardId } from "../../shards/ids.js";

const shard = shardId(1);
const at = "2026-01-01T00:00:00.000Z";

/** A load of one large cluster. */
function load(n: number, bytes: number): Uint8Array {
  const line = ["", `c${n}`, shard, "active", "x".repeat(bytes), "{}", "{}", "{}", "\\N", 1, at, at, "f", 3, n, 0];
  const payload = Buffer.from(`${line.join("\t")}\n`);
  return encodeRecord({ type: "cluster.load", at: 0, load: { rows: 1, fresh: true, delta: 0, payload } });
}

/** A database that has this outbox, and what it was told to set aside, by statement. */
function withOutbox(records: readonly Uint8Array[]) {
  const aside: { readonly bytes: number; readonly operations: readonly { readonly position: number }[] }[] = [];
  const client = {
    query: async (text: string, values: unknown[] = []) => {
      if (text.startsWith("INSERT INTO divergent_operations")) {
        const json = values[0] as string;
        aside.push({ bytes: json.length, operations: JSON.parse(json) as { position: number }[] });
      }
      if (!text.startsWith("SELECT epoch, position, record")) return { rows: [], rowCount: 0 };
      const rows = records.map((record, index) => ({ epoch: 3, position: index + 1, record, committed_at: at }));
      return { rows: rows.filter((row) => row.position > (values[2] as number)) };
    },
  };
  return { client: client as unknown as Client, aside };
}

const head = (last: number): FullHead => ({ shard, epoch: epoch(3), position: position(last) }) as unknown as FullHead;

test("a tail of large loads is set aside whole, in statements of which none is large", async () => {
  const { client, aside } = withOutbox(Array.from({ length: 30 }, (_, n) => load(n, 500_000)));
  assert.equal(await setAside(client, "east", head(30), position(0)), 30);
  assert.deepEqual(
    aside.flatMap(({ operations }) => operations.map((each) => each.position)),
    Array.from({ length: 30 }, (_, n) => n + 1),
  );
  assert.ok(Math.max(...aside.map(({ bytes }) => bytes)) < 5_000_000, "none is large");
});

test("a tail that is not whole, or can't be read, can't be set aside; a refusal of the database may pass", async () => {
  const records = [load(1, 10), load(2, 10)];
  await assert.rejects(setAside(withOutbox(records).client, "east", head(3), position(0)), CannotSetAside);
  const damaged = withOutbox([load(1, 10), Buffer.from("no record")]);
  await assert.rejects(setAside(damaged.client, "east", head(2), position(0)), CannotSetAside);
  const full = { query: () => Promise.reject(Object.assign(new Error("disk full"), { code: "53100" })) };
  await assert.rejects(setAside(full as unknown as Client, "east", head(2), position(0)), /^Error: disk full$/);
});
