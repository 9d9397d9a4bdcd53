import type { Command } from "commander";
import type { RequestOptions } from "./client.js";
import { UsageError } from "./failure.js";
import type { Row } from "./output.js";
import { jsonArgument, wholeNumber } from "./parse.js";
import { common, verb, type Session } from "./session.js";
import { chosen } from "./shards.js";
import { addTransfer } from "./transfer.js";

interface WriteOptions {
  readonly data?: string;
  readonly ifMatch?: string;
  readonly durability?: string;
  readonly key?: string;
}

interface ListOptions {
  readonly status?: string;
  readonly owner?: string;
  readonly shard?: number;
  readonly label?: string;
  readonly limit?: number;
}

const columns = ["id", "shard", "owner", "status", "version", "name", "updatedAt"];

export function addClusters(program: Command): void {
  const clusters = program.command("clusters").description("the entities that are kept");
  writes(
    clusters.command("create").description("create one; without an `id` in the data its owner is this datacenter"),
    true,
  ).action(
    verb<WriteOptions>((session, options) => send(session, "POST", "/v1/clusters", options, { body: dataOf(options) })),
  );
  writes(clusters.command("put <id>").description("create or replace one"), true).action(
    verb<WriteOptions>((session, options, [id = ""]) =>
      send(session, "PUT", `/v1/clusters/${encodeURIComponent(id)}`, options, { body: dataOf(options) }),
    ),
  );
  const get = clusters.command("get <id>").description("show one").option("--consistency <which>", "local or owner");
  common(get).action(
    verb<{ consistency?: string }>(async (session, { consistency }, [id = ""]) => {
      const headers = consistency === undefined ? {} : { "hothot-consistency": consistency };
      session.show(await session.client.get(`/v1/clusters/${encodeURIComponent(id)}`, { headers }));
      return 0;
    }),
  );
  const list = clusters
    .command("list")
    .description("in the order of their ids")
    .option("--status <status>")
    .option("--owner <dc>")
    .option("--label <name:value>");
  common(
    list
      .option("--shard <n>", "", wholeNumber(0, 65_535))
      .option("--limit <n>", "at most so many", wholeNumber(1, 100_000_000)),
  ).action(
    verb<ListOptions>(async (session, { status, owner, shard, label, limit }) => {
      const items = await session.client.list<Row>(
        "/v1/clusters",
        { status, owner, label, shard: shard?.toString() },
        limit,
      );
      session.show({ items, nextCursor: null }, chosen(items, columns));
      return 0;
    }),
  );
  writes(clusters.command("delete <id>").description("remove one, without a job"), false).action(
    verb<WriteOptions>((session, options, [id = ""]) =>
      send(session, "DELETE", `/v1/clusters/${encodeURIComponent(id)}`, options, {}),
    ),
  );
  addTransfer(clusters);
}

function writes(command: Command, data: boolean): Command {
  if (data) command.option("--data <json>", "JSON, @FILE, or @- for standard input");
  return common(
    command
      .option("--if-match <version>", "only if it has this version")
      .option("--durability <which>", "local or replicated")
      .option("--key <key>", "idempotency key: the same key takes effect once"),
    true,
  );
}

async function send(
  session: Session,
  method: string,
  path: string,
  options: WriteOptions,
  request: RequestOptions,
): Promise<number> {
  const { ifMatch, durability, key } = options;
  const headers = {
    ...(ifMatch === undefined ? {} : { "if-match": `"${ifMatch}"` }),
    ...(durability === undefined ? {} : { "hothot-durability": durability }),
    ...(key === undefined ? {} : { "idempotency-key": key }),
  };
  const answer = await session.act(method, path, { ...request, headers });
  if (!session.dryRun) session.show(answer);
  return 0;
}

function dataOf({ data }: WriteOptions): unknown {
  if (data === undefined) throw new UsageError("--data is missing: JSON, @FILE, or @- for standard input");
  return jsonArgument("--data", data);
}
