import assert from "node:assert/strict";
import test from "node:test";
import { silentLogger } from "../../infra/logger.js";
import type { Database } from "../../infra/postgres/database.js";
import { OutboxTrim } from "../../replication/outbox-trim.js";
import { PayloadSweep } from "../../replication/payload-sweep.js";
import { TaskRetention } from "../../services/jobs/task-retention.js";
import { ManualTime } from "../harness/manual-time.js";

test("what is tidied up in rounds: only by the process that acts for its datacenter, and again after a failure", async () => {
  const time = new ManualTime();
  let active = false;
  let fails = false;
  const asked = { tasks: 0, outbox: 0, objects: 0 };
  const count = (what: keyof typeof asked) => async () => {
    asked[what]++;
    if (fails) throw new Error("not now");
    return { rows: [], rowCount: 0 };
  };
  const common = { time, log: silentLogger, everyMs: 60_000, partitions: 1, active: () => active };
  const first = async (): Promise<undefined> => undefined;
  const database = (what: keyof typeof asked): Database => ({ pool: { query: count(what) } }) as unknown as Database;
  const services = [
    new TaskRetention({ ...common, database: database("tasks"), keepMs: 7 * 86_400_000 }),
    new OutboxTrim({ ...common, database: database("outbox"), first }),
    new PayloadSweep({
      ...common,
      first,
      owns: () => true,
      objects: { list: async () => (await count("objects")()).rows, remove: async () => undefined },
    }),
  ];
  for (const service of services) await service.start();
  await time.advance(300_000);
  assert.deepEqual(asked, { tasks: 0, outbox: 0, objects: 0 });
  active = true;
  fails = true;
  await time.advance(120_000);
  assert.deepEqual(asked, { tasks: 2, outbox: 2, objects: 2 });
  fails = false;
  await time.advance(60_000);
  assert.deepEqual(asked, { tasks: 4, outbox: 3, objects: 3 }, "tasks that ended, and those left behind");
  for (const service of services) await service.stop();
  await time.advance(600_000);
  assert.deepEqual(asked, { tasks: 4, outbox: 3, objects: 3 });
});
