import { execFileSync } from "node:child_process";
import { chownSync, statSync } from "node:fs";
import path from "node:path";
import { FatalError } from "../errors.js";

/** PostgreSQL refuses to run as root; this tells as whom it runs instead. Nothing of this applies to an ordinary user. */
export interface PostgresUser {
  readonly uid: number;
  readonly gid: number;
}

/** The user that the servers run as: undefined for ourselves. No user is ever created. */
export function postgresUser(): PostgresUser | undefined {
  if (process.getuid?.() !== 0) return undefined;
  for (const name of ["postgres", "nobody"]) {
    const ids = idsOf(name);
    if (ids !== undefined && ids.uid !== 0) return ids;
  }
  throw new FatalError(
    "no_user",
    "PostgreSQL can't run as root, and there is neither a user `postgres` nor `nobody`.",
    "Run hothot as an ordinary user.",
  );
}

export function giveTo(user: PostgresUser | undefined, file: string): void {
  if (user !== undefined) chownSync(file, user.uid, user.gid);
}

/** How to start a program as `user`, given the files it has to reach. */
export function commandAs(
  user: PostgresUser | undefined,
  command: string,
  args: readonly string[],
  reaches: readonly string[],
): { command: string; args: string[]; uid?: number; gid?: number } {
  if (user === undefined) return { command, args: [...args] };
  if ([command, ...reaches].every((file) => canReach(user, file))) return { command, args: [...args], ...user };
  // A folder above is closed to that user (a checkout in root's home, say), so it gets the one capability that opens it.
  const ids = [`--reuid=${user.uid}`, `--regid=${user.gid}`, "--clear-groups"];
  return {
    command: "setpriv",
    args: [...ids, "--inh-caps=+dac_override", "--ambient-caps=+dac_override", command, ...args],
  };
}

function canReach(user: PostgresUser, file: string): boolean {
  for (let folder = path.dirname(path.resolve(file)); ; folder = path.dirname(folder)) {
    const { uid, gid, mode } = statSync(folder);
    const bit = uid === user.uid ? 0o100 : gid === user.gid ? 0o010 : 0o001;
    if ((mode & bit) === 0) return false;
    if (folder === path.dirname(folder)) return true;
  }
}

function idsOf(name: string): PostgresUser | undefined {
  try {
    const id = (flag: string): number =>
      Number(execFileSync("id", [flag, name], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
    return { uid: id("-u"), gid: id("-g") };
  } catch {
    return undefined;
  }
}
