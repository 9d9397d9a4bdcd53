import { randomBytes } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";
import { fits, maxNodes, maxProxiedSites, maxSites } from "./ports.js";

/** A site of a stack. `slot` (1 to 8; 9 for the witness) decides its ports, for life. */
export interface SiteEntry {
  readonly name: string;
  readonly kind: "datacenter" | "witness";
  readonly slot: number;
}

/** `stack.json`: all that later commands need to know about a stack. Holds passwords, so only its owner may read it. */
export interface StackFile {
  readonly version: 1;
  /** In the order in which they joined. */
  readonly sites: readonly SiteEntry[];
  readonly shards: number;
  readonly partitions: number | null;
  readonly portBase: number;
  /** Hothot processes of each datacenter. */
  readonly nodes: number;
  /** Each datacenter's PostgreSQL has a synchronous standby. */
  readonly standby?: boolean;
  /** Milliseconds that the proxies between sites add; null: there are no proxies. */
  readonly rttMs: number | null;
  readonly worker: boolean;
  readonly cooprPort: number | null;
  /** Folder of PostgreSQL's programs; null: those of the npm package. */
  readonly postgres: string | null;
  /** Of PostgreSQL and NATS. */
  readonly password: string;
  /** Further HOTHOT_ variables of the nodes. */
  readonly env: Readonly<Record<string, string>>;
  /** The group's log has been created. */
  readonly initialised: boolean;
  /** Of the log; absent: 1. */
  readonly generation?: number;
  /** Whose copy the log's present generation begins with. */
  readonly primary?: string;
  /** Sites that are not of the present generation: they were off when it began. */
  readonly left?: readonly SiteEntry[];
}

/** What the caller asks for; what is left out is as it was, or the default. */
export interface StackOptions {
  readonly dcs?: readonly string[];
  readonly witness?: string;
  readonly shards?: number;
  readonly partitions?: number;
  readonly portBase?: number;
  readonly nodes?: number;
  readonly standby?: boolean;
  readonly rttMs?: number;
  readonly worker?: boolean;
  readonly cooprPort?: number;
  readonly postgres?: string;
  readonly env?: Readonly<Record<string, string>>;
}

const fileOf = (dir: string): string => path.join(dir, "stack.json");

/** The stack that lives in `dir`, if there is one. @throws FatalError bad_stack_file */
export function readStackFile(dir: string): StackFile | undefined {
  const file = fileOf(dir);
  if (!existsSync(file)) return undefined;
  try {
    const found = JSON.parse(readFileSync(file, "utf8")) as StackFile;
    if (found.version === 1 && Array.isArray(found.sites)) return found;
    throw new Error("another version");
  } catch (error) {
    throw new FatalError(
      "bad_stack_file",
      `${file} can't be read (${reason(error)}).`,
      "Use the user that made the stack, or another --dir.",
      error,
    );
  }
}

/** @throws FatalError not_writable */
export function writeStackFile(dir: string, stack: StackFile): void {
  try {
    makeFolder(dir);
    const fresh = `${fileOf(dir)}.new`;
    writeFileSync(fresh, `${JSON.stringify(stack, undefined, 2)}\n`, { mode: 0o600 });
    renameSync(fresh, fileOf(dir));
  } catch (error) {
    throw notWritable(dir, error);
  }
}

/** Room that a stack needs to begin or to go on, bytes. */
const roomToBegin = 500e6;
const roomToGoOn = 100e6;

/** @throws FatalError not_writable, disk_full */
export function requireRoom(dir: string): void {
  const fresh = !existsSync(fileOf(dir));
  try {
    makeFolder(dir);
    accessSync(dir, constants.W_OK);
  } catch (error) {
    throw notWritable(dir, error);
  }
  const { bavail, bsize } = statfsSync(dir);
  const needed = fresh ? roomToBegin : roomToGoOn;
  if (bavail * bsize < needed) {
    const mb = (bytes: number): string => `${Math.floor(bytes / 1e6)} MB`;
    throw new FatalError(
      "disk_full",
      `The disk of ${dir} has ${mb(bavail * bsize)} left; a stack needs ${mb(needed)}.`,
      "Free some space, or put the stack elsewhere with --dir.",
    );
  }
}

/** The stack that was asked for, where none is. @throws FatalError bad_option */
export function newStack(options: StackOptions): StackFile {
  const dcs = options.dcs ?? ["east", "central", "west"];
  const sites: SiteEntry[] = dcs.map((name, i) => ({ name, kind: "datacenter", slot: i + 1 }));
  if (options.witness !== undefined) sites.push({ name: options.witness, kind: "witness", slot: maxSites });
  return checked({
    version: 1,
    sites,
    shards: options.shards ?? 64,
    partitions: options.partitions ?? null,
    portBase: options.portBase ?? 8100,
    nodes: options.nodes ?? 1,
    ...(options.standby === true ? { standby: true } : {}),
    rttMs: options.rttMs ?? null,
    worker: options.worker ?? true,
    cooprPort: options.cooprPort ?? null,
    postgres: options.postgres ?? null,
    password: randomBytes(16).toString("hex"),
    env: options.env ?? {},
    initialised: false,
  });
}

/**
 * The stack that is there, with what may change changed.
 * @throws FatalError other_stack when the caller asks for what is fixed for life; bad_option
 */
