import assert from "node:assert/strict";
import test from "node:test";
import type { Logger } from "../../infra/logger.js";
import { Rounds } from "../../infra/rounds.js";
import { ManualTime, settled } from "../harness/manual-time.js";

test("one round after the other, each after its time; one that fails is told and followed by the next", async () => {
  const time = new ManualTime();
  const told: string[] = [];
  const log = { warn: (message: string) => void told.push(message) } as unknown as Logger;
  const answers: (() => Promise<number | void>)[] = [
    async () => undefined,
    () => time.sleep(500),
    async () => 10,
    () => Promise.reject(new Error("no")),
    async () => undefined,
  ];
  const begun: number[] = [];
  const start = time.monotonic();
  const round = (): Promise<number | void> => {
    begun.push(time.monotonic() - start);
    return answers.shift()?.() ?? Promise.resolve();
  };
  const rounds = new Rounds({ what: "count", everyMs: 100, round, time, log });
  rounds.start();
  await time.advance(1_000);
  assert.deepEqual(begun, [100, 200, 800, 810, 910]);
  assert.deepEqual(told, ["could not count"]);
  await rounds.stop();
  await time.advance(1_000);
  assert.equal(begun.length, 5);
});

test("a stop waits for the round under way, which hears of it", async () => {
  const time = new ManualTime();
  const log = { warn: () => assert.fail() } as unknown as Logger;
  const done: string[] = [];
  const round = async (stopped: AbortSignal): Promise<void> => {
    await time.sleep(60_000, stopped);
    done.push(stopped.aborted ? "ended early" : "whole");
  };
  const rounds = new Rounds({ what: "wait", everyMs: 100, round, time, log });
  rounds.start();
  await time.advance(150);
  assert.deepEqual(done, []);
  await rounds.stop();
  await settled();
  assert.deepEqual(done, ["ended early"]);
});
