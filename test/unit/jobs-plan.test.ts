import assert from "node:assert/strict";
import test from "node:test";
import { FatalError } from "../../infra/errors.js";
import { epoch, shardId } from "../../shards/ids.js";
import { Catalog } from "../../services/jobs/catalog.js";
import { fenceOf, jobIdOf, parseJobId, parseTaskId, parseToken, taskIdOf, tokenOf } from "../../services/jobs/ids.js";
import { backoffMs, planStage, readNodes } from "../../services/jobs/plan.js";

test("the built-in catalog has the contract's operations", () => {
  const catalog = Catalog.builtIn();
  const stages = catalog.operation("create")?.stages.map((stage) => stage.name);
  assert.deepEqual(stages, ["CREATE", "CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"]);
  assert.deepEqual([...catalog.operations.keys()], ["create", "configure", "start", "stop", "restart", "delete"]);
  const stage = catalog.stage("create", "CONFIRM");
  assert.deepEqual(stage, {
    name: "CONFIRM",
    tasks: ["CONFIRM"],
    per: "node",
    timeoutMs: 1_800_000,
    retries: 3,
    checkpoint: false,
  });
});

test("a catalog file may be YAML or JSON, and every fault of it is named at once", () => {
  const yaml = Catalog.parse("operations:\n  backup:\n    stages:\n      - name: DUMP\n        per: once\n", "a file");
  assert.equal(yaml.stage("backup", "DUMP")?.per, "once");
  const json = Catalog.parse('{"operations":{"b":{"stages":[{"name":"D","tasks":["X","Y"],"retries":1}]}}}', "a file");
  assert.deepEqual(json.stage("b", "D")?.tasks, ["X", "Y"]);
  const faulty = `
operations:
  "1x": { stages: [{ name: A }] }
  a: { stages: [] }
  b: { stages: [{ name: A, retries: 0, colour: red }, { name: A }, { per: nowhere, name: C, timeoutMs: soon }] }
`;
  assert.throws(
    () => Catalog.parse(faulty, "catalog.yaml"),
    (error: unknown) => {
      assert(error instanceof FatalError);
      assert.equal(error.code, "bad_catalog");
      for (const part of ["1x", "operations.a.stages", "retries", "colour", "stages.2.per", "timeoutMs"])
        assert.match(error.message, new RegExp(part));
      return true;
    },
  );
  const twice = "operations: { b: { stages: [{ name: A }, { name: A, tasks: [T, T] }] } }";
  assert.throws(() => Catalog.parse(twice, "f"), /stage A twice[\s\S]*task T twice/);
  for (const text of ["", "[]", "operations: {}", "{", "operations: 3"])
    assert.throws(() => Catalog.parse(text, "f"), FatalError);
  assert.throws(() => Catalog.read("/nowhere/catalog.yaml"), /ENOENT/);
});

test("ids go out and in again", () => {
  const jobId = jobIdOf(shardId(12), "abcdefgh01234567");
  assert.equal(jobId, "j12-abcdefgh01234567");
  assert.equal(parseJobId(jobId), 12);
  const taskId = taskIdOf(jobId, 3, 17);
  assert.deepEqual(parseTaskId(taskId), { jobId, shard: 12, attempt: 3, number: 17 });
  const token = tokenOf({ shard: shardId(12), epoch: epoch(2 ** 32 + 5), attempt: 3 });
  assert.deepEqual(parseToken(token), { shard: 12, epoch: 2 ** 32 + 5, attempt: 3 });
  assert.equal(fenceOf({ epoch: epoch(4), attempt: 2 }), "4.2");
});

test("rubbish is no id", () => {
  for (const text of [
    "",
    "j",
    "j-abcdefgh",
    "j1",
    "j01-abcdefgh",
    "j1-ABCDEFGH",
    "j1-abc",
    "j1-abcdefgh\n",
    "j1234567-abcdefgh",
    "j1-abcdefgh.1",
  ]) {
    assert.equal(parseJobId(text), undefined, text);
  }
  for (const text of [
    "",
    "j1-abcdefgh",
    "j1-abcdefgh.1",
    "j1-abcdefgh.0.1",
    "j1-abcdefgh.1.0",
    "j1-abcdefgh.1.1.1",
    "j1-abcdefgh.01.1",
    "j1-abcdefgh.1.9999999999999999999",
    "j01-abcdefgh.1.1",
  ]) {
    assert.equal(parseTaskId(text), undefined, text);
  }
  for (const text of ["", "1", "1.1", "1.1.1.1", "a.b.c", "1.-1.1", "1.1.1 ", "1.99999999999999999.1", "01.1.1"]) {
    assert.equal(parseToken(text), undefined, text);
  }
});

test("nodes are names or objects with a name", () => {
  assert.deepEqual(readNodes({}), { nodes: null, faults: [] });
  assert.deepEqual(readNodes({ nodes: ["a", { name: "b", size: 2 }] }).nodes, [{ name: "a" }, { name: "b", size: 2 }]);
  const { nodes, faults } = readNodes({ nodes: ["a", 1, {}, "a", { name: "" }, null, ["x"]] });
  assert.equal(nodes, null);
  assert.deepEqual(
    faults.map((fault) => fault.path),
    [1, 2, 3, 4, 5, 6].map((i) => `/spec/nodes/${i}`),
  );
  assert.equal(readNodes({ nodes: "a" }).faults[0]?.path, "/spec/nodes");
  assert.equal(readNodes({ nodes: Array.from({ length: 2_001 }, (_, i) => `n${i}`) }).faults.length, 1);
});

test("a stage has its tasks per node, or once", () => {
  const catalog = Catalog.of(
    {
      operations: {
        o: {
          stages: [
            { name: "S", tasks: ["A", "B"] },
            { name: "T", per: "once" },
          ],
        },
      },
    },
    "test",
  );
  const stages = catalog.operation("o")?.stages ?? [];
  const [perNode, once] = stages;
  assert(perNode !== undefined && once !== undefined);
  const nodes = [{ name: "n1" }, { name: "n2" }];
  assert.deepEqual(
    planStage(perNode, nodes).map(({ name, node }) => `${name}/${node}`),
    ["A/n1", "B/n1", "A/n2", "B/n2"],
  );
  assert.deepEqual(planStage(once, nodes), [{ name: "T", node: null, service: null }]);
  assert.deepEqual(
    planStage(perNode, null).map(({ name }) => name),
    ["A", "B"],
  );
  assert.deepEqual(planStage(perNode, []), []);
});

test("the back-off doubles to a cap, and differs from task to task", () => {
  for (let tries = 1; tries < 40; tries++) {
    const plain = Math.min(60_000, 1_000 * 2 ** (tries - 1));
    const ms = backoffMs("j1-abcdefgh.1.1", tries, 1_000);
    assert(ms >= plain * 0.87 && ms <= plain * 1.13, `${tries}: ${ms}`);
  }
  assert.notEqual(backoffMs("a", 1, 1_000), backoffMs("b", 1, 1_000));
});
