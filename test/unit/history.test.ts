import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type {
  Attempt,
  DivergentItem,
  Durability,
  FinalCluster,
  FinalJob,
  History,
  JobStart,
  Place,
  Write,
} from "../../services/demo/journal.js";
import { settle } from "../../services/demo/settle.js";
import { checkHistory } from "../harness/history.js";

let now = 0;
const place = (shard: number, epoch: number, position: number): Place => ({ shard, epoch, position });

function ok(at: Place, version: number, more: Partial<Attempt> = {}): Attempt {
  const owner = at.epoch === 1 ? "east" : "west";
  now += 10;
  return {
    dc: owner,
    startedAt: now,
    endedAt: now + 5,
    outcome: "ok",
    status: 200,
    code: null,
    place: at,
    version,
    owner,
    servedBy: owner,
    replayed: false,
    answer: `{"version":${version}}`,
    ...more,
  };
}

const noAnswer = (): Attempt =>
  ok(place(0, 1, 1), 0, {
    outcome: "unknown",
    status: 0,
    code: "timeout",
    place: null,
    version: null,
    owner: null,
    servedBy: null,
    answer: null,
  });
const refused = (): Attempt => ({ ...noAnswer(), outcome: "fail", status: 503, code: "no_lease" });

function write(mark: string, attempts: Attempt[], more: Partial<Write> = {}): Write {
  return { kind: "put", clusterId: "a", mark, durability: "local", key: null, attempts, ...more };
}

const cluster = (version: number, mark: string | null): FinalCluster => ({ version, mark, json: `${version} ${mark}` });

function divergent(at: Place, mark: string, more: Partial<DivergentItem> = {}): DivergentItem {
  return {
    dc: "east",
    ...at,
    clusterId: "a",
    type: "cluster.put",
    idempotencyKey: null,
    value: `{"change":"${mark}"}`,
    status: "open",
    ...more,
  };
}

function history(
  more: Partial<History> & { final?: Record<string, FinalCluster>; finalJobs?: Record<string, FinalJob> },
): History {
  const { final = {}, finalJobs = {}, ...rest } = more;
  const finals = ["east", "west"].map((dc) => ({
    dc,
    clusters: new Map(Object.entries(final)),
    jobs: new Map(Object.entries(finalJobs)),
  }));
  return { writes: [], jobs: [], finishes: [], reads: [], sightings: [], finals, divergent: [], ...rest };
}

function violates(invariant: number, pattern: RegExp, bad: History): void {
  const found = checkHistory(bad);
  assert.ok(
    found.some((violation) => violation.invariant === invariant && pattern.test(violation.what)),
    `expected a violation of ${invariant} like ${pattern}, got ${JSON.stringify(found)}`,
  );
}

function holds(good: History): void {
  assert.deepEqual(checkHistory(good), []);
}

function fates(checked: History): Record<string, string> {
  return Object.fromEntries(settle(checked).map(({ write: { mark }, fate }) => [mark, fate]));
}

