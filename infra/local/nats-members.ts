import { silentLogger } from "../logger.js";
import { NatsLink } from "../nats/nats-link.js";
import { removeServer } from "../nats/streams.js";
import { until } from "./wait.js";

/** Takes a server that has ended out of the cluster's metadata, so that it counts for no majority any more. */
export async function forgetServer(systemUrls: readonly string[], name: string): Promise<void> {
  const link = await NatsLink.open({ servers: systemUrls, name: "hothot dc", waitMs: 10_000, log: silentLogger });
  try {
    let last: unknown;
    const done = await until(
      async () => {
        try {
          await removeServer(link, name, 3_000);
          return true;
        } catch (error) {
          last = error;
          // 10044: it is not known (any more).
          return (error as { errorCode?: number }).errorCode === 10044;
        }
      },
      30_000,
      500,
    );
    if (done !== true) throw last;
  } finally {
    await link.close();
  }
}
