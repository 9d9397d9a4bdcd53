import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { silentLogger } from "../../infra/logger.js";
import { Breaker } from "../../routing/breaker.js";
import { Breakers } from "../../routing/breakers.js";
import { ManualTime } from "../harness/manual-time.js";

const settings = { silentMs: 500, unanswered: 4, pauseMs: 250, longestPauseMs: 1_000 };

describe("a breaker", () => {
  const silent = (): Breaker => {
    const breaker = new Breaker(settings);
    for (let i = 0; i < 4; i++) breaker.sent(0);
    return breaker;
  };

  it("doubts after a silence with requests under way, and lets them go on meanwhile", () => {
    const breaker = silent();
    assert.equal(breaker.wantsProbe(499), false);
    assert.equal(breaker.wantsProbe(500), true);
    assert.equal(breaker.state, "doubted");
    assert.equal(breaker.wantsProbe(501), false, "one probe at a time");
    assert.ok(breaker.allows);
    breaker.answered(600);
    assert.equal(breaker.state, "closed");
    // The four are still under way: it is asked again after as long a silence.
    assert.equal(breaker.wantsProbe(1_099), false);
    assert.equal(breaker.wantsProbe(1_100), true);
  });

  it("holds requests when a probe is not answered, and asks again, less and less often", () => {
    const breaker = silent();
    let now = 500;
    const pauses: number[] = [];
    for (let round = 0; round < 5; round++) {
      while (!breaker.wantsProbe(now)) now++;
      const asked = now;
      assert.equal(breaker.allows, round === 0);
      breaker.silent(now);
      assert.equal(breaker.state, "open");
      assert.ok(!breaker.allows);
      while (breaker.wantsProbe(now) === false) now++;
      pauses.push(now - asked);
      breaker.silent(now);
    }
    assert.deepEqual(pauses.slice(0, 3), [250, 1_000, 1_000]);
    while (!breaker.wantsProbe(now)) now++;
    assert.equal(breaker.state, "probing");
    breaker.answered(now);
    assert.equal(breaker.state, "closed");
    assert.ok(breaker.allows);
  });

  it("takes few, or answered, requests for no sign of anything", () => {
    const few = new Breaker(settings);
    for (let i = 0; i < 3; i++) few.sent(0);
    assert.equal(few.wantsProbe(100_000), false);
    const answered = new Breaker(settings);
    for (let i = 0; i < 100; i++) {
      answered.sent(i * 400);
      answered.sent(i * 400);
      answered.done();
      answered.answered(i * 400 + 1);
      assert.equal(answered.wantsProbe(i * 400 + 399), false);
      answered.done();
    }
  });

  it("is always closed after an answer, and never sends two probes at once", () => {
    const step = fc.oneof(
      fc.constant("sent" as const),
      fc.constant("done" as const),
      fc.constant("answered" as const),
      fc.constant("silent" as const),
      fc.constant("ask" as const),
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(step, fc.integer({ min: 0, max: 800 }))), (steps) => {
        const breaker = new Breaker(settings);
        let now = 0;
        let under = 0;
        let probing = false;
        for (const [what, ms] of steps) {
          now += ms;
          if (what === "sent") {
            breaker.sent(now);
            under++;
          } else if (what === "done" && under > 0) {
            breaker.done();
            under--;
          } else if (what === "answered") {
            breaker.answered(now);
            probing = false;
            assert.equal(breaker.state, "closed");
          } else if (what === "silent" && probing) {
            breaker.silent(now);
            probing = false;
            assert.equal(breaker.state, "open");
          } else if (what === "ask" && breaker.wantsProbe(now)) {
            assert.ok(!probing);
            probing = true;
          }
          if (breaker.state === "open") assert.ok(!breaker.allows);
        }
      }),
    );
  });
});

it("a datacenter that takes requests and never answers gets probes only, until one is answered", async () => {
  const time = new ManualTime();
  let alive = false;
  let probes = 0;
  const breakers = new Breakers({
    time,
    log: silentLogger,
    probe: async () => {
      probes++;
      if (!alive) throw new Error("no answer");
    },
  });
  let sent = 0;
  for (let ms = 0; ms < 20_000; ms += 10) {
    await time.advance(10);
    if (breakers.allows("east")) {
      breakers.sent("east");
      sent++;
    }
  }
  assert.ok(sent < 60, `${sent} of 2000 were sent`);
  assert.ok(probes >= 5 && probes <= 20, `${probes} probes`);
  assert.ok(breakers.allows("west"), "another datacenter has its own");
  alive = true;
  for (let ms = 0; ms < 4_100 && !breakers.allows("east"); ms += 10) await time.advance(10);
  assert.ok(breakers.allows("east"));
});

it("where nobody listens few requests go to see, until one is answered", async () => {
  const time = new ManualTime();
  const breakers = new Breakers({ time, log: silentLogger, probe: () => Promise.resolve() });
  let sent = 0;
  for (let ms = 0; ms < 1_000; ms++) {
    await time.advance(1);
    for (let waiting = 0; waiting < 100; waiting++)
      if (breakers.allows("east")) {
        const over = breakers.sent("east");
        sent++;
        over("nobody");
        breakers.absent("east");
      }
  }
  assert.ok(sent >= 30 && sent <= 41, `${sent} of 100,000 were sent`);
  await time.advance(30);
  assert.ok(breakers.allows("east"));
  breakers.sent("east")("answered");
  assert.ok(breakers.allows("east") && breakers.allows("east"));
});