describe("histories that keep every promise", () => {
  it("writes one after the other, the last is shown", () => {
    const good = history({
      writes: [
        write("m1", [ok(place(3, 1, 1), 1)]),
        write("m2", [ok(place(3, 1, 2), 2)], { durability: "replicated" }),
      ],
      final: { a: cluster(2, "m2") },
    });
    holds(good);
    assert.deepEqual(fates(good), { m1: "superseded", m2: "present" });
  });

  it("a takeover that sets a local write aside, and lists it", () => {
    const good = history({
      writes: [
        write("m1", [ok(place(3, 1, 1), 1)]),
        write("m2", [ok(place(3, 1, 2), 2)]),
        write("m3", [ok(place(3, 2, 2), 2)], { durability: "replicated" }),
      ],
      divergent: [divergent(place(3, 1, 2), "m2")],
      final: { a: cluster(2, "m3") },
    });
    holds(good);
    assert.deepEqual(fates(good), { m1: "superseded", m2: "divergent", m3: "present" });
  });

  it("a write without an answer that took effect, and one that did not", () => {
    holds(
      history({
        writes: [write("m1", [ok(place(3, 1, 1), 1)]), write("m2", [noAnswer()]), write("m3", [noAnswer()])],
        final: { a: cluster(2, "m3") },
      }),
    );
  });

  it("a keyed write that was set aside, done again by its client, and marked as superseded", () => {
    const [first, second, third] = [
      ok(place(3, 1, 5), 1),
      ok(place(3, 2, 5), 1),
      ok(place(3, 2, 9), 1, { replayed: true }),
    ];
    holds(
      history({
        writes: [write("m1", [first, second, third], { key: "k1" })],
        divergent: [divergent(place(3, 1, 5), "m1", { idempotencyKey: "k1", status: "superseded" })],
        final: { a: cluster(1, "m1") },
      }),
    );
  });

  it("a job that was restarted and ended once, and a late finish that was refused", () => {
    const job = {
      status: "complete",
      attempt: 2,
      clusterId: "a",
      mark: "j1",
      startedIn: "east",
      finishedAt: "t",
      json: "{}",
    };
    holds(
      history({
        jobs: [start("j1", [ok(place(3, 1, 1), 1)])],
        finishes: [{ jobId: "j3-x", attempt: 1, runningAttempt: 2, mark: "late", status: 409, code: "stale_token" }],
        finalJobs: { "j3-x": job },
        final: { a: cluster(3, null) },
      }),
    );
  });
});

function start(mark: string, attempts: Attempt[], more: Partial<JobStart> = {}): JobStart {
  return {
    clusterId: "a",
    type: "create",
    mark,
    durability: "replicated",
    key: null,
    attempts,
    jobId: "j3-x",
    ...more,
  };
}

describe("invariant 1 is found broken", () => {
  it("two datacenters acknowledge in one epoch", () => {
    violates(
      1,
      /epoch 1: served by east, west/,
      history({
        writes: [
          write("m1", [ok(place(3, 1, 1), 1)]),
          write("m2", [ok(place(3, 1, 2), 2, { servedBy: "west", owner: "west" })]),
        ],
        final: { a: cluster(2, "m2") },
      }),
    );
  });

  it("one place is given to two writes", () => {
    violates(
      1,
      /place 3:1:1 was given to m1, m2/,
      history({
        writes: [write("m1", [ok(place(3, 1, 1), 1)]), write("m2", [ok(place(3, 1, 1), 2)], { clusterId: "b" })],
        final: { a: cluster(1, "m1"), b: cluster(2, "m2") },
      }),
    );
  });

  it("an old epoch acknowledges after a newer one has", () => {
    violates(
      1,
      /m2 got 3:1:2 after m1 had got 3:2:1/,
      history({
        writes: [write("m1", [ok(place(3, 2, 1), 1)]), write("m2", [ok(place(3, 1, 2), 2)])],
        final: { a: cluster(2, "m2") },
      }),
    );
  });

  it("positions go back in one epoch", () => {
    violates(
      1,
      /m2 got 3:1:4 after m1 had got 3:1:5/,
      history({
        writes: [write("m1", [ok(place(3, 1, 5), 1)]), write("m2", [ok(place(3, 1, 4), 2)])],
        final: { a: cluster(2, "m2") },
      }),
    );
  });

  it("a version is given twice on the surviving line", () => {
    violates(
      1,
      /m1 at 3:1:1 is version 1, then m2 at 3:2:2 is version 1/,
      history({
        writes: [write("m1", [ok(place(3, 1, 1), 1)]), write("m2", [ok(place(3, 2, 2), 1)])],
        final: { a: cluster(1, "m2") },
      }),
    );
  });
});

