import { createInterface } from "node:readline";
import { endFolder } from "./folder.js";

// Signals to the test's terminal are not for the reaper: it ends after the test.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);
const folders = new Set<string>();
for await (const line of createInterface({ input: process.stdin })) {
  if (line.startsWith("+")) folders.add(line.slice(1));
  else folders.delete(line.slice(1));
}
for (const folder of folders) await endFolder(folder);
