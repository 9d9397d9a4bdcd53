import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { running, signalTree, waitGone } from "../../infra/local/processes.js";
import { freeSharedMemory, lockFileName } from "../../infra/local/shared-memory.js";
import { watchFolder } from "./reaper.js";

/** A fresh folder that is emptied of processes and removed when the test's process ends, however it ends. */
export function freshFolder(name: string): string {
  const dir = mkdtempSync(path.join(os.tmpdir(), `hothot-${name}-`));
  watchFolder(dir);
  return dir;
}

/** Kills every process noted in a pid file below the folder, and removes it. */
export async function endFolder(dir: string): Promise<void> {
  const files = filesBelow(dir);
  const processes = files
    .filter((file) => file.endsWith(".pid") && path.basename(file) !== lockFileName)
    .flatMap((file) => running(file) ?? []);
  for (const process_ of processes) signalTree(process_, "SIGKILL");
  await Promise.all(processes.map((process_) => waitGone(process_, 10_000)));
  const data = files.filter((file) => path.basename(file) === lockFileName).map((file) => path.dirname(file));
  await Promise.all(data.map(freeSharedMemory));
  // Children of a killed server may still write for a moment.
  rmSync(dir, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
}

/** Folder by folder: one that a server removes meanwhile must not hide the others. */
function filesBelow(dir: string): string[] {
  try {
    return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
      const full = path.join(dir, entry.name);
      return entry.isDirectory() ? filesBelow(full) : entry.isFile() ? [full] : [];
    });
  } catch {
    return [];
  }
}
