import pg from "pg";
import type { TestStack } from "../harness/stack.js";

/** A connection to a datacenter's own database, to look at what no interface shows. End it. */
export async function connectTo(stack: TestStack, dc: string): Promise<pg.Client> {
  const postgres = stack.stack.site(dc).postgres;
  if (postgres === undefined) throw new Error(`${dc} has no database`);
  const client = new pg.Client({ connectionString: postgres.url() });
  await client.connect();
  return client;
}
