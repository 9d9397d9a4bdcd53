#!/usr/bin/env node
// `npm test`: types, lint and format, then every test in one run of node's test runner, whose summary is the last of the output.
// `npm test -- TEXT` runs only the test files whose path contains TEXT, without the other checks.
import { spawn } from "node:child_process";
import { accessSync, constants, readdirSync, statfsSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";

const root = path.resolve(import.meta.dirname, "../..");
const bin = (name) => path.join(root, "node_modules", name);
const wanted = process.argv.slice(2);

const checks = [
  ["types", bin("typescript/bin/tsc"), ["--noEmit", "-p", "tsconfig.json"]],
  ["lint", bin("eslint/bin/eslint.js"), ["."]],
  ["format", bin("prettier/bin/prettier.cjs"), ["--check", "--log-level", "warn", "."]],
];
let failed = false;
if (wanted.length === 0) {
  const started = Date.now();
  const results = await Promise.all(checks.map(([name, file, args]) => check(name, [file, ...args])));
  failed = results.includes(false);
  console.log(
    `types, lint and format: ${failed ? "FAILED (see above); the tests run all the same" : "ok"} (${Math.round((Date.now() - started) / 1000)} s)`,
  );
}

/**
 * The demo has the machine to itself among those that start servers (test/harness/stack.ts), so it goes beside tests that start none;
 * then the long ones.
 */
const order = ["fault/demo", "unit/", "simulation/", "fault/", "integration/"];
const files = order
  .flatMap((beginning) => {
    const folder = beginning.split("/")[0];
    return testsIn(path.join(root, ".build", "test", folder))
      .filter((file) => path.relative(path.join(root, ".build", "test"), file).startsWith(beginning))
      .reverse();
  })
  .filter((file, index, all) => all.indexOf(file) === index)
  .filter((file) => wanted.length === 0 || wanted.some((text) => path.relative(root, file).includes(text)));
if (files.length === 0) {
  console.error("there are no such tests");
  process.exitCode = 1;
} else {
  const args = ["--enable-source-maps", path.join(import.meta.dirname, "run-tests.mjs"), ...files];
  const code = await run(process.execPath, args, {
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, TEST_FEW_STACKS: "1", TMPDIR: process.env.TMPDIR ?? inMemory() ?? os.tmpdir() },
  });
  process.exitCode = failed ? 1 : code;
}

/**
 * Where the servers' files cost no disk, if there is room enough: what the tests kill are processes, whose files stay either way.
 * Undefined where there is no such place.
 */
function inMemory() {
  const enough = 8_000_000_000;
  try {
    const place = "/dev/shm";
    accessSync(place, constants.W_OK);
    const { bavail, bsize } = statfsSync(place);
    return bavail * bsize > enough && os.freemem() > enough ? place : undefined;
  } catch {
    return undefined;
  }
}

async function check(name, args) {
  let output = "";
  const code = await run(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] }, (text) => (output += text));
  if (code !== 0) console.log(`--- ${name} ---\n${output.trim()}\n`);
  return code === 0;
}

function run(command, args, options, hear) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: root, ...options });
    for (const stream of [child.stdout, child.stderr]) stream?.setEncoding("utf8").on("data", hear);
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => child.kill(signal));
    child.on("error", (error) => {
      console.error(error.message);
      resolve(1);
    });
    child.on("close", (code) => resolve(code ?? 1));
  });
}

function testsIn(folder) {
  try {
    return readdirSync(folder, { recursive: true })
      .filter((name) => name.endsWith(".test.js"))
      .sort()
      .map((name) => path.join(folder, name));
  } catch {
    return [];
  }
}
