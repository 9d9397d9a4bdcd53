import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { seededRandom } from "../../infra/random.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { runJobChaos, shardsOf } from "./jobs.js";

describe("200 jobs over all datacenters, which are killed again and again", { timeout: 240_000 }, () => {
  let stack: TestStack;
  before(async () => {
    stack = await startStack({ worker: false, env: { HOTHOT_TASK_LEASE_MS: "5000" } });
  });
  after(() => stack?.stop());

  it("each ends once, by the tasks of its last attempt alone", { timeout: 240_000 }, async (t) => {
    assert.ok(shardsOf(200, 64) > 55, "they are of most shards");
    const seed = Date.now() % 1_000_000;
    t.diagnostic(`seed ${seed}`);
    const result = await runJobChaos(stack, {
      jobs: 200,
      nodes: 1,
      kills: 2,
      untilEnded: false,
      random: seededRandom(seed),
      tell: (line) => t.diagnostic(line),
    });
    t.diagnostic(`${result.restarted} jobs restarted, ${result.tasks} tasks, ${result.late} late finishes`);
    assert.deepEqual(result.violations.slice(0, 20), []);
    assert.ok(result.restarted > 0, "jobs were restarted");
    assert.ok(result.late > 0, "finishes of old attempts were sent");
  });
});
