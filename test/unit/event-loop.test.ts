import assert from "node:assert/strict";
import { it } from "node:test";
import { EventLoop } from "../../infra/event-loop.js";
import type { DatacenterParts } from "../../services/datacenter.js";
import { GroupView } from "../../services/group-view.js";
import { ManualTime } from "../harness/manual-time.js";

it("an event loop that is late is measured, and a process that is late is not ready", async () => {
  const time = new ManualTime();
  const loop = new EventLoop(time);
  const parts = {
    state: () => "serving",
    worstLag: () => ({ positions: 0, ms: 7 }),
    config: { maxEventLoopLagMs: 40 },
  } as unknown as DatacenterParts;
  const view = new GroupView(parts, loop);
  await loop.start();
  try {
    assert.deepEqual(view.readiness(), { ready: true, reason: null, lagMs: 7 });
    for (let i = 0; i < 8; i++) {
      const until = performance.now() + 120;
      while (performance.now() < until);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await time.advance(1_000);
    assert.ok(loop.lag.medianMs > 40, JSON.stringify(loop.lag));
    const { ready, reason } = view.readiness();
    assert.equal(ready, false);
    assert.match(reason ?? "", /^the process is too busy: its event loop is late by \d+ ms$/);
  } finally {
    await loop.stop();
  }
});
