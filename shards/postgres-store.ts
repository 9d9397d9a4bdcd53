import { systemTime, type Timers } from "../infra/clock.js";
import { gather } from "../infra/gather.js";
import type { Database, Client } from "../infra/postgres/database.js";
import { epoch, partition, position, shardId, type Epoch, type ShardId, type SiteName } from "./ids.js";
import type { Head } from "./map.js";
import { shardTransitions, type ShardState } from "./states.js";
import type { Lock, ShardStore, Vote, VoteStore } from "./store.js";

const columns =
  "shard, partition, owner, epoch, state, position, published, tenure, closing, confirmed, since, kind, reason, stopped, revision";

interface Row {
  readonly shard: number;
  readonly partition: number;
  readonly owner: string | null;
  readonly epoch: number;
  readonly state: ShardState;
  readonly position: number;
  readonly published: number;
  readonly tenure: number;
  readonly closing: number;
  readonly confirmed: boolean;
  readonly since: string;
  readonly kind: string;
  readonly reason: string;
  readonly stopped: string | null;
  readonly revision: number;
}

function headOf(row: Row): Head {
  return {
    shard: shardId(row.shard),
    owner: row.owner,
    state: row.state,
    closing: row.closing,
    confirmed: row.confirmed,
    since: row.since,
    kind: row.kind,
    reason: row.reason,
    stopped: row.stopped,
    revision: row.revision,
    partition: partition(row.partition),
    epoch: epoch(row.epoch),
    position: position(row.position),
    published: position(row.published),
    tenure: epoch(row.tenure),
  };
}

interface Move {
  readonly shard: ShardId;
  readonly at: Epoch;
  readonly node: string;
  readonly goneMs: number;
}

interface Begun {
  readonly head: Head;
  readonly nodes: string[];
}

/** The datacenter's other nodes that live, as a subquery. */
const othersOf = (node: string, goneMs: string): string =>
  `(SELECT coalesce(array_agg(node), '{}') FROM nodes WHERE node <> ${node} AND seen_at > clock_timestamp() - ${goneMs} * interval '1 millisecond')`;

/** States from which an event suspends, by the one table of states.ts. */
const suspendedFrom = (event: "fence" | "close"): ShardState[] =>
  shardTransitions.flatMap((row) =>
    row.event === event && row.next === "suspended" && row.current !== "any" ? [row.current] : [],
  );

/** ShardStore on the datacenter's Postgres. Its pool is apart from that of user writes, so that they can't starve a lease. */
export class PostgresShardStore implements ShardStore, VoteStore {
  readonly #begin: (move: Move) => Promise<Begun | null>;

  constructor(
    private readonly database: Database,
    time: Pick<Timers, "soon"> = systemTime,
  ) {
    this.#begin = gather(time, (moves) => this.#beginMoves(moves));
  }

  async heads(only?: readonly ShardId[]): Promise<Head[]> {
    const { rows } = await this.database.pool.query<Row & { waits: boolean }>({
      name: only === undefined ? "heads" : "some_heads",
      text: `SELECT ${columns}, EXISTS (SELECT 1 FROM restores r WHERE r.shard = shard_head.shard) AS waits FROM shard_head
        ${only === undefined ? "" : "WHERE shard = ANY($1::int[])"} ORDER BY shard`,
      ...(only === undefined ? {} : { values: [only] }),
    });
    return rows.map((row) => ({ ...headOf(row), waits: row.waits }));
  }

  fence(
    epochs: Readonly<Record<string, number>>,
    voter: { readonly site: SiteName; readonly incarnation: number },
    closing: number,
  ): Promise<Head[]> {
    return this.database.transaction(async (client) => {
      await lockHeads(client);
      const known = await client.query<{ incarnation: number }>(
        "SELECT incarnation FROM site_incarnations WHERE site = $1",
        [voter.site],
      );
      const before = known.rows[0]?.incarnation;
      if (before === undefined || before < voter.incarnation)
        await client.query(
          "INSERT INTO site_incarnations (site, incarnation) VALUES ($1, $2) ON CONFLICT (site) DO UPDATE SET incarnation = greatest(site_incarnations.incarnation, excluded.incarnation)",
          [voter.site, voter.incarnation],
        );
      const entries = Object.entries(epochs);
      await client.query(
        `UPDATE shard_head h SET fenced_through = greatest(h.fenced_through, v.epoch),
           state = CASE WHEN h.state = ANY($3::text[]) AND h.epoch <= v.epoch THEN 'suspended' ELSE h.state END,
           revision = h.revision + 1
         FROM unnest($1::int[], $2::bigint[]) AS v(shard, epoch) WHERE h.shard = v.shard AND h.fenced_through < v.epoch`,
        [entries.map(([shard]) => Number(shard)), entries.map(([, value]) => value), suspendedFrom("fence")],
      );
      if (before !== undefined && before < voter.incarnation) await close(client, closing);
      const { rows } = await client.query<Row>(`SELECT ${columns} FROM shard_head ORDER BY shard`);
      return rows.map(headOf);
    });
  }

