import { after, before, describe, it } from "node:test";
import { startStack, type TestStack } from "../harness/stack.js";
import { runCase } from "./switchover.js";
import { switchoverCases } from "./switchover-cases.js";

/** `npm run chaos -- --scenario switchover` runs all of them. */
const quick = [
  "the target is killed before the append",
  "the log's leader stands still, and the owner is killed with its append unanswered",
  "the append is stored late, when its tries have had no answer: the log's leader stands still for a second",
  "the target is killed after the append",
];

describe("a planned move that goes wrong at a step ends with one owner", { timeout: 300_000 }, () => {
  let stack: TestStack;
  before(async () => {
    stack = await startStack({ rttMs: 0, env: { HOTHOT_AUTOMATIC_FAILBACK: "false" } });
  });
  after(() => stack?.stop());

  for (const [turn, name] of quick.entries())
    it(name, async (t) => {
      const found = switchoverCases.find((each) => each.name === name);
      if (found === undefined) throw new Error(`there is no case ${name}`);
      const { from, to, owner, epochs, ms } = await runCase(stack, found, turn);
      t.diagnostic(
        `${from} -> ${to}: ${owner} owns it, ${epochs} epochs later; written again after ${Math.round(ms)} ms`,
      );
    });
});
