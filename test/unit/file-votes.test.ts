import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, test } from "node:test";
import { FatalError } from "../../infra/errors.js";
import { FileVotes } from "../../shards/file-votes.js";
import { endFolder, freshFolder } from "../harness/folder.js";

const dir = freshFolder("votes");
after(() => endFolder(dir));

const is =
  (code: string) =>
  (error: unknown): boolean =>
    error instanceof FatalError && error.code === code;

test("a witness's votes are there after a restart, before the next is given", async () => {
  const folder = path.join(dir, "kept");
  const first = new FileVotes(folder, "local", "w");
  const vote = await first.vote("east", { 3: 7 });
  // On the disk already: whatever happens to the process now.
  assert.match(readFileSync(path.join(folder, "votes.json"), "utf8"), /"east"/);
  first.release();
  const second = new FileVotes(folder, "local", "w");
  assert.deepEqual((await second.load()).get("east"), vote);
  const next = await second.vote("east", { 3: 5, 4: 1 });
  assert.ok(next.number > vote.number);
  assert.deepEqual({ ...next.epochs }, { 3: 7, 4: 1 }, "the largest epoch voted against stays");
  second.release();
});

test("a folder of another witness or group, one in use, and one that can't be read stop the start, and change nothing", () => {
  const folder = path.join(dir, "other");
  const votes = new FileVotes(folder, "local", "w");
  // Another process that lives.
  writeFileSync(path.join(folder, "witness.pid"), String(process.ppid));
  assert.throws(() => new FileVotes(folder, "local", "w"), is("witness_runs"));
  votes.release();
  const file = path.join(folder, "votes.json");
  const before = readFileSync(file, "utf8");
  for (const [group, witness] of [
    ["local", "v"],
    ["other", "w"],
  ] as const)
    assert.throws(() => new FileVotes(folder, group, witness), is("wrong_data_dir"));
  assert.equal(readFileSync(file, "utf8"), before);
  // A refused start holds nothing.
  new FileVotes(folder, "local", "w").release();
  writeFileSync(file, before.slice(0, before.length / 2));
  assert.throws(() => new FileVotes(folder, "local", "w"), is("data_dir"));
  assert.equal(readFileSync(file, "utf8"), before.slice(0, before.length / 2), "what may be votes is not overwritten");
  const taken = path.join(dir, "file");
  writeFileSync(taken, "");
  assert.throws(() => new FileVotes(taken, "local", "w"), is("data_dir"));
  mkdirSync(path.join(dir, "empty"));
  new FileVotes(path.join(dir, "empty"), "local", "w").release();
});
