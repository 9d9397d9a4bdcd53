import assert from "node:assert/strict";
import test from "node:test";
import { Problem } from "../../infra/errors.js";
import { cursorParts, encodeCursor } from "../../services/clusters/queries.js";

const isRefused = (error: unknown): boolean => error instanceof Problem && error.code === "invalid_request";

test("a cursor's time is one that the database takes too", () => {
  const parts = (time: unknown) => cursorParts(encodeCursor(JSON.stringify([time, 3, 4])), ["time", "shard", "epoch"]);
  for (const time of ["0001-01-01T00:00:00Z", "2024-02-29T23:59:59.999999Z", "9999-12-31T23:59:59.5Z"])
    assert.deepEqual(parts(time), [time, 3, 4]);
  const wrong = [
    "0000-01-01T00:00:00Z",
    "2024-02-30T00:00:00Z",
    "2023-02-29T00:00:00Z",
    "2024-13-01T00:00:00Z",
    "2024-01-01T24:00:00Z",
    "2024-01-01T00:00:60Z",
    "-2024-01-01T00:00:00Z",
    "infinity",
    "",
    7,
  ];
  for (const time of wrong) assert.throws(() => parts(time), isRefused, String(time));
});

test("a cursor of another form is refused", () => {
  const time = "2024-02-29T00:00:00Z";
  const texts = ["", "7", "{}", "[]", `["${time}",1]`, `["${time}",-1,1]`, `["${time}",1,1.5]`, `["${time}",1,1e30]`];
  for (const text of texts)
    assert.throws(() => cursorParts(encodeCursor(text), ["time", "shard", "epoch"]), isRefused, text);
});
