import assert from "node:assert/strict";
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { FatalError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import { CatalogFile } from "../../services/jobs/catalog.js";
import { CatalogWatch } from "../../services/jobs/catalog-watch.js";
import { endFolder, freshFolder } from "../harness/folder.js";
import { JobWorld } from "../harness/job-world.js";
import { ManualTime, settled } from "../harness/manual-time.js";

const yaml = (types: Readonly<Record<string, readonly string[]>>): string =>
  JSON.stringify({
    operations: Object.fromEntries(
      Object.entries(types).map(([type, stages]) => [type, { stages: stages.map((name) => ({ name })) }]),
    ),
  });

async function watched(context: TestContext) {
  const dir = freshFolder("catalog");
  context.after(() => endFolder(dir));
  const file = path.join(dir, "catalog.yaml");
  writeFileSync(file, yaml({ stop: ["A", "B"] }));
  const time = new ManualTime();
  const said: { level: string; message: string; faults?: string }[] = [];
  const note = (level: string) => (message: string, more?: object) => void said.push({ level, message, ...more });
  const log = {
    info: note("info"),
    error: note("error"),
    warn: note("warn"),
    debug: note("debug"),
  } as unknown as Logger;
  Object.assign(log, { with: () => log });
  const catalog = new CatalogFile(file);
  let counted = 0;
  const watch = new CatalogWatch({ file, catalog, time, log, onFault: () => counted++ });
  await watch.start();
  context.after(() => watch.stop());
  /** Time goes on until the condition holds: files are read beside it. */
  const until = async (condition: () => boolean, moves = 2_000): Promise<void> => {
    const end = performance.now() + 20_000;
    while (!condition()) {
      assert.ok(performance.now() < end, "not within 20 s");
      await time.advance(moves);
      await settled();
    }
  };
  return { dir, file, catalog, watch, said, until, faults: () => counted };
}

test("a changed catalog file is taken into use, for the stages that begin after it", async (context) => {
  const { file, dir, catalog, until } = await watched(context);
  const world = new JobWorld({ catalog: catalog.current });
  world.cluster("c1", { nodes: ["n1"] });
  const job = world.start("c1", "stop");
  // As mounted configuration is: swapped under a link.
  const next = path.join(dir, "next.yaml");
  writeFileSync(
    next,
    "operations:\n  stop: {stages: [{name: A}, {name: B, tasks: [B1, B2]}, {name: C}]}\n  dance: {stages: [{name: D}]}\n",
  );
  renameSync(next, file);
  await until(() => catalog.current.operation("dance") !== undefined);
  world.catalog = catalog.current;
  world.runStage(job);
  assert.deepEqual(
    world.waiting(job).map((task) => task.name),
    ["B1", "B2"],
    "what a stage means is looked up when it begins",
  );
  world.runStage(job);
  assert.equal(world.job(job).status, "complete", "the names of its stages stay those that it began with");
});

test("a faulty catalog file leaves the old one in use, and every fault of it is named", async (context) => {
  const { file, catalog, watch, said, until, faults } = await watched(context);
  const old = catalog.current;
  writeFileSync(file, "operations:\n  stop: {stages: [{name: A, retries: 0}, {name: A}], colour: red}\n");
  await until(() => faults() === 1);
  assert.equal(catalog.current, old);
  const [refused] = said.filter((line) => line.level === "error");
  assert.match(refused?.message ?? "", /faulty: the old catalog stays in use/);
  for (const fault of [/retries: must be at least 1/, /has the stage A twice/, /no such setting: colour/])
    assert.match(refused?.faults ?? "", fault);
  rmSync(file);
  await until(() => faults() === 2);
  assert.match(said.at(-1)?.faults ?? "", /can't be read \(ENOENT\)/);
  assert.equal(catalog.current, old);
  assert.throws(() => catalog.reload(), FatalError);
  // When told to (SIGHUP) it is read at once, and also when it has not changed.
  writeFileSync(file, yaml({ dance: ["D"] }));
  watch.look();
  await until(() => catalog.current.operation("dance") !== undefined, 0);
  assert.notEqual(readFileSync(file, "utf8"), "");
  const before = said.length;
  watch.look();
  await until(() => said.length > before, 0);
  assert.equal(said.at(-1)?.message, "the catalog was read again");
});
