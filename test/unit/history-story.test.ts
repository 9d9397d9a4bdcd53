import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { seededRandom } from "../../infra/random.js";
import { runStory } from "../../services/demo/story.js";
import { FakeGroup, type FakeFault } from "../harness/history-fake.js";

describe(
  "the failover story against an imitation of three datacenters",
  { concurrency: true, timeout: 300_000 },
  () => {
    it("reports a group that keeps its promises as ok", async () => {
      const { report, lines } = await story(null);
      assert.deepEqual(report.broken, []);
      const { acknowledged, lost, firstWriteMs, jobs, divergent, digestsEqual, ok } = report.result;
      assert.ok(ok && digestsEqual);
      assert.ok(acknowledged.local > 30 && acknowledged.replicated > 30, JSON.stringify(acknowledged));
      assert.deepEqual(lost, { local: 0, replicated: 0 });
      assert.ok(divergent > 0, "some writes were not published when the datacenter died");
      assert.ok((firstWriteMs.worst ?? 0) >= 250, JSON.stringify(firstWriteMs));
      assert.ok(jobs.restarted > 0 && jobs.finished === jobs.restarted, JSON.stringify(jobs));
      assert.ok(lines.length > 5);
    });

    const faults: Record<FakeFault, RegExp> = {
      loses: /an acknowledged replicated write of .* is lost/,
      hides: /an acknowledged local write of .* is lost/,
      twice: /answers of one key say that they did the work/,
      differs: /clusters differ between east and west/,
      "forgets-jobs": /job .* is running/,
    };
    for (const [fault, pattern] of Object.entries(faults)) {
      it(`finds out a group that ${fault}`, async () => {
        const { report } = await story(fault as FakeFault);
        assert.equal(report.result.ok, false);
        assert.ok(
          report.broken.some((line) => pattern.test(line)),
          `expected ${pattern}, got ${report.broken.slice(0, 5).join("\n")}`,
        );
      });
    }
  },
);

async function story(
  fault: FakeFault | null,
): Promise<{ report: Awaited<ReturnType<typeof runStory>>["report"]; lines: string[] }> {
  const group = await new FakeGroup(fault).start();
  const lines: string[] = [];
  try {
    const { report } = await runStory(group, {
      random: seededRandom(7),
      tell: (line) => lines.push(line),
      writesPerSecond: 120,
      loadMs: 1000,
      // Waited out where jobs are forgotten.
      jobsMs: fault === "forgets-jobs" ? 8_000 : 30_000,
    });
    return { report, lines };
  } finally {
    await group.stop();
  }
}
