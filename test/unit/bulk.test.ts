import assert from "node:assert/strict";
import test from "node:test";
import { pack } from "msgpackr";
import { Problem } from "../../infra/errors.js";
import type { LoadRow } from "../../replication/load.js";
import type { Reply, RequestContext } from "../../services/api.js";
import { Bulk } from "../../services/bulk.js";
import type { BulkLine, BulkRow } from "../../services/http/types.js";
import { ManualTime } from "../harness/manual-time.js";

const maxMessage = 1_048_576;
const keyed: RequestContext = {
  requestId: "r",
  caller: { tenant: "", principal: "anonymous" },
  deadline: Number.MAX_SAFE_INTEGER,
  durability: "local",
  consistency: "local",
  idempotencyKey: "k",
};

/** Sends rows of one shard, and gives what its owner was sent, in order. */
async function sent(rows: readonly BulkRow[]): Promise<{ loads: (readonly LoadRow[])[]; lines: BulkLine[] }> {
  const loads: (readonly LoadRow[])[] = [];
  const bulk = new Bulk({
    shards: 1,
    time: new ManualTime(),
    load: async (_context, _shard, load): Promise<Reply> => {
      loads.push(load);
      return { status: 200, body: load.map(() => [201, 1]), servedBy: "west/n1" };
    },
    newId: () => "made",
    token: () => "token",
  });
  const lines: BulkLine[] = [];
  const given = (async function* () {
    yield* rows;
  })();
  for await (const line of bulk.run(keyed, given, new AbortController().signal)) lines.push(line);
  return { loads, lines };
}

test("rows go to their owner in messages that it takes, however many bytes their characters have", async () => {
  const wide = (line: number): BulkRow => ({
    line,
    id: `c${line}`,
    // 510 KB each.
    fields: { name: "n", spec: { text: "字".repeat(170_000) } },
  });
  const tiny = (line: number): BulkRow => ({ line, id: `cluster-number-${line}`, fields: { name: "", spec: {} } });
  for (const rows of [
    Array.from({ length: 5 }, (_, i) => wide(i + 1)),
    Array.from({ length: 30_000 }, (_, i) => tiny(i + 1)),
  ]) {
    const { loads, lines } = await sent(rows);
    for (const load of loads) {
      const { length } = pack({ command: { type: "cluster.load", shard: 0, rows: load } });
      assert.ok(length < maxMessage - 50_000, `${load.length} rows make ${length} bytes`);
    }
    assert.deepEqual(
      loads.flat().map(({ id }) => id),
      rows.map((row) => row.id),
    );
    assert.deepEqual(
      lines.map(({ line, status }) => [line, status]),
      rows.map(({ line }) => [line, 201]),
    );
  }
});

test("what was sent before the body could not be read any more is told before the failure", async () => {
  const bulk = new Bulk({
    shards: 1,
    time: new ManualTime(),
    load: async (_context, _shard, load): Promise<Reply> => ({
      ...{ status: 200, body: load.map(() => [201, 1]), servedBy: "west/n1" },
    }),
    newId: () => "made",
    token: () => "token",
  });
  const given = (async function* (): AsyncGenerator<BulkRow> {
    for (let line = 1; line <= 20_000; line++) yield { line, id: `c${line}`, fields: { name: "", spec: {} } };
    throw new Problem("payload_too_large");
  })();
  const lines: BulkLine[] = [];
  await assert.rejects(
    async () => {
      for await (const line of bulk.run(keyed, given, new AbortController().signal)) lines.push(line);
    },
    { code: "payload_too_large" },
  );
  assert.ok(lines.length > 10_000, `${lines.length} lines`);
});