describe("invariants 2 and 3 are found broken", () => {
  const cases: { durability: Durability; invariant: number }[] = [
    { durability: "replicated", invariant: 2 },
    { durability: "local", invariant: 3 },
  ];
  for (const { durability, invariant } of cases) {
    it(`a ${durability} write is not there`, () => {
      violates(
        invariant,
        /m1 of a is lost: east: a is not there/,
        history({ writes: [write("m1", [ok(place(3, 1, 1), 1)], { durability })] }),
      );
    });

    it(`a ${durability} write is missing at one datacenter`, () => {
      const bad = history({
        writes: [write("m1", [ok(place(3, 1, 1), 1)], { durability })],
        final: { a: cluster(1, "m1") },
      });
      const [east] = bad.finals;
      assert.ok(east);
      violates(invariant, /west: a is not there/, {
        ...bad,
        finals: [east, { dc: "west", clusters: new Map(), jobs: new Map() }],
      });
    });

    it(`the loss of a ${durability} write is hidden by a later write of its cluster`, () => {
      violates(
        invariant,
        /m1 at 3:1:7: a later epoch goes on below/,
        history({
          writes: [
            write("m1", [ok(place(3, 1, 7), 7)], { durability }),
            write("m2", [ok(place(3, 2, 8), 9)]),
            write("b1", [ok(place(3, 2, 7), 1)], { clusterId: "b" }),
          ],
          final: { a: cluster(9, "m2"), b: cluster(1, "b1") },
        }),
      );
    });

    it(`an older version stands where a ${durability} write was`, () => {
      violates(
        invariant,
        /a shows m1, which is older than m2/,
        history({
          writes: [write("m1", [ok(place(3, 1, 1), 1)]), write("m2", [ok(place(3, 1, 2), 2)], { durability })],
          final: { a: cluster(1, "m1") },
        }),
      );
    });
  }

  it("a replicated write is listed as divergent", () => {
    violates(
      2,
      /m1 at 3:1:1 is listed as divergent/,
      history({
        writes: [write("m1", [ok(place(3, 1, 1), 1)], { durability: "replicated" })],
        divergent: [divergent(place(3, 1, 1), "m1")],
      }),
    );
  });

  it("another write's entry does not excuse a lost one", () => {
    violates(
      3,
      /m1 of a is lost/,
      history({
        writes: [write("m1", [ok(place(3, 1, 1), 1)])],
        divergent: [divergent(place(3, 1, 2), "m9")],
      }),
    );
  });

  it("a refused write took effect", () => {
    violates(
      3,
      /a shows m1, which was refused/,
      history({ writes: [write("m1", [refused()])], final: { a: cluster(1, "m1") } }),
    );
  });

  it("a value that nobody wrote", () => {
    violates(3, /a shows m7, which nobody wrote there/, history({ final: { a: cluster(1, "m7") } }));
  });

  it("the last value ended before a later write began", () => {
    const [first, second] = [ok(place(3, 1, 2), 2), ok(place(3, 1, 1), 1)];
    violates(
      3,
      /a shows m1, which ended before m2 began/,
      history({
        writes: [write("m1", [first]), write("m2", [second])],
        final: { a: cluster(2, "m1") },
      }),
    );
  });

  it("an accepted job is gone, or ended twice, or did not end", () => {
    const job = {
      status: "complete",
      attempt: 1,
      clusterId: "a",
      mark: "j1",
      startedIn: "east",
      finishedAt: "t1",
      json: "{}",
    };
    const jobs = [start("j1", [ok(place(3, 1, 1), 1)])];
    violates(3, /job j3-x was accepted \(replicated\) and is not there/, history({ jobs }));
    const sighting = { dc: "east", at: 1, jobId: "j3-x", status: "failed", attempt: 1, finishedAt: "t0" };
    violates(3, /j3-x ended more than once/, history({ jobs, finalJobs: { "j3-x": job }, sightings: [sighting] }));
    violates(3, /job j3-x is running/, history({ jobs, finalJobs: { "j3-x": { ...job, status: "running" } } }));
    violates(3, /j1 \(fail\) made 1 jobs/, history({ jobs: [start("j1", [refused()])], finalJobs: { "j3-x": job } }));
  });
});

