import { spawn, type ChildProcess } from "node:child_process";
import path from "node:path";

/**
 * A small process beside the test that ends what the test leaves: it holds a pipe to the test's process, and when that ends,
 * however it ends, it kills every process noted in a pid file below the folders it was told of, and removes them.
 */
export function watchFolder(dir: string): void {
  if (reaper === undefined) {
    const program = path.join(import.meta.dirname, "reaper-main.js");
    reaper = spawn(process.execPath, [program], { detached: true, stdio: ["pipe", "ignore", "ignore"], cwd: "/" });
    reaper.unref();
    (reaper.stdin as unknown as { unref(): void }).unref();
  }
  reaper.stdin?.write(`${dir}\n`);
}

let reaper: ChildProcess | undefined;
