import { silentLogger } from "../../infra/logger.js";
import { Database } from "../../infra/postgres/database.js";
import type { TestStack } from "../harness/stack.js";

/** A connection to a datacenter's own database, to look at what no interface shows. Close it. */
export function databaseOf(stack: TestStack, dc: string): Database {
  const postgres = stack.stack.site(dc).postgres;
  if (postgres === undefined) throw new Error(`${dc} has no database`);
  return new Database({ url: postgres.url(), connections: 1, name: "test", log: silentLogger });
}
