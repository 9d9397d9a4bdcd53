import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { biases } from "./bias.js";
import type { Rule } from "./rules.js";
import { run } from "./world.js";

const execute = promisify(execFile);
const seeds = 2_000;
const parts = 2;

/** Runs seeds in a process of its own. @returns its last line, with what was counted; fails with the violations that it found. */
async function simulate(from: number, count: number): Promise<string> {
  const main = fileURLToPath(new URL("main.js", import.meta.url));
  const args = ["--enable-source-maps", main, "--from", String(from), "--seeds", String(count)];
  const { stdout } = await execute(process.execPath, args, { timeout: 300_000 }).catch(
    (error: Error & { stdout?: string }) => {
      assert.fail(`replay a seed with --seed N --story:\n${error.stdout ?? error.message}`);
    },
  );
  return stdout.trim().split("\n").at(-1) ?? "";
}

test(`${seeds} seeds break no promise`, async (t) => {
  const began = performance.now();
  const each = seeds / parts;
  const lines = await Promise.all(Array.from({ length: parts }, (_, part) => simulate(1 + part * each, each)));
  for (const line of lines) t.diagnostic(line);
  t.diagnostic(`${seeds} seeds in ${((performance.now() - began) / 1000).toFixed(1)} s`);
});

test("a seed is the same story each time", async () => {
  for (const seed of [2, 3, 5, 7, 9, 14]) {
    const [first, second]: string[][] = [[], []];
    assert.ok(first !== undefined && second !== undefined);
    const told = await run(seed, { story: first });
    await run(seed, { story: second });
    assert.equal((await run(seed)).events, told.events, "telling changes nothing");
    assert.ok(first.length > 20);
    assert.deepEqual(first, second, `seed ${seed}`);
  }
});

/** Rules that are missed soon; `main.js --bite` tells of all. */
const quick: readonly Rule[] = ["cas", "d-fence", "i-incarnation"];
for (const rule of quick)
  test(`without ${rule} a promise is broken`, async (t) => {
    const off = new Set([rule]);
    for (let seed = 1; seed <= 400; seed++) {
      const bias = biases[rule];
      const { violation } = await run(seed, { off, ...(bias === undefined ? {} : { bias }) });
      if (violation === null) continue;
      t.diagnostic(`seed ${seed}: ${violation.message}`);
      return;
    }
    assert.fail("400 seeds did not notice");
  });