  async incarnations(): Promise<Map<SiteName, number>> {
    const { rows } = await this.database.pool.query<{ site: string; incarnation: number }>(
      "SELECT site, incarnation FROM site_incarnations",
    );
    return new Map(rows.map((row) => [row.site, row.incarnation]));
  }

  async lock(name: string, holder: string, termMs: number): Promise<Lock | null> {
    const { rows } = await this.database.pool.query<{ before: string | null }>({
      name: "take_lock",
      text: `WITH old AS (SELECT holder FROM locks WHERE name = $1)
        INSERT INTO locks (name, holder, until) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = clock_timestamp() + $3 * interval '1 millisecond'
          WHERE locks.holder = excluded.holder OR locks.until < clock_timestamp()
        RETURNING (SELECT holder FROM old) AS before`,
      values: [name, holder, termMs],
    });
    const row = rows[0];
    return row === undefined ? null : { fresh: row.before !== holder };
  }

  async unlock(name: string, holder: string): Promise<void> {
    await this.database.pool.query("DELETE FROM locks WHERE name = $1 AND holder = $2", [name, holder]);
  }

  async confirm(shard: ShardId, at: Epoch): Promise<Head | undefined> {
    const { rows } = await this.database.pool.query<Row>(
      `UPDATE shard_head SET confirmed = true, revision = revision + 1 WHERE shard = $1 AND epoch = $2 AND state IN ('owned', 'moving') RETURNING ${columns}`,
      [shard, at],
    );
    return rows.map(headOf)[0];
  }

  async refreshNode(node: string, url: string, goneMs: number): Promise<string[]> {
    const { rows } = await this.database.pool.query<{ node: string }>({
      name: "refresh_node",
      text: `WITH mine AS (
          INSERT INTO nodes (node, seen_at, url, started_at) VALUES ($1, clock_timestamp(), $2, clock_timestamp())
          ON CONFLICT (node) DO UPDATE SET seen_at = clock_timestamp(), url = excluded.url)
        SELECT node FROM nodes WHERE node <> $1 AND seen_at > clock_timestamp() - $3 * interval '1 millisecond'`,
      values: [node, url, goneMs],
    });
    return rows.map((row) => row.node);
  }

  async removeNode(node: string): Promise<void> {
    await this.database.pool.query("DELETE FROM nodes WHERE node = $1", [node]);
  }

  beginMove(shard: ShardId, at: Epoch, node: string, goneMs: number): Promise<Begun | null> {
    return this.#begin({ shard, at, node, goneMs });
  }

