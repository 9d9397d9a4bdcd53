import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";
import type { Database } from "../../infra/postgres/database.js";
import type { AccessBook } from "./book.js";

interface Tenant {
  /** Clusters made by way of this process that its database may not have yet, and since when (monotonic). */
  readonly made: Map<string, number>;
  count: number;
  countedAt: number;
}

/** Longer than a copy lags in good times; in bad ones a quota may be passed by what other processes make meanwhile. */
const madeMs = 30_000;
const countMs = 5_000;

/**
 * How many clusters a tenant has, against what it may have: counted in this datacenter's copy, and exactly for whoever
 * makes them by way of one process. A tenant that uses several at once may pass its quota by what is on its way.
 */
export class ClusterQuotas {
  readonly #tenants = new Map<string, Tenant>();

  constructor(
    private readonly book: AccessBook,
    private readonly database: Database,
    private readonly time: Time,
  ) {}

  /**
   * Makes room for one more. @returns what gives the room back when the cluster was not made
   * @throws Problem quota_exceeded
   */
  async reserve(tenant: string, id: string): Promise<() => void> {
    const max = this.book.limits(tenant)?.maxClusters;
    if (max === undefined || max === null) return () => undefined;
    const now = this.time.monotonic();
    const known = this.#tenants.get(tenant) ?? { made: new Map<string, number>(), count: 0, countedAt: -Infinity };
    this.#tenants.set(tenant, known);
    for (const [made, at] of known.made) {
      if (now - at < madeMs) break;
      known.made.delete(made);
    }
    known.made.delete(id);
    const others = [...known.made.keys()];
    known.made.set(id, now);
    const back = (): void => void known.made.delete(id);
    if (now - known.countedAt < countMs && known.count + known.made.size < max * 0.9) return back;
    const { rows } = await this.database.pool.query<{ here: number; known: boolean; extra: number }>({
      name: "cluster_quota",
      text: `SELECT (SELECT count(*)::int FROM clusters WHERE tenant = $1 AND NOT deleted) AS here,
        EXISTS (SELECT 1 FROM clusters WHERE tenant = $1 AND id = $2 AND NOT deleted) AS known,
        (SELECT count(*)::int FROM unnest($3::text[]) AS m(id) WHERE NOT EXISTS (SELECT 1 FROM clusters c WHERE c.tenant = $1 AND c.id = m.id)) AS extra`,
      values: [tenant, id, others],
    });
    const found = rows[0] ?? { here: 0, known: false, extra: 0 };
    known.count = found.here;
    known.countedAt = now;
    if (!found.known && found.here + found.extra >= max) {
      back();
      throw new Problem("quota_exceeded", `This tenant may have ${max} clusters.`, { retryAfterSeconds: 60 });
    }
    if (found.known) back();
    return back;
  }
}
