import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { seededRandom } from "../../infra/random.js";
import { startStack } from "../harness/stack.js";
import { faults } from "./faults.js";
import { runRounds } from "./rounds.js";
import { runSecondDeaths } from "./second-death.js";

describe(
  "datacenters are killed and return again and again, under writes, reads and jobs",
  { timeout: 400_000 },
  () => {
    let stack: Awaited<ReturnType<typeof startStack>>;
    before(async () => {
      stack = await startStack();
    });
    after(() => stack?.stop());

    it("keeps invariants 1 to 6 and 8 over five rounds of kill -9", { timeout: 400_000 }, async (t) => {
      const fault = faults.find(({ name }) => name === "kill-rounds");
      assert.ok(fault);
      const seed = Date.now() % 1_000_000;
      t.diagnostic(`seed ${seed}`);
      const { rounds, history, violations } = await runRounds(stack, {
        fault,
        rounds: 5,
        random: seededRandom(seed),
        writesPerSecond: 60,
        tell: (line) => t.diagnostic(line),
      });
      assert.deepEqual(violations.slice(0, 20), []);
      assert.equal(rounds.length, 5);
      assert.ok(
        rounds.every(({ shards }) => shards > 0),
        "each killed datacenter owned shards",
      );
      assert.ok(
        rounds.every(({ dc }, index) => dc !== rounds[index - 1]?.dc),
        "each round killed another datacenter",
      );
      const restarted = [...(history.finals[0]?.jobs.values() ?? [])].filter(({ attempt }) => attempt > 1);
      assert.ok(restarted.length > 0, "jobs were restarted");
      assert.ok(history.writes.length > 1000 && history.reads.length > 100);
    });

    it("a second one that dies during the takeover leaves no majority: all stops, and goes on when they return", async (t) => {
      const { rounds, history, violations } = await runSecondDeaths(stack, {
        rounds: 1,
        random: seededRandom(Date.now() % 1_000_000),
        tell: (line) => t.diagnostic(line),
      });
      assert.deepEqual(violations.slice(0, 20), []);
      assert.equal(rounds[0]?.moment, "opened");
      assert.ok(history.writes.length > 100);
    });
  },
);
