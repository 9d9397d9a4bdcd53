import assert from "node:assert/strict";
import { test } from "node:test";
import { timesFrom } from "../../replication/carried.js";

test("what is due is due as long from now at the target of a move as it was at the former owner, whatever their clocks say", () => {
  const [here, there] = [Date.parse("2026-01-01T00:00:00.000Z"), Date.parse("2026-01-01T00:00:40.000Z")];
  const task = {
    id: "j1-a.1.1",
    lease_until: "2026-01-01T00:00:30.000Z",
    deadline: null,
    not_before: "2026-01-01T00:00:05.500Z",
    finished_at: "2025-12-31T23:00:00.000Z",
  };
  assert.deepEqual(timesFrom(here, there)(task), {
    ...task,
    lease_until: "2026-01-01T00:01:10.000Z",
    not_before: "2026-01-01T00:00:45.500Z",
  });
  assert.deepEqual(timesFrom(here, here)(task), task);
  assert.deepEqual(timesFrom(undefined, there)(task), task, "an earlier version does not say when it read them");
});
