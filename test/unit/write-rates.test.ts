import assert from "node:assert/strict";
import test from "node:test";
import { Problem } from "../../infra/errors.js";
import { WriteRates } from "../../services/access/write-rates.js";
import { ManualTime } from "../harness/manual-time.js";

const isExceeded = (error: unknown): boolean => error instanceof Problem && error.code === "quota_exceeded";

function rates(perSecond: number | null) {
  const time = new ManualTime();
  const book = { limits: () => ({ id: "t", maxClusters: null, writesPerSecond: perSecond }) };
  return { time, writes: new WriteRates(book, time) };
}

test("rows count as writes: a load waits for its turn, and what it is beyond the rate is owed", async () => {
  const { time, writes } = rates(100);
  const began = time.monotonic();
  const done: number[] = [];
  for (let load = 0; load < 20; load++)
    void writes.takeRows("t", 250, began + 60_000).then(() => done.push(time.monotonic() - began));
  await time.advance(0);
  assert.equal(done.length, 1, "the first has its turn at once");
  assert.throws(() => writes.take("t"), isExceeded);
  await time.advance(60_000);
  assert.equal(done.length, 20);
  // 5000 rows at 100 a second, but for the second that may be saved up and the last one's debt.
  assert.ok((done.at(-1) ?? 0) >= 46_000 && (done.at(-1) ?? 0) <= 48_000, done.join(" "));
});

test("rows whose turn does not come in time are refused, with the time to wait; nothing is counted for them", async () => {
  const { time, writes } = rates(10);
  const back = await writes.takeRows("t", 110, time.monotonic() + 8_000);
  await assert.rejects(writes.takeRows("t", 1, time.monotonic() + 8_000), (error: unknown) => {
    assert(isExceeded(error));
    assert.ok(Math.abs(((error as Problem).retryAfterSeconds ?? 0) - 10.1) < 0.01);
    return true;
  });
  // What had no effect is given back.
  back();
  writes.take("t");
});

test("without a quota nothing waits", async () => {
  const { time, writes } = rates(null);
  for (let load = 0; load < 1_000; load++) await writes.takeRows("t", 10_000, time.monotonic());
  writes.take("t");
});
