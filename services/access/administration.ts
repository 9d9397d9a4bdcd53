import type { Time } from "../../infra/clock.js";
import { Problem, type FieldError } from "../../infra/errors.js";
import type { Random } from "../../infra/random.js";
import type { JsonObject } from "../../replication/entities.js";
import type { Listed, Page, Reply, RequestContext, Scope } from "../api.js";
import type { Documents } from "../documents.js";
import type { AccessBook, TenantLimits } from "./book.js";
import { defaultTenant, hashOf, newSecret, tokenText, type KeptToken } from "./tokens.js";

export interface NewToken {
  readonly scopes: readonly Scope[];
  readonly tenant?: string | undefined;
  readonly name?: string | undefined;
  readonly expiresAt?: string | null | undefined;
  readonly requestsPerSecond?: number | null | undefined;
}

export interface AdministrationOptions {
  readonly book: AccessBook;
  readonly documents: Documents;
  readonly time: Time;
  readonly random: Random;
  readonly servedBy: string;
}

/** Tokens and tenants, as administrators make and end them: documents of the group, known in every datacenter. */
export class Administration {
  readonly #o: AdministrationOptions;

  constructor(options: AdministrationOptions) {
    this.#o = options;
  }

  /** 201 with the token itself, which is told this once. @throws Problem invalid_request, and what writes can meet */
  async addToken(context: RequestContext, wanted: NewToken): Promise<Reply> {
    const { book, documents, random, time, servedBy } = this.#o;
    const tenant = wanted.tenant === undefined || wanted.tenant === defaultTenant ? "" : wanted.tenant;
    const errors: FieldError[] = [];
    if (tenant !== "" && wanted.scopes.some((scope) => scope === "operate" || scope === "admin"))
      errors.push({
        path: "/scopes",
        message: "operate and admin are for the whole group: not together with a tenant",
      });
    if (wanted.expiresAt != null && Date.parse(wanted.expiresAt) <= time.wall())
      errors.push({ path: "/expiresAt", message: "is over already" });
    if (errors.length > 0) throw new Problem("invalid_request", undefined, { errors });
    const secret = newSecret(random);
    const token: KeptToken = {
      id: documents.newId("t-"),
      name: wanted.name ?? null,
      scopes: [...new Set(wanted.scopes)],
      tenant,
      hash: hashOf(secret),
      createdAt: new Date(time.wall()).toISOString(),
      createdBy: context.caller.principal,
      expiresAt: wanted.expiresAt ?? null,
      requestsPerSecond: wanted.requestsPerSecond ?? null,
    };
    const { id, ...body } = token;
    await documents.put("token", id, body, written(context));
    await book.refresh();
    return { status: 201, body: { ...tokenView(token), token: tokenText(id, secret) }, servedBy };
  }

  async listTokens(page: Page): Promise<Listed> {
    await this.#o.book.refresh();
    return pageOf(this.#o.book.tokens.map(tokenView), page);
  }

  /** 204: it works nowhere any more, a second after each datacenter has heard of it. @throws Problem not_found */
  async removeToken(context: RequestContext, id: string): Promise<Reply> {
    const { book, documents, servedBy } = this.#o;
    if ((await book.newToken(id)) === undefined) throw new Problem("not_found", `There is no token ${id}.`);
    await documents.put("token", id, null, written(context));
    await book.refresh();
    return { status: 204, servedBy };
  }

  /** 200 with the tenant's limits. Null, or left out: none. */
  async putTenant(context: RequestContext, name: string, limits: Omit<TenantLimits, "id">): Promise<Reply> {
    const { book, documents, servedBy } = this.#o;
    const tenant = name === defaultTenant ? "" : name;
    await documents.put("tenant", `tenant-${name}`, { tenant, ...limits }, written(context));
    await book.refresh();
    return { status: 200, body: tenantView({ id: tenant, ...limits }), servedBy };
  }

  async listTenants(page: Page): Promise<Listed> {
    await this.#o.book.refresh();
    return pageOf(this.#o.book.tenants.map(tenantView), page);
  }
}

const written = (context: RequestContext) => ({
  requestId: context.requestId,
  traceparent: context.traceparent ?? null,
  deadline: context.deadline,
});

function tokenView(token: KeptToken): JsonObject & { readonly id: string } {
  const { hash: _hash, tenant, ...rest } = token;
  return { ...rest, tenant: tenant === "" ? defaultTenant : tenant };
}

function tenantView({ id, maxClusters, writesPerSecond }: TenantLimits): JsonObject & { readonly id: string } {
  return { id: id === "" ? defaultTenant : id, maxClusters, writesPerSecond };
}

/** In id order; the cursor is the last id of the page before. */
function pageOf(items: readonly (JsonObject & { readonly id: string })[], { limit, cursor }: Page): Listed {
  const sorted = [...items].sort((a, b) => (a.id < b.id ? -1 : 1)).filter((item) => item.id > (cursor ?? ""));
  const kept = sorted.slice(0, limit);
  return { items: kept, nextCursor: sorted.length > limit ? (kept.at(-1)?.id ?? null) : null };
}
