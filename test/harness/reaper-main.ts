import { createInterface } from "node:readline";
import { endFolder } from "./folder.js";

// Signals to the test's terminal are not for the reaper: it ends after the test.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);
// Also those that the test cleaned up itself: what it had under way may have written there again.
const folders: string[] = [];
for await (const line of createInterface({ input: process.stdin })) folders.push(line);
for (const folder of folders) await endFolder(folder);
