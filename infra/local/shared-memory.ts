import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { until } from "./wait.js";

/** Where a PostgreSQL server notes its process and, in its seventh line, key and id of its System V shared memory. */
export const lockFileName = "postmaster.pid";

/** Children of a killed server end soon after it. */
const childrenMs = 2_000;

/** Key and id of the shared memory that the server of these data had; undefined when there is none. */
export function sharedMemoryOf(data: string): { readonly key: string; readonly id: string } | undefined {
  const [key, id] = (read(path.join(data, lockFileName)).split("\n")[6] ?? "").trim().split(/\s+/);
  return key === undefined || id === undefined ? undefined : { key, id };
}

/** How many processes use that shared memory; undefined when it is gone, or there is no /proc. */
export function usersOf({ key, id }: { readonly key: string; readonly id: string }): number | undefined {
  const rows = read("/proc/sysvipc/shm")
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  const row = rows.find((columns) => columns[0] === key && columns[1] === id);
  return row === undefined ? undefined : Number(row[6]);
}

/**
 * A killed PostgreSQL server leaves a small piece of shared memory, of which a system has some thousands, unless a server of the same
 * data is started again. Removes it; nothing happens while somebody uses it, or where there is no `ipcrm`.
 */
export async function freeSharedMemory(data: string): Promise<void> {
  const found = sharedMemoryOf(data);
  if (found === undefined || usersOf(found) === undefined) return;
  if ((await until(() => usersOf(found) === 0 || undefined, childrenMs, 20)) === undefined) return;
  await promisify(execFile)("ipcrm", ["-m", found.id]).catch(() => undefined);
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
