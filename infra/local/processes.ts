import { execFileSync, spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";
import { until } from "./wait.js";

/** A process of this machine: its number, and when it started, since numbers are used again. */
export interface ProcessId {
  readonly pid: number;
  readonly started: string;
}

export interface LaunchOptions {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** Standard output and error are appended here. */
  readonly logFile: string;
  readonly pidFile: string;
  readonly uid?: number;
  readonly gid?: number;
}

/** Starts a process that outlives this one, in a session of its own, and notes it in its pid file. */
export async function launch(options: LaunchOptions): Promise<ProcessId> {
  mkdirSync(path.dirname(options.logFile), { recursive: true });
  const log = openSync(options.logFile, "a", 0o640);
  try {
    const child = spawn(options.command, options.args, {
      detached: true,
      stdio: ["ignore", log, log],
      cwd: options.cwd ?? "/",
      env: options.env ?? process.env,
      ...(options.uid === undefined ? {} : { uid: options.uid }),
      ...(options.gid === undefined ? {} : { gid: options.gid }),
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", (error) =>
        reject(
          new FatalError(
            "start_failed",
            `${options.command} can't be started: ${error.message}`,
            "Run `npm run setup`.",
            error,
          ),
        ),
      );
    });
    child.unref();
    const pid = child.pid ?? 0;
    const process_ = { pid, started: startTimeOf(pid) ?? "gone" };
    writePidFile(options.pidFile, process_);
    return process_;
  } finally {
    closeSync(log);
  }
}

/** The process that the pid file names, if it still is that process; a stale file is removed. */
export function running(pidFile: string): ProcessId | undefined {
  let noted: ProcessId;
  try {
    noted = JSON.parse(readFileSync(pidFile, "utf8")) as ProcessId;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    noted = { pid: 0, started: "" };
  }
  if (isAlive(noted)) return noted;
  rmSync(pidFile, { force: true });
  return undefined;
}

export function isAlive(process_: ProcessId): boolean {
  return process_.pid > 1 && startTimeOf(process_.pid) === process_.started;
}

/** The process and all below it, parents before children; empty when it is gone. */
export function treeOf(process_: ProcessId): number[] {
  return isAlive(process_) ? [process_.pid, ...descendantsOf(process_.pid)] : [];
}

/**
 * Sends a signal to the process and all below it (PostgreSQL's children lead process groups of their own, so a group's signal
 * would not reach them). For SIGKILL and SIGSTOP the parent is stopped first, so that it starts no other child meanwhile.
 */
export function signalTree(process_: ProcessId, signal: "SIGKILL" | "SIGSTOP" | "SIGCONT"): void {
  if (!isAlive(process_)) return;
  if (signal === "SIGCONT") {
    for (const pid of treeOf(process_).reverse()) send(pid, signal);
    return;
  }
  send(process_.pid, "SIGSTOP");
  const done = new Set<number>();
  for (let more = true; more;) {
    more = false;
    for (const pid of descendantsOf(process_.pid)) {
      if (done.has(pid)) continue;
      done.add(pid);
      more = true;
      send(pid, signal);
    }
  }
  if (signal === "SIGKILL") send(process_.pid, "SIGKILL");
}

/** Asks the process to end (and wakes it if it was stopped); kills it and its children when it has not ended after `ms`. */
export async function endProcess(process_: ProcessId, signal: NodeJS.Signals, ms: number): Promise<void> {
  if (!isAlive(process_)) return;
  signalTree(process_, "SIGCONT");
  send(process_.pid, signal);
  if (await waitGone(process_, ms)) return;
  signalTree(process_, "SIGKILL");
  await waitGone(process_, 5000);
}

/** True when the process was gone within `ms`. */
export async function waitGone(process_: ProcessId, ms: number): Promise<boolean> {
  return (await until(() => !isAlive(process_), ms, 10)) === true;
}

export function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** Names one run of one process: pids come again, and times since boot come again after a boot. Undefined when it is gone. */
export function startTimeOf(pid: number): string | undefined {
  if (!hasProc) return startTimeByPs(pid);
  const fields = statOf(pid);
  if (fields === undefined || fields.state === "Z" || fields.state === "X") return undefined;
  return `${bootId}/${fields.startTicks}`;
}

export function writePidFile(pidFile: string, process_: ProcessId): void {
  mkdirSync(path.dirname(pidFile), { recursive: true });
  const fresh = `${pidFile}.new`;
  writeFileSync(fresh, `${JSON.stringify(process_)}\n`);
  renameSync(fresh, pidFile);
}

const hasProc = existsSync("/proc/self/stat");
const bootId = hasProc ? readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim().slice(0, 8) : "";

interface Stat {
  readonly state: string;
  readonly parent: number;
  readonly startTicks: string;
}

function statOf(pid: number): Stat | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return undefined;
  }
  // The second field is the program's name in brackets, which may hold anything.
  const [state, parent, ...rest] = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { state: state ?? "", parent: Number(parent), startTicks: rest[17] ?? "" };
}

function startTimeByPs(pid: number): string | undefined {
  try {
    const line = execFileSync("ps", ["-o", "stat=,lstart=", "-p", String(pid)], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
    return line === "" || line.startsWith("Z") ? undefined : line.replace(/^\S+\s+/, "");
  } catch {
    return undefined;
  }
}

function descendantsOf(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const [pid, parent] of parents()) children.set(parent, [...(children.get(parent) ?? []), pid]);
  const found: number[] = [];
  for (let level = children.get(root) ?? []; level.length > 0; level = level.flatMap((pid) => children.get(pid) ?? []))
    found.push(...level);
  return found;
}

function parents(): [pid: number, parent: number][] {
  if (hasProc) {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .flatMap((name) => {
        const fields = statOf(Number(name));
        return fields === undefined || fields.state === "Z" ? [] : [[Number(name), fields.parent] as [number, number]];
      });
  }
  return execFileSync("ps", ["-A", "-o", "pid=,ppid="], { encoding: "utf8" })
    .split("\n")
    .map((line) => line.trim().split(/\s+/).map(Number))
    .filter((pair) => pair.length === 2) as [number, number][];
}
