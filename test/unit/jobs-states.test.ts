import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { Problem } from "../../infra/errors.js";
import { clusterStatuses, jobStatuses } from "../../replication/entities.js";
import { diagramOf, tableOf, withGenerated } from "../../services/jobs/diagram.js";
import {
  clusterTransitions,
  jobTransitions,
  nextClusterStatus,
  nextJobStatus,
  type OperationKind,
} from "../../services/jobs/states.js";

const code = (wanted: string) => (error: unknown) => error instanceof Problem && error.code === wanted;

test("every row of the job table is what the code does, and everything else is refused", () => {
  const events = [...new Set(jobTransitions.map((row) => row.event))];
  for (const current of ["none", ...jobStatuses] as const)
    for (const event of events) {
      const row = jobTransitions.find((each) => each.current === current && each.event === event);
      if (row?.next != null) assert.equal(nextJobStatus(current, event), row.next);
      else assert.throws(() => nextJobStatus(current, event), code("invalid_transition"));
    }
});

test("no table decides the same thing twice", () => {
  for (const table of [jobTransitions, clusterTransitions]) {
    const keys = table.map((row) => `${row.current}/${row.event}`);
    assert.equal(new Set(keys).size, keys.length);
  }
});

test("every operation starts from every other status, but from terminated only create and delete", () => {
  const kinds: OperationKind[] = ["create", "change", "delete"];
  for (const status of clusterStatuses)
    for (const kind of kinds) {
      const start = () => nextClusterStatus(status, `start ${kind}`);
      if (status === "pending") assert.throws(start, code("job_in_progress"));
      else if (status === "terminated" && kind === "change") assert.throws(start, code("invalid_transition"));
      else assert.equal(start(), "pending");
    }
});

test("a job's end gives the cluster the status of the contract", () => {
  assert.equal(nextClusterStatus("none", "put"), "active");
  assert.equal(nextClusterStatus("pending", "complete create"), "active");
  assert.equal(nextClusterStatus("pending", "complete change"), "active");
  assert.equal(nextClusterStatus("pending", "complete delete"), "terminated");
  for (const ending of ["fail", "cancel"] as const) {
    assert.equal(nextClusterStatus("pending", `${ending} create`), "incomplete");
    assert.equal(nextClusterStatus("pending", `${ending} delete`), "incomplete");
    assert.equal(nextClusterStatus("pending", `${ending} change`), "inconsistent");
  }
});

/** With UPDATE_README=1 the page is written instead. */
test("the README's diagrams and tables are those of the code", () => {
  const beside = path.resolve(import.meta.dirname, "../../services/jobs/README.md");
  const source = path.resolve(import.meta.dirname, "../../../services/jobs/README.md");
  const file = existsSync(source) ? source : beside;
  const page = readFileSync(file, "utf8");
  const wanted = withGenerated(page, {
    "job diagram": diagramOf(jobTransitions),
    "job table": tableOf(jobTransitions),
    "cluster diagram": diagramOf(clusterTransitions),
    "cluster table": tableOf(clusterTransitions),
  });
  if (process.env["UPDATE_README"] === "1") writeFileSync(file, wanted);
  else assert.equal(page, wanted);
});
