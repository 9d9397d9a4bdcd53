import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { problems } from "../../infra/errors.js";

const page = path.resolve(import.meta.dirname, "../../../routing/README.md");
const begin = "<!-- problems: generated from infra/errors.ts -->\n";
const end = "<!-- end of problems -->";

/** The catalogue as a table; `UPDATE_README=1` writes it into the page. */
test("routing/README.md shows the catalogue of problems as it is", () => {
  const rows = Object.entries(problems).map(
    ([code, { status, retryable, meaning, advice }]) =>
      `| \`${code}\` | ${status} | ${retryable ? "yes" : "no"} | ${meaning} | ${advice} |`,
  );
  const table = [
    "| code | status | retryable | meaning | what to do |",
    "| --- | --- | --- | --- | --- |",
    ...rows,
  ].join("\n");
  const text = readFileSync(page, "utf8");
  const from = text.indexOf(begin) + begin.length;
  const to = text.indexOf(end);
  assert.ok(from >= begin.length && to >= from, "the page has the marks that the table goes between");
  const fresh = `${text.slice(0, from)}\n${table}\n\n${text.slice(to)}`;
  if (process.env["UPDATE_README"] === "1") writeFileSync(page, fresh);
  assert.equal(readFileSync(page, "utf8"), fresh, "run the test with UPDATE_README=1");
});
