import type { Command } from "commander";
import { InvalidArgumentError } from "commander";
import type { Row } from "./output.js";
import { common, verb } from "./session.js";

interface AddOptions {
  readonly scopes: readonly string[];
  readonly tenant?: string;
  readonly name?: string;
  readonly expires?: string;
  readonly rate?: number;
}

const known = ["read", "write", "operate", "admin"];

/** Access tokens: made, shown without their secrets, ended. */
export function addToken(program: Command): void {
  const token = program.command("token").description("access tokens");
  common(
    token
      .command("add")
      .description("make a token, and print it: it is shown this once")
      .requiredOption("--scopes <scopes>", `of ${known.join(", ")}, with commas between`, scopesOf)
      .option("--tenant <tenant>", "it sees and makes only what is this tenant's")
      .option("--name <name>", "who holds it, for the audit trail")
      .option("--expires <time>", "it ends then (RFC 3339)")
      .option("--rate <n>", "requests a second that it may send to one process", positive),
    true,
  ).action(
    verb<AddOptions>(async (session, { scopes, tenant, name, expires, rate }) => {
      const body = {
        scopes,
        ...(tenant === undefined ? {} : { tenant }),
        ...(name === undefined ? {} : { name }),
        ...(expires === undefined ? {} : { expiresAt: expires }),
        ...(rate === undefined ? {} : { requestsPerSecond: rate }),
      };
      const made = (await session.act("POST", "/v1/tokens", { body })) as { token: string } | undefined;
      if (made === undefined) return 0;
      session.show(made, made.token);
      return 0;
    }),
  );
  common(token.command("list").description("tokens, without their secrets")).action(
    verb(async (session) => {
      const items = await session.client.list<Row>("/v1/tokens", {});
      const columns = ["id", "name", "scopes", "tenant", "createdAt", "createdBy", "expiresAt"];
      session.show(
        { items, nextCursor: null },
        items.map((item) => Object.fromEntries(columns.map((column) => [column, shown(item[column])]))),
      );
      return 0;
    }),
  );
  common(token.command("remove").description("end a token").argument("<id>"), true).action(
    verb(async (session, _options, [id = ""]) => {
      await session.act("DELETE", `/v1/tokens/${encodeURIComponent(id)}`);
      if (!session.dryRun) session.show({ id, removed: true }, `${id} is removed`);
      return 0;
    }),
  );
}

/** What a tenant may use. */
export function addTenant(program: Command): void {
  const tenant = program.command("tenant").description("limits of tenants");
  common(
    tenant
      .command("set")
      .description("set a tenant's limits; what is left out is not limited (`default`: callers without a tenant)")
      .argument("<tenant>")
      .option("--max-clusters <n>", "clusters that it may have", positive)
      .option("--writes <n>", "writes a second by way of one process", positive),
    true,
  ).action(
    verb<{ maxClusters?: number; writes?: number }>(async (session, { maxClusters, writes }, [id = ""]) => {
      const body = { maxClusters: maxClusters ?? null, writesPerSecond: writes ?? null };
      const set = await session.act("PUT", `/v1/tenants/${encodeURIComponent(id)}`, { body });
      if (!session.dryRun) session.show(set, [set as Row]);
      return 0;
    }),
  );
  common(tenant.command("list").description("tenants with limits")).action(
    verb(async (session) => {
      const items = await session.client.list<Row>("/v1/tenants", {});
      session.show({ items, nextCursor: null }, items);
      return 0;
    }),
  );
}

export function addAudit(program: Command): void {
  common(program.command("audit").description("what operators did, oldest first")).action(
    verb(async (session) => {
      const items = await session.client.list<Row>("/v1/audit", {});
      const columns = ["at", "who", "dc", "action", "target", "result"];
      session.show(
        { items, nextCursor: null },
        items.map((item) => Object.fromEntries(columns.map((column) => [column, item[column]]))),
      );
      return 0;
    }),
  );
}

const shown = (value: unknown): unknown => (Array.isArray(value) ? value.join(",") : value);

function scopesOf(text: string): string[] {
  const scopes = text.split(",").map((part) => part.trim());
  if (scopes.every((scope) => known.includes(scope))) return scopes;
  throw new InvalidArgumentError(`must be of ${known.join(", ")}, with commas between.`);
}

function positive(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError("must be a number above 0.");
}
