#!/usr/bin/env node
// The command `hothot` in a checkout: brings the build up to date when a source is newer, and runs the command-line program.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync, utimesSync } from "node:fs";
import path from "node:path";
import process from "node:process";

const root = path.resolve(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), "../..");
const stamp = path.join(root, ".build", "stamp");
const program = path.join(root, ".build", "services", "cli", "main.js");

if (!existsSync(path.join(root, "node_modules", "commander"))) {
  fail(
    "not_installed",
    "The packages are not installed.",
    "Run `npm ci`, or `npm start`, which does all of the set-up.",
  );
} else if (bringUpToDate()) {
  process.setSourceMapsEnabled(true);
  const { main } = await import(program);
  await main(process.argv.slice(2));
}

function bringUpToDate() {
  const built = existsSync(stamp) && existsSync(program) ? statSync(stamp).mtimeMs : 0;
  if (
    built > 0 &&
    !["services", "shards", "routing", "replication", "infra", "test"].some((folder) =>
      isNewer(path.join(root, folder), built),
    )
  )
    return true;
  const done = spawnSync(process.execPath, [path.join(root, "infra/local/build.mjs")], { stdio: ["ignore", 2, 2] });
  if (done.status !== 0) {
    fail(
      "not_built",
      "The build failed.",
      "Its own lines above say why. Is the checkout writable, and the disk not full?",
    );
    return false;
  }
  const now = new Date();
  utimesSync(stamp, now, now);
  return true;
}

/** A folder is newer, too, when something in it was removed. */
function isNewer(folder, than) {
  if (!existsSync(folder)) return false;
  if (statSync(folder).mtimeMs > than) return true;
  return readdirSync(folder, { withFileTypes: true }).some((entry) => {
    const file = path.join(folder, entry.name);
    return entry.isDirectory()
      ? isNewer(file, than)
      : entry.isFile() && !entry.name.endsWith(".md") && statSync(file).mtimeMs > than;
  });
}

function fail(code, message, wayOut) {
  console.error(`hothot: ${code}: ${message}\n  ${wayOut}`);
  process.exitCode = 1;
}
