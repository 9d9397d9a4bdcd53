import assert from "node:assert/strict";
import { test } from "node:test";
import { bar, table } from "../../services/cli/output.js";
import { progressText } from "../../services/cli/transfer.js";

test("an import's progress has its share, its rate and the time left; of a pipe, whose end is unknown, the rate", () => {
  assert.equal(progressText(500, 2_000, 250, 1_000, 0), `${bar(0.25)}, 500 done, 250/s, 6 s left`);
  // It went on at half of the file: the rate is that of what it has read itself.
  assert.equal(progressText(100, 1_000, 250, 1_000, 500), `${bar(0.75)}, 100 done, 100/s, 1 s left`);
  assert.equal(progressText(500, 2_000, 250, undefined, 0), "500 done, 250/s");
  assert.equal(progressText(0, 0, 0, 1_000, 0), "0 done, 0/s");
});

test("a bar is drawn from nothing to all", () => {
  assert.equal(bar(0), "[....................] 0 %");
  assert.equal(bar(0.5), "[##########..........] 50 %");
  assert.equal(bar(1), "[####################] 100 %");
});

test("a table has its columns' names, and says when it is empty", () => {
  assert.equal(
    table([
      { a: "x", long: 1 },
      { a: null, long: { b: 2 } },
    ]),
    'A  LONG\nx  1\n-  {"b":2}\n',
  );
  assert.equal(table([]), "(none)\n");
});
