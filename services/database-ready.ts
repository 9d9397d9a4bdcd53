import type { Time } from "../infra/clock.js";
import { asError, FatalError } from "../infra/errors.js";
import type { Logger } from "../infra/logger.js";
import type { Database } from "../infra/postgres/database.js";

const waitMs = 30_000;

/** Waits up to 30 s until the database can be used. @throws FatalError database_unreachable */
export async function databaseReady(database: Database, time: Time, log: Logger): Promise<void> {
  const deadline = time.monotonic() + waitMs;
  for (;;) {
    try {
      await database.identity();
      return;
    } catch (error) {
      const code = (error as { code?: string }).code ?? "";
      if (["28P01", "28000", "3D000"].includes(code) || time.monotonic() > deadline)
        throw new FatalError(
          "database_unreachable",
          `PostgreSQL can't be used: ${asError(error).message}`,
          "Start it, or mend HOTHOT_DATABASE_URL (user, password, host, database).",
          error,
        );
      log.debug("waits for PostgreSQL", { error: asError(error) });
      await time.sleep(100);
    }
  }
}
