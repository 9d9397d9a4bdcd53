import { spawn, type ChildProcess } from "node:child_process";
import path from "node:path";

/**
 * A small process beside the test that ends what the test leaves: it holds a pipe to the test's process, and when that ends,
 * however it ends, it kills every process noted in a pid file below the folders it was told of, and removes them.
 */
export function watchFolder(dir: string): void {
  tell(`+${dir}`);
}

/** The folder was cleaned up already. */
export function forgetFolder(dir: string): void {
  tell(`-${dir}`);
}

let reaper: ChildProcess | undefined;

function tell(line: string): void {
  if (reaper === undefined) {
    // In the reaper itself, for one: nobody was told of the folder.
    if (line.startsWith("-")) return;
    reaper = spawn(process.execPath, [path.join(import.meta.dirname, "reaper-main.js")], {
      detached: true,
      stdio: ["pipe", "ignore", "ignore"],
      cwd: "/",
    });
    reaper.unref();
    (reaper.stdin as unknown as { unref(): void }).unref();
  }
  reaper.stdin?.write(`${line}\n`);
}
