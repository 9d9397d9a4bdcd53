import type { Command } from "commander";
import type { SitePids } from "../../infra/local/stack-site.js";
import type { Client } from "./client.js";
import { Failure } from "./failure.js";
import type { Row } from "./output.js";
import { common, verb, type Session } from "./session.js";

interface DatacenterStatus {
  readonly name: string;
  readonly url: string;
  readonly state: string;
  readonly leaseMsLeft: number;
  readonly shardsOwned: number;
  /** Null where nobody knows. */
  readonly lag: { readonly positions: number | null; readonly ms: number | null };
  /** Shards whose log can't be applied there any more. */
  readonly stopped?: number;
  readonly pids?: SitePids;
}

interface WitnessStatus {
  readonly name: string;
  readonly state: string;
  readonly pids?: SitePids;
}

export interface Status {
  readonly datacenters: readonly DatacenterStatus[];
  readonly witnesses: readonly WitnessStatus[];
  readonly shards: number;
  readonly failoverPaused: boolean;
  readonly automaticTakeover: { readonly possible: boolean; readonly why: string | null };
}

/** Milliseconds that one datacenter may take to answer. */
const patienceMs = 2000;

export function addStatus(program: Command): void {
  common(program.command("status").description("datacenters, their states, shards and processes")).action(
    verb(async (session) => {
      const status = await statusOf(session);
      session.show(status, statusRows(status));
      return 0;
    }),
  );
}

/** What each datacenter says of itself; of one that does not answer, what the others say. @throws Failure unreachable */
export async function statusOf(session: Session): Promise<Status> {
  const clients = await session.datacenters();
  const answers = new Map<string, Status>();
  await Promise.all(
    [...clients].map(async ([name, client]) => {
      const found = await topologyOf(client);
      if (found !== undefined) answers.set(name, found);
    }),
  );
  const stack = session.stack;
  const [any] = answers.values();
  if (any === undefined && stack === undefined)
    throw new Failure("unreachable", "No datacenter answers.", { wayOut: "Name a server with --url or HOTHOT_URL." });
  const datacenters = [...clients].map(([name, client]): DatacenterStatus => {
    const seen = [answers.get(name), ...answers.values()].find((topology) =>
      topology?.datacenters.some((dc) => dc.name === name),
    );
    const found = seen?.datacenters.find((dc) => dc.name === name);
    const pids = stack?.pids(name);
    const url = client.urls[0] ?? "";
    return {
      ...(found ?? { name, state: "dead", leaseMsLeft: 0, shardsOwned: 0, lag: { positions: null, ms: null } }),
      // Another node of it may have said so; here its first one is meant.
      url: stack === undefined ? (found?.url ?? url) : url,
      ...(pids === undefined ? {} : { pids }),
    };
  });
  const known =
    stack?.file.sites.filter((site) => site.kind === "witness").map((site) => site.name) ??
    any?.witnesses.map((witness) => witness.name) ??
    [];
  const witnesses = known.map((name): WitnessStatus => {
    const pids = stack?.pids(name);
    const state =
      any?.witnesses.find((witness) => witness.name === name)?.state ??
      ((pids?.node.length ?? 0) > 0 ? "serving" : "dead");
    return { name, state, ...(pids === undefined ? {} : { pids }) };
  });
  const rest = any ?? {
    shards: stack?.file.shards ?? 0,
    failoverPaused: false,
    automaticTakeover: { possible: false, why: "no datacenter answers" },
  };
  return { ...rest, datacenters, witnesses };
}

export function statusRows(status: Status): Row[] {
  const rows: readonly Partial<DatacenterStatus>[] = [...status.datacenters, ...status.witnesses];
  return rows.map(({ name, url, state, shardsOwned, lag, stopped = 0, pids }) => ({
    dc: name,
    url: url ?? "(witness)",
    state: stopped === 0 ? state : `${state}, ${stopped} stopped`,
    shards: shardsOwned,
    lag: lag === undefined || lag.positions === null ? undefined : `${lag.positions} (${Math.round(lag.ms ?? 0)} ms)`,
    ...(pids === undefined ? {} : { pids: pidText(pids) }),
  }));
}

/** PostgreSQL's children are left out. */
function pidText(pids: SitePids): string {
  const parts = [
    ["node", pids.node],
    ["postgres", pids.postgres.slice(0, 1)],
    ["nats", pids.nats],
  ] as const;
  return (
    parts
      .filter(([, list]) => list.length > 0)
      .map(([name, list]) => `${name} ${list.join(",")}`)
      .join(" ") || "-"
  );
}

async function topologyOf(client: Client): Promise<Status | undefined> {
  try {
    return await client.get<Status>("/v1/topology", { timeoutMs: patienceMs });
  } catch {
    return undefined;
  }
}
