import pg from "pg";

/** Makes an empty database in a running server and gives its URL; `serverUrl` names any database of the server. */
export async function createDatabase(serverUrl: string, name: string): Promise<string> {
  const client = new pg.Client({
    connectionString: serverUrl,
    connectionTimeoutMillis: 30_000,
    statement_timeout: 30_000,
  });
  await client.connect();
  try {
    await client.query(`CREATE DATABASE ${pg.escapeIdentifier(name)}`);
  } finally {
    await client.end();
  }
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  return url.href;
}
