#!/usr/bin/env node
// Runs test files by node's test runner in the order in which they are given (the command `node --test` sorts them), two at a time; its
// summary is the last of the output.
import { run } from "node:test";
import { spec } from "node:test/reporters";
import process from "node:process";

const reporter = typeof spec === "function" && spec.prototype !== undefined ? new spec() : spec;
const tests = run({ files: process.argv.slice(2), concurrency: 2, timeout: 600_000 });
tests.on("test:fail", () => void (process.exitCode = 1));
tests.compose(reporter).pipe(process.stdout);
