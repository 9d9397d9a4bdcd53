import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import pg from "pg";
import { giveTo, postgresUser } from "./postgres-user.js";
import { freeSharedMemory } from "./shared-memory.js";

/** The standby's place in the primary's log: what it lacks is kept. */
export const slotName = "standby";
/** Of these a copy gets the folder alone: a server makes their content anew. */
const emptied = new Set([
  "pg_wal",
  "pg_replslot",
  "pg_dynshmem",
  "pg_notify",
  "pg_serial",
  "pg_snapshots",
  "pg_stat_tmp",
  "pg_subtrans",
]);
const leftOut = new Set(["postmaster.pid", "postmaster.opts", "standby.signal", "promote"]);

/**
 * Copies the data folder of a running server while it goes on (PostgreSQL's low-level backup), so that a standby can follow from it.
 * The folder appears under its name only once it is whole.
 */
export async function copyData(url: string, from: string, to: string): Promise<void> {
  const fresh = `${to}.new`;
  rmSync(fresh, { recursive: true, force: true });
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 30_000, statement_timeout: 120_000 });
  await client.connect();
  try {
    const slots = await client.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = $1", [slotName]);
    if (slots.rowCount === 0) await client.query("SELECT pg_create_physical_replication_slot($1, true)", [slotName]);
    await client.query("SELECT pg_backup_start('standby', true)");
    copyFolder(from, fresh, true);
    const { rows } = await client.query<{ label: string }>("SELECT labelfile AS label FROM pg_backup_stop(false)");
    writeOwned(path.join(fresh, "backup_label"), rows[0]?.label ?? "");
    await freeSharedMemory(to);
    rmSync(to, { recursive: true, force: true });
    renameSync(fresh, to);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Writes a file that belongs to the servers' user. */
export function writeOwned(file: string, text: string): void {
  writeFileSync(file, text, { mode: 0o600 });
  giveTo(postgresUser(), file);
}

function copyFolder(from: string, to: string, top: boolean): void {
  mkdirSync(to, { recursive: true, mode: 0o700 });
  giveTo(postgresUser(), to);
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)];
    if (top && leftOut.has(entry.name)) continue;
    if (entry.isDirectory()) {
      if (top && emptied.has(entry.name)) copyFolders(source, target);
      else copyFolder(source, target, false);
    } else if (entry.isFile()) copyFile(source, target);
  }
}

/** The folders below, without what is in them. */
function copyFolders(from: string, to: string): void {
  mkdirSync(to, { recursive: true, mode: 0o700 });
  giveTo(postgresUser(), to);
  if (path.basename(from) !== "pg_wal") return;
  for (const entry of readdirSync(from, { withFileTypes: true }))
    if (entry.isDirectory()) copyFolders(path.join(from, entry.name), path.join(to, entry.name));
}

/** A file that goes while it is copied is not needed: what comes after the backup's start is in the log. */
function copyFile(from: string, to: string): void {
  try {
    copyFileSync(from, to);
    giveTo(postgresUser(), to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" || (existsSync(from) && lstatSync(from).isFile()))
      throw error;
  }
}
