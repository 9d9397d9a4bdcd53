import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Time } from "../../infra/clock.js";
import { isLoopback, type Config } from "../../infra/config.js";
import { Problem } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Random } from "../../infra/random.js";
import type { Caller, Scope } from "../api.js";
import { isCrossSite } from "../http/cross-site.js";
import type { AccessBook } from "./book.js";
import { JwtVerifier } from "./jwt.js";
import { Rates } from "./rates.js";
import { allows, isSecretOf, looksOwn, newSecret, parseToken, type KeptToken } from "./tokens.js";
import type { WriteRates } from "./write-rates.js";

/** What a request needs. */
export interface Need {
  readonly scope: Scope;
  /** With the scope write it counts against the tenant's writes per second. */
  readonly write: boolean;
  /** What is asked for, without its ids: `DELETE /v1/tokens/{id}`. */
  readonly route: string;
  /** Of a request that was admitted before: it counts against nothing, and a refusal is not noted. */
  readonly again: boolean;
}

type AccessConfig = Pick<
  Config,
  | "host"
  | "noTokens"
  | "adminToken"
  | "jwksUrl"
  | "jwtIssuer"
  | "jwtAudience"
  | "jwtTenantClaim"
  | "jwtScopeClaim"
  | "tokenRequestsPerSecond"
>;

export interface AccessOptions {
  readonly config: AccessConfig;
  readonly book: AccessBook;
  readonly writes: WriteRates;
  readonly time: Time;
  readonly random: Random;
  readonly log: Logger;
  /** A known caller was refused. */
  readonly onForbidden?: (caller: Caller, need: Need, request: IncomingMessage) => void;
}

const innerPrefix = "in_";
const everything: readonly Scope[] = ["read", "write", "operate", "admin"];
const anonymous: Caller = Object.freeze({ tenant: "", principal: "anonymous" });

/**
 * Who asks, and whether they may. Tokens are needed beyond loopback, and wherever an administrator's token or an issuer is
 * configured; else requests without one may do everything, and a token that comes along counts all the same.
 */
export class Access {
  readonly required: boolean;
  readonly #o: AccessOptions;
  readonly #jwt: JwtVerifier | undefined;
  readonly #admin: Buffer | undefined;
  readonly #inner: string;
  readonly #rates = new Rates();

