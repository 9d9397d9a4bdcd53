import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { after, before, it } from "node:test";
import { checkout } from "../../infra/local/checkout.js";
import type { DemoResult } from "../../services/demo/report.js";
import { endFolder } from "../harness/folder.js";
import { freshStackFolder, runCli } from "../harness/stack.js";

let place: Awaited<ReturnType<typeof freshStackFolder>>;
before(async () => {
  place = await freshStackFolder(true);
});
after(async () => {
  await endFolder(place.dir);
  await place.release();
});

it(
  "npm run demo kills a datacenter, loses nothing that was promised, and leaves nothing behind",
  { timeout: 180_000 },
  async (t) => {
    const startedAt = performance.now();
    const { code, stdout, stderr } = await demo(
      ...["--json", "--rate", "150", "--dir", place.dir, "--port-base", String(place.portBase)],
    );
    const tookMs = performance.now() - startedAt;
    for (const line of stderr.trimEnd().split("\n")) t.diagnostic(line);
    assert.equal(code, 0, `exit ${code}:\n${stderr}`);
    const result = JSON.parse(stdout) as DemoResult;
    const { acknowledged, lost, firstWriteMs, jobs, ...rest } = result;
    assert.deepEqual(Object.keys(result), [
      "ok",
      "acknowledged",
      "lost",
      "firstWriteMs",
      "jobs",
      "convergeMs",
      "divergent",
      "digestsEqual",
    ]);
    assert.equal(rest.ok, true);
    assert.equal(rest.digestsEqual, true);
    assert.deepEqual(lost, { local: 0, replicated: 0 });
    assert.ok(acknowledged.local > 300 && acknowledged.replicated > 300, JSON.stringify(acknowledged));
    assert.ok(firstWriteMs.worst !== null && firstWriteMs.worst < 5_000, JSON.stringify(firstWriteMs));
    assert.ok(jobs.restarted > 0 && jobs.finished === jobs.restarted, JSON.stringify(jobs));
    assert.ok(rest.convergeMs !== null && rest.convergeMs < 40_000);
    assert.ok(rest.divergent >= 0);
    assert.ok(tookMs < 120_000, `took ${Math.round(tookMs)} ms`);
    assert.equal(existsSync(place.dir), false, "its folder is gone, and with it every pid file");
  },
);

it("refuses wrong options, and a folder that is in use", async () => {
  assert.equal((await demo("--no-such-option")).code, 2);
  assert.equal((await demo("--port-base", "x")).code, 2);
  assert.equal((await demo("--rate", "0")).code, 2);
  assert.equal((await demo("--dir", checkout)).code, 2);
  const { code, stdout } = await demo("--help");
  assert.equal(code, 0);
  assert.match(stdout, /--json/);
});

const demo = (...args: string[]) => runCli(["demo", ...args]);
