import type { Database } from "../../infra/postgres/database.js";

/** A provisioner is a worker's registration: replicated, and known in every datacenter. */
export interface Provisioner {
  readonly id: string;
  readonly capacity: number;
  /** Where its own HTTP listens. */
  readonly host: string;
  readonly port: number;
}

const prefix = "coopr:";
/** Of registrations; what their workers do is of the tenant that they name. */
export const registrationTenant = "";
export const registrationOf = (provisionerId: string): string => `${prefix}${provisionerId}`;
/** Why a tombstone is one: only a provisioner that was silent may come back by itself. */
export const wasSilent = "silent";

/** The tenant that every Coopr has stands for those who come without a token. */
const ownTenant = "superadmin";
export const tenantOf = (cooprTenant: string): string => (cooprTenant === ownTenant ? "" : cooprTenant);

export const labelsOf = (provisioner: Provisioner): Record<string, string> => ({
  host: provisioner.host,
  port: String(provisioner.port),
});

interface Row {
  readonly id: string;
  readonly shard: number;
  readonly capacity: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly deleted: boolean;
}

export interface Registered extends Provisioner {
  readonly shard: number;
  readonly deleted: boolean;
  readonly removed: string | undefined;
}

const columns = "id, shard, capacity, labels, deleted";

/** Provisioners as this datacenter's copy has them. */
export class Registry {
  constructor(private readonly database: Pick<Database, "pool">) {}

  /** Also one that was removed; look at `deleted`. */
  async find(provisionerId: string): Promise<Registered | undefined> {
    const { rows } = await this.database.pool.query<Row>({
      name: "find_provisioner",
      text: `SELECT ${columns} FROM workers WHERE tenant = $1 AND id = $2`,
      values: [registrationTenant, registrationOf(provisionerId)],
    });
    return rows[0] === undefined ? undefined : registered(rows[0]);
  }

  async all(): Promise<Registered[]> {
    const { rows } = await this.database.pool.query<Row>(
      `SELECT ${columns} FROM workers WHERE tenant = $1 AND id >= $2 AND id < $3 AND NOT deleted ORDER BY id LIMIT 10000`,
      [registrationTenant, prefix, "coopr;"],
    );
    return rows.map(registered);
  }
}

function registered(row: Row): Registered {
  const { host = "", port = "0", removed } = row.labels;
  return {
    id: row.id.slice(prefix.length),
    shard: row.shard,
    capacity: row.capacity,
    host,
    port: Number(port),
    deleted: row.deleted,
    removed,
  };
}