  constructor(options: AccessOptions) {
    const { config, random, time } = options;
    this.#o = options;
    this.required = needsTokens(config);
    this.#inner = `${innerPrefix}${newSecret(random)}`;
    this.#admin = config.adminToken === undefined ? undefined : digest(config.adminToken);
    if (config.jwksUrl !== undefined)
      this.#jwt = new JwtVerifier({
        url: config.jwksUrl,
        issuer: config.jwtIssuer,
        audience: config.jwtAudience,
        tenantClaim: config.jwtTenantClaim,
        scopeClaim: config.jwtScopeClaim,
        time,
      });
  }

  /** A token that only this process knows, for what it asks of itself. */
  innerToken(tenant: string): string {
    return `${this.#inner}${tenant}`;
  }

  /** Those that are known to this process; the default one always is. */
  tenants(): ReadonlySet<string> {
    const { book } = this.#o;
    return new Set([
      "",
      ...book.tokens.map((token) => token.tenant),
      ...book.tenants.map((tenant) => tenant.id),
      ...(this.#jwt?.tenants ?? []),
    ]);
  }

  /** Tells the operator at the start how things stand. */
  announce(): void {
    const { config, book, log } = this.#o;
    if (!this.required)
      log.warn("requests need no token", {
        host: config.host,
        why: config.noTokens === true ? "HOTHOT_NO_TOKENS=true" : "listens on loopback only",
      });
    else if (config.adminToken === undefined && this.#jwt === undefined && book.tokens.length === 0)
      log.warn("requests need a token, and there is none yet: set HOTHOT_ADMIN_TOKEN to make the first one");
  }

  /** @throws Problem unauthorized, forbidden, rate_limited, quota_exceeded */
  admit(request: IncomingMessage, need: Need): Caller | Promise<Caller> {
    const text = bearerOf(request);
    if (text === undefined || this.#isForeign(text)) {
      if (this.required) throw unauthorized("This needs a token.");
      if (isCrossSite(request)) throw new Problem("forbidden", "Pages of other sites may not change anything here.");
      return this.#permit(anonymous, need, request, null, null);
    }
    if (this.#admin !== undefined && timingSafeEqual(this.#admin, digest(text)))
      return this.#permit({ tenant: "", principal: "admin", scopes: everything }, need, request, null, null);
    if (text.startsWith(innerPrefix)) return this.#innerCaller(text);
    if (!looksOwn(text)) {
      const found = this.#jwt?.verify(text);
      if (found === undefined) throw unauthorized("The token is not valid.");
      const permit = (caller: Caller): Caller =>
        this.#permit(caller, need, request, `${caller.tenant}/${caller.principal}`, null);
      return found instanceof Promise ? found.then(permit) : permit(found);
    }
    const parts = parseToken(text);
    if (parts === undefined) throw unauthorized("The token is not valid.");
    const known = this.#o.book.token(parts.id);
    if (known !== undefined) return this.#own(known, parts.secret, need, request);
    return this.#o.book.newToken(parts.id).then((found) => this.#own(found, parts.secret, need, request));
  }

  #own(known: KeptToken | undefined, secret: string, need: Need, request: IncomingMessage): Caller {
    if (known === undefined || !isSecretOf(known.hash, secret)) throw unauthorized("The token is not valid.");
    if (known.expiresAt !== null && Date.parse(known.expiresAt) <= this.#o.time.wall())
      throw unauthorized("The token has expired.");
    const caller: Caller = { tenant: known.tenant, principal: `token:${known.name ?? known.id}`, scopes: known.scopes };
    return this.#permit(caller, need, request, known.id, known.requestsPerSecond);
  }

  #innerCaller(text: string): Caller {
    const { length } = this.#inner;
    if (!timingSafeEqual(digest(text.slice(0, length)), digest(this.#inner)))
      throw unauthorized("The token is not valid.");
    return { tenant: text.slice(length), principal: "built-in worker", scopes: ["write"] };
  }

  /** `bucket`: what its requests count against; null: no limit. */
  #permit(caller: Caller, need: Need, request: IncomingMessage, bucket: string | null, rate: number | null): Caller {
    const now = this.#o.time.monotonic();
    const perSecond = rate ?? this.#o.config.tokenRequestsPerSecond;
    if (bucket !== null && perSecond > 0 && !need.again) {
      const waitSeconds = this.#rates.take(bucket, perSecond, now);
      if (waitSeconds > 0)
        throw new Problem("rate_limited", `This token may send ${perSecond} requests a second.`, {
          retryAfterSeconds: waitSeconds,
        });
    }
    if (caller.scopes !== undefined && !allows(caller.scopes, need.scope)) {
      if (!need.again) this.#o.onForbidden?.(caller, need, request);
      throw new Problem("forbidden", `This needs the scope ${need.scope}.`);
    }
    // What operators do is no tenant's: nobody's load keeps them from it.
    if (need.write && need.scope === "write" && !need.again) this.#o.writes.take(caller.tenant);
    return caller;
  }

  /** Something else guards this process, and what it lets through is not ours to judge. */
  #isForeign(text: string): boolean {
    return (
      this.#o.config.noTokens === true && !looksOwn(text) && this.#jwt === undefined && !text.startsWith(innerPrefix)
    );
  }
}

export function needsTokens(config: Pick<Config, "host" | "noTokens" | "adminToken" | "jwksUrl">): boolean {
  if (config.noTokens !== undefined) return !config.noTokens;
  return !isLoopback(config.host) || config.adminToken !== undefined || config.jwksUrl !== undefined;
}

function bearerOf(request: IncomingMessage): string | undefined {
  return /^bearer +(\S+) *$/i.exec(request.headers.authorization ?? "")?.[1];
}

const unauthorized = (detail: string): Problem => new Problem("unauthorized", detail);
const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