describe("invariants 4, 5, 6 and 8 are found broken", () => {
  const read = (at: number, version: number, mark: string) => ({
    dc: "west",
    clusterId: "a",
    startedAt: at,
    endedAt: at + 1,
    mark,
    version,
  });
  const writes = [write("m1", [ok(place(3, 1, 1), 1)]), write("m2", [ok(place(3, 1, 2), 2)])];

  it("4: a copy goes back to an older version", () => {
    violates(
      4,
      /west: a went back from version 2/,
      history({ writes, reads: [read(1, 2, "m2"), read(5, 1, "m1")], final: { a: cluster(2, "m2") } }),
    );
  });

  it("4: a version has two values", () => {
    violates(
      4,
      /a version 2 was m1 and m2/,
      history({ writes, reads: [read(1, 2, "m1"), read(5, 2, "m2")], final: { a: cluster(2, "m2") } }),
    );
  });

  it("5: a keyed write is done twice", () => {
    const twice = [ok(place(3, 1, 1), 1), ok(place(3, 1, 2), 2)];
    violates(
      5,
      /2 answers of one key say that they did the work/,
      history({ writes: [write("m1", twice, { key: "k" })], final: { a: cluster(2, "m1") } }),
    );
  });

  it("5: a keyed write without an answer is done again", () => {
    const hidden = [noAnswer(), ok(place(3, 1, 2), 2)];
    violates(
      5,
      /a has version 2 after at most 1 writes/,
      history({ writes: [write("m1", hidden, { key: "k" })], final: { a: cluster(2, "m1") } }),
    );
  });

  it("5: a repetition gets another answer", () => {
    const changed = [ok(place(3, 1, 1), 1), ok(place(3, 1, 1), 1, { replayed: true, answer: "{}" })];
    violates(
      5,
      /one key, different answers/,
      history({ writes: [write("m1", changed, { key: "k" })], final: { a: cluster(1, "m1") } }),
    );
  });

  it("5: a write that was done again is still open among the divergent operations", () => {
    violates(
      5,
      /listed as open at east, where it could be replayed/,
      history({
        writes: [write("m1", [ok(place(3, 1, 5), 1), ok(place(3, 2, 5), 1)], { key: "k1" })],
        divergent: [divergent(place(3, 1, 5), "m1", { idempotencyKey: "k1" })],
        final: { a: cluster(1, "m1") },
      }),
    );
  });

  it("5: a keyed start makes two jobs", () => {
    const job = {
      status: "complete",
      attempt: 1,
      clusterId: "a",
      mark: "j1",
      startedIn: "east",
      finishedAt: "t1",
      json: "{}",
    };
    violates(
      3,
      /j1 \(ok\) made 2 jobs/,
      history({
        jobs: [start("j1", [noAnswer(), ok(place(3, 1, 1), 1)], { key: "k" })],
        finalJobs: { "j3-x": job, "j3-y": { ...job, finishedAt: "t2" } },
      }),
    );
  });

  it("a loss that a later write hides shows in the version", () => {
    violates(5, /a has version 1 after at least 2 writes/, history({ writes, final: { a: cluster(1, "m2") } }));
  });

  it("6: an outdated finish is accepted, or leaves a trace", () => {
    const late = { jobId: "j3-x", attempt: 1, runningAttempt: 2, mark: "late", status: 200, code: null };
    violates(6, /a finish of attempt 1 of j3-x was accepted/, history({ finishes: [late] }));
    const job = {
      status: "complete",
      attempt: 2,
      clusterId: "a",
      mark: null,
      startedIn: "east",
      finishedAt: "t",
      json: '"late"',
    };
    violates(
      6,
      /holds the result of a refused finish/,
      history({ finishes: [{ ...late, status: 409 }], finalJobs: { "j3-x": job } }),
    );
  });

  it("8: datacenters differ", () => {
    const [east, west] = history({ writes, final: { a: cluster(2, "m2") } }).finals;
    assert.ok(east && west);
    const other = { ...west, clusters: new Map([["a", { ...cluster(2, "m2"), json: "other" }]]) };
    violates(8, /1 clusters differ between east and west/, history({ writes, finals: [east, other] }));
  });

  it("an answer 500, or an acknowledgement without a place", () => {
    violates(0, /answered 500/, history({ writes: [write("m1", [{ ...noAnswer(), status: 500, code: "internal" }])] }));
    violates(
      0,
      /without Hothot-Position/,
      history({ writes: [write("m1", [ok(place(3, 1, 1), 1, { place: null })])], final: { a: cluster(1, "m1") } }),
    );
  });
});