  /** Moves that begin in one turn share the statements. */
  async #beginMoves(moves: readonly Move[]): Promise<(Begun | null)[]> {
    const { rows } = await this.database.pool.query<Row & { nodes: string[] }>({
      name: "begin_moves",
      text: `WITH locked AS MATERIALIZED (SELECT shard FROM shard_head WHERE shard = ANY($1::int[]) ORDER BY shard FOR NO KEY UPDATE)
        UPDATE shard_head h SET state = 'moving', revision = revision + 1 FROM unnest($1::int[], $2::bigint[]) AS v(at_shard, at_epoch)
        WHERE h.shard = v.at_shard AND h.epoch = v.at_epoch AND h.state = 'owned' AND h.confirmed AND (SELECT count(*) FROM locked) > 0
        RETURNING ${columns}, ${othersOf("$3", "$4")} AS nodes`,
      values: [moves.map(({ shard }) => shard), moves.map(({ at }) => at), moves[0]?.node, moves[0]?.goneMs],
    });
    if (rows.length === 0) return moves.map(() => null);
    // Who listed itself while the statement waited for a lock is not in its snapshot, and may have read the heads before it ended.
    const late = await this.database.pool.query<{ nodes: string[] }>({
      name: "other_nodes",
      text: `SELECT ${othersOf("$1", "$2")} AS nodes`,
      values: [moves[0]?.node, moves[0]?.goneMs],
    });
    return moves.map(({ shard }) => {
      const row = rows.find((each) => each.shard === shard);
      return row === undefined
        ? null
        : { head: headOf(row), nodes: [...new Set([...row.nodes, ...(late.rows[0]?.nodes ?? [])])] };
    });
  }

  async endMove(shard: ShardId, at: Epoch): Promise<Head | undefined> {
    const { rows } = await this.database.pool.query<Row>({
      name: "end_move",
      text: `UPDATE shard_head SET state = 'owned', revision = revision + 1
        WHERE shard = $1 AND epoch = $2 AND state = 'moving' AND epoch > fenced_through AND closing = 0 RETURNING ${columns}`,
      values: [shard, at],
    });
    return rows.map(headOf)[0];
  }

  async suspendMove(shard: ShardId, at: Epoch): Promise<Head | undefined> {
    const { rows } = await this.database.pool.query<Row>({
      name: "suspend_move",
      text: `UPDATE shard_head SET state = 'suspended', revision = revision + 1
        WHERE shard = $1 AND epoch = $2 AND state = 'moving' RETURNING ${columns}`,
      values: [shard, at],
    });
    return rows.map(headOf)[0];
  }

  async renounce(shard: ShardId, at: Epoch): Promise<Head | undefined> {
    const { rows } = await this.database.pool.query<Row>({
      name: "renounce",
      text: `UPDATE shard_head SET fenced_through = greatest(fenced_through, $2),
          state = CASE WHEN state = ANY($3::text[]) AND epoch <= $2 THEN 'suspended' ELSE state END, revision = revision + 1
        WHERE shard = $1 RETURNING ${columns}`,
      values: [shard, at, suspendedFrom("fence")],
    });
    return rows.map(headOf)[0];
  }

  async load(): Promise<Map<SiteName, Vote>> {
    const { rows } = await this.database.pool.query<{ target: string; number: number; epochs: Record<string, number> }>(
      "SELECT target, number, epochs FROM site_votes",
    );
    return new Map(rows.map((row) => [row.target, { number: row.number, epochs: row.epochs }]));
  }

  vote(target: SiteName, epochs: Readonly<Record<string, number>>): Promise<Vote> {
    return this.database.transaction(async (client) => {
      const { rows } = await client.query<{ number: number; epochs: Record<string, number> }>(
        "SELECT number, epochs FROM site_votes WHERE target = $1 FOR UPDATE",
        [target],
      );
      const vote = addVote(rows[0], epochs);
      await client.query(
        "INSERT INTO site_votes (target, number, epochs) VALUES ($1, $2, $3) ON CONFLICT (target) DO UPDATE SET number = excluded.number, epochs = excluded.epochs",
        [target, vote.number, JSON.stringify(vote.epochs)],
      );
      return vote;
    });
  }
}

/** One more vote: the number grows, and per shard the largest epoch stays. */
export function addVote(before: Vote | undefined, epochs: Readonly<Record<string, number>>): Vote {
  const merged: Record<string, number> = { ...before?.epochs };
  for (const [shard, value] of Object.entries(epochs)) merged[shard] = Math.max(merged[shard] ?? 0, value);
  return { number: (before?.number ?? 0) + 1, epochs: merged };
}

/** Every head, in the order in which writers and the applier lock theirs: in any other one they would wait for each other. */
export async function lockHeads(client: Client): Promise<void> {
  await client.query("SELECT 1 FROM shard_head ORDER BY shard FOR NO KEY UPDATE");
}

/** Closes the datacenter: what it owns comes back only by an own open that knows this closing (rule i). */
export async function close(client: Client, closing: number): Promise<void> {
  await lockHeads(client);
  await client.query(
    `UPDATE shard_head SET closing = $1, fenced_through = greatest(fenced_through, epoch),
       state = CASE WHEN state = ANY($2::text[]) THEN 'suspended' ELSE state END, revision = revision + 1`,
    [closing, suspendedFrom("close")],
  );
}
