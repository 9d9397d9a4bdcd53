import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Problem } from "../../infra/errors.js";
import { Entrance } from "../../services/http/entrance.js";
import { ManualTime } from "../harness/manual-time.js";

/** Time whose turns of the event loop the test ends itself. */
class Turns extends ManualTime {
  #actions: (() => void)[] = [];

  override soon(action: () => void): void {
    this.#actions.push(action);
  }

  async endTurn(): Promise<void> {
    for (const action of this.#actions.splice(0)) action();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const overloaded = (error: unknown): boolean => error instanceof Problem && error.code === "overloaded";

describe("the entrance of requests", () => {
  /** Brings so many requests, and notes which have begun and which were refused. */
  const crowd = (entrance: Entrance, count: number): { begun: number[]; refused: number[] } => {
    const seen = { begun: [] as number[], refused: [] as number[] };
    for (let n = 0; n < count; n++) {
      const turn = entrance.pass();
      if (turn === undefined) seen.begun.push(n);
      else
        turn.then(
          () => seen.begun.push(n),
          (error: unknown) => (assert.ok(overloaded(error)), seen.refused.push(n)),
        );
    }
    return seen;
  };

  it("lets some begin at once and as many in each later turn, in their order", async () => {
    const time = new Turns();
    const entrance = new Entrance(time, 1_000);
    const seen = crowd(entrance, 50);
    const first = seen.begun.length;
    assert.ok(first > 1 && first < 25, `${first} began at once`);
    await time.endTurn();
    assert.equal(seen.begun.length, 2 * first);
    for (let turn = 0; turn < 10; turn++) await time.endTurn();
    assert.deepEqual(
      seen.begun,
      Array.from({ length: 50 }, (_, n) => n),
    );
    assert.deepEqual(seen.refused, []);
  });

  it("keeps nobody waiting who comes alone, turn after turn, and none before those that wait", async () => {
    const time = new Turns();
    const entrance = new Entrance(time, 1_000);
    for (let turn = 0; turn < 100; turn++) {
      assert.equal(entrance.pass(), undefined);
      await time.endTurn();
    }
    const seen = crowd(entrance, 40);
    const behind = crowd(entrance, 1);
    assert.deepEqual(behind.begun, []);
    for (let turn = 0; turn < 10; turn++) await time.endTurn();
    assert.equal(seen.begun.length, 40);
    assert.deepEqual(behind.begun, [0]);
  });

  it("refuses who has waited too long, and nobody who comes after that", async () => {
    const time = new Turns();
    const entrance = new Entrance(time, 1_000);
    const late = crowd(entrance, 40);
    const first = late.begun.length;
    time.set(time.monotonic() + 2_500);
    for (let turn = 0; turn < 10; turn++) await time.endTurn();
    assert.equal(late.begun.length, first);
    assert.equal(late.refused.length, 40 - first);
    const after = crowd(entrance, 40);
    for (let turn = 0; turn < 10; turn++) await time.endTurn();
    assert.equal(after.begun.length, 40);
  });

  it("refuses at once when too many wait", () => {
    const entrance = new Entrance(new Turns(), 5);
    let began = 0;
    while (entrance.pass() === undefined) began++;
    for (let waits = 1; waits < 5; waits++) assert.ok(entrance.pass() !== undefined);
    assert.throws(() => entrance.pass(), overloaded);
    assert.ok(began > 1);
  });
});