export function changedStack(dir: string, stack: StackFile, options: StackOptions): StackFile {
  const namesOf = (kind: string): string =>
    stack.sites
      .filter((site) => site.kind === kind)
      .map((site) => site.name)
      .join(",");
  const fixed: [string, string, string | undefined][] = [
    ["--dcs", namesOf("datacenter"), options.dcs?.join(",")],
    ["--witness", namesOf("witness"), options.witness],
    ["--shards", String(stack.shards), options.shards?.toString()],
    ["--partitions", String(stack.partitions), options.partitions?.toString()],
  ];
  for (const [option, is, asked] of fixed) {
    if (asked === undefined || asked === is || (option === "--partitions" && stack.partitions === null)) continue;
    throw new FatalError(
      "other_stack",
      `The stack in ${dir} has ${option} ${is || "(none)"}, not ${asked}; that is fixed for its life.`,
      `Leave ${option} out, use another --dir, or end it (\`hothot down\`) and remove ${dir}.`,
    );
  }
  return checked({
    ...stack,
    portBase: options.portBase ?? stack.portBase,
    nodes: options.nodes ?? stack.nodes,
    ...(options.standby === true ? { standby: true } : {}),
    rttMs: options.rttMs ?? stack.rttMs,
    worker: options.worker ?? stack.worker,
    cooprPort: options.cooprPort ?? stack.cooprPort,
    postgres: options.postgres ?? stack.postgres,
    env: options.env ?? stack.env,
  });
}

/** The stack whose log begins anew with the copy of `primary`, and with these sites; the others are left. */
export function regenerated(stack: StackFile, primary: string, sites: readonly SiteEntry[]): StackFile {
  const names = sites.map((site) => site.name);
  return checked({
    ...stack,
    sites,
    left: [...stack.sites, ...(stack.left ?? [])].filter((site) => !names.includes(site.name)),
    generation: (stack.generation ?? 1) + 1,
    primary,
    initialised: false,
  });
}

/** The entry that a datacenter of this name gets, or had before it was left. @throws FatalError bad_option */
export function entryFor(stack: StackFile, name: string): SiteEntry {
  const before = stack.left?.find((site) => site.name === name);
  if (before !== undefined) return before;
  const all = [...stack.sites, ...(stack.left ?? [])];
  const slot = Math.max(0, ...all.filter((site) => site.kind === "datacenter").map((site) => site.slot)) + 1;
  if (slot >= maxSites)
    throw new FatalError("bad_option", "There are no ports for one more datacenter.", "Use another --port-base range.");
  return { name, kind: "datacenter", slot };
}

/** The stack with one more datacenter. @throws FatalError bad_option, not_available */
export function addedSite(stack: StackFile, name: string): StackFile {
  if (stack.rttMs !== null)
    throw new FatalError(
      "not_available",
      "A stack whose links go through proxies can't grow while it runs.",
      "Use one that was started without --rtt.",
    );
  if (stack.sites.length < 2)
    throw new FatalError(
      "not_available",
      "The NATS server of a lone site is no cluster, so no other one can join it.",
      "Start a stack of two or more sites (`hothot up --dcs a,b`).",
    );
  return checked({
    ...stack,
    sites: [...stack.sites, entryFor(stack, name)],
    left: (stack.left ?? []).filter((site) => site.name !== name),
  });
}

function checked(stack: StackFile): StackFile {
  const bad = (message: string, wayOut: string): never => {
    throw new FatalError("bad_option", message, wayOut);
  };
  const names = stack.sites.map((site) => site.name);
  for (const name of names) {
    if (!/^[a-z][a-z0-9-]{0,31}$/.test(name))
      bad(
        `${JSON.stringify(name)} can't be a site's name.`,
        "Use 1 to 32 of a-z, 0-9 and '-', beginning with a letter.",
      );
  }
  if (new Set(names).size < names.length) bad("Two sites have the same name.", "Name each once.");
  const dcs = stack.sites.filter((site) => site.kind === "datacenter").length;
  if (dcs < 1 || dcs >= maxSites) bad(`A stack can't have ${dcs} datacenters.`, `Name 1 to ${maxSites - 1}.`);
  if (stack.rttMs !== null && names.length > maxProxiedSites)
    bad(`With --rtt there can't be ${names.length} sites.`, `Name at most ${maxProxiedSites}.`);
  if (stack.nodes > maxNodes || !fits(stack.nodes, stack.rttMs === null ? 0 : names.length))
    bad(`There are not enough ports for ${stack.nodes} nodes in each datacenter.`, "Use fewer --nodes.");
  return stack;
}

/** As mkdir -p. Node's own never ends where the system says ENOENT for a folder whose parent is there (below /proc, for one). */
function makeFolder(dir: string): void {
  if (!existsSync(dir)) {
    if (dir !== path.dirname(dir)) makeFolder(path.dirname(dir));
    mkdirSync(dir);
  }
}

function notWritable(dir: string, error: unknown): FatalError {
  return new FatalError(
    "not_writable",
    `${dir} can't be written (${reason(error)}).`,
    "Make it writable, or put the stack elsewhere with --dir.",
    error,
  );
}

function reason(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? (error as Error).message;
}
