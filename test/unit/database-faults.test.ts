import assert from "node:assert/strict";
import test from "node:test";
import { Problem } from "../../infra/errors.js";
import { IncarnationChanged } from "../../infra/postgres/database.js";
import { isAway, readFailure } from "../../infra/postgres/faults.js";

const coded = (code: string): Error => Object.assign(new Error("x"), { code });

test("a database that can't be used now is told from a statement at fault", () => {
  const away = [
    ...["ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "ENOTFOUND"].map(coded),
    ...["57P01", "57P02", "57P03", "57014", "25006", "53300", "53100", "08006"].map(coded),
    ...[
      "Connection terminated unexpectedly",
      "Connection terminated due to connection timeout",
      "timeout exceeded when trying to connect",
      "Query read timeout",
      "Client has encountered a connection error and is not queryable",
    ].map((message) => new Error(message)),
    new IncarnationChanged({ systemId: "1", timeline: 2, restoreNumber: 0 }),
  ];
  for (const error of away) {
    assert.equal(isAway(error), true, `${error.message} ${(error as { code?: string }).code}`);
    const told = readFailure(error);
    assert.ok(told instanceof Problem && told.status === 503 && told.cause === error);
  }
  const others = [
    ...["42703", "22P02", "23505", "40P01", "54000"].map(coded),
    new TypeError("x is not a function"),
    new Problem("not_found"),
    "ECONNREFUSED",
    undefined,
  ];
  for (const error of others) {
    assert.equal(isAway(error), false, String(error));
    assert.equal(readFailure(error), error);
  }
});
