import type { Command } from "commander";
import type { Client } from "./client.js";
import { Failure } from "./failure.js";
import type { Row } from "./output.js";
import { common, verb, type Session } from "./session.js";
import { chosen } from "./shards.js";

const columns = ["id", "dc", "shard", "epoch", "position", "clusterId", "type", "status", "committedAt"];

/** Operations that a former owner committed and never published; each is kept in the datacenter that held it. */
export function addDivergence(program: Command): void {
  const divergence = program
    .command("divergence")
    .description("operations that a former owner committed and never published");
  const list = divergence
    .command("list")
    .description("of all datacenters that answer, or of one")
    .option("--dc <dc>")
    .option("--status <status>");
  common(list).action(
    verb<{ dc?: string; status?: string }>(async (session, { dc, status }) => {
      const clients = await session.datacenters();
      const asked = dc === undefined ? [...clients.values()] : [clients.get(dc) ?? missing(dc, clients)];
      const results = await Promise.allSettled(
        asked.map((client) => client.list<Row>("/v1/divergent-operations", { status })),
      );
      const items = results.flatMap((result) => (result.status === "fulfilled" ? result.value : []));
      const failure = results.find((result) => result.status === "rejected");
      if (failure !== undefined && (dc !== undefined || items.length === 0)) throw failure.reason;
      if (failure !== undefined) process.stderr.write("not every datacenter answered\n");
      session.show({ items, nextCursor: null }, chosen(items, columns));
      return 0;
    }),
  );
  common(divergence.command("show <id>").description("show one, with today's state and the difference")).action(
    verb(async (session, _options, [id = ""]) => {
      session.show((await holder(session, id)).operation);
      return 0;
    }),
  );
  for (const [name, description] of [
    ["replay", "write one again, if its cluster is still as it was"],
    ["discard", "note that one is not wanted"],
  ] as const) {
    common(divergence.command(`${name} <id>`).description(description), true).action(
      verb(async (session, _options, [id = ""]) => {
        const { client, operation } = await holder(session, id);
        if (session.dryRun) session.show(operation);
        else
          session.show(
            (await client.request("POST", `/v1/divergent-operations/${encodeURIComponent(id)}/${name}`, { body: {} }))
              .body,
          );
        return 0;
      }),
    );
  }
}

async function holder(session: Session, id: string): Promise<{ client: Client; operation: unknown }> {
  let failure: unknown;
  for (const client of (await session.datacenters()).values()) {
    try {
      return { client, operation: await client.get(`/v1/divergent-operations/${encodeURIComponent(id)}`) };
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      // "Not found" of one that answers says less than "can't be asked" of another.
      if (failure === undefined || error.code !== "not_found") failure = error;
    }
  }
  throw failure;
}

function missing(dc: string, clients: ReadonlyMap<string, Client>): never {
  throw new Failure("not_found", `There is no datacenter ${dc}.`, {
    wayOut: `They are ${[...clients.keys()].join(", ")}.`,
  });
}
