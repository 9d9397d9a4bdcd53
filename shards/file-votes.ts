import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import path from "node:path";
import { FatalError } from "../infra/errors.js";
import type { SiteName } from "./ids.js";
import { addVote } from "./postgres-store.js";
import type { Vote, VoteStore } from "./store.js";

interface Stored {
  readonly group: string;
  readonly witness: string;
  /** Raised by hand when an older copy of the file is put back (rule i). */
  readonly incarnation: number;
  readonly votes: Readonly<Record<SiteName, Vote>>;
}

/** A witness's votes, in one file that is replaced whole and synced before a vote is given (rule a). One process at a time. */
export class FileVotes implements VoteStore {
  readonly #file: string;
  readonly #lock: string;
  #stored: Stored;

  /** @throws FatalError data_dir, wrong_data_dir, witness_runs */
  constructor(dir: string, group: string, witness: SiteName) {
    this.#file = path.join(dir, "votes.json");
    this.#lock = path.join(dir, "witness.pid");
    try {
      mkdirSync(dir, { recursive: true });
      this.#takeLock();
      this.#stored = this.#read() ?? { group, witness, incarnation: 1, votes: {} };
    } catch (error) {
      if (error instanceof FatalError) throw error;
      throw new FatalError(
        "data_dir",
        `the witness's folder ${dir} can't be used: ${(error as Error).message}`,
        "Mend HOTHOT_DATA_DIR, or the folder's rights.",
        error,
      );
    }
    if (this.#stored.group !== group || this.#stored.witness !== witness)
      throw new FatalError(
        "wrong_data_dir",
        `the folder ${dir} belongs to witness '${this.#stored.witness}' of group '${this.#stored.group}'`,
        "Each witness has a folder of its own: mend HOTHOT_DATA_DIR.",
      );
    this.#write();
  }

  get incarnation(): number {
    return this.#stored.incarnation;
  }

  async load(): Promise<Map<SiteName, Vote>> {
    return new Map(Object.entries(this.#stored.votes));
  }

  async vote(target: SiteName, epochs: Readonly<Record<string, number>>): Promise<Vote> {
    const vote = addVote(this.#stored.votes[target], epochs);
    this.#stored = { ...this.#stored, votes: { ...this.#stored.votes, [target]: vote } };
    this.#write();
    return vote;
  }

  release(): void {
    rmSync(this.#lock, { force: true });
  }

  #read(): Stored | undefined {
    try {
      return JSON.parse(readFileSync(this.#file, "utf8")) as Stored;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw error;
    }
  }

  #write(): void {
    const fresh = `${this.#file}.new`;
    const file = openSync(fresh, "w", 0o600);
    try {
      writeSync(file, `${JSON.stringify(this.#stored)}\n`);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(fresh, this.#file);
    const folder = openSync(path.dirname(this.#file), "r");
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  }

  #takeLock(): void {
    try {
      const pid = Number(readFileSync(this.#lock, "utf8"));
      if (pid !== process.pid && isAlive(pid))
        throw new FatalError(
          "witness_runs",
          `process ${pid} gives this witness's word already`,
          `Stop it first; if it is something else, remove ${this.#lock}.`,
        );
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
    const file = openSync(this.#lock, "w", 0o600);
    writeSync(file, String(process.pid));
    closeSync(file);
  }
}

function isAlive(pid: number): boolean {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
