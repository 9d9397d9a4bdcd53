import { createRemoteJWKSet, errors, jwtVerify, type JWTPayload } from "jose";
import type { Time } from "../../infra/clock.js";
import { asError, Problem } from "../../infra/errors.js";
import type { Caller, Scope } from "../api.js";
import { defaultTenant, isScope, tenantForm } from "./tokens.js";

export interface JwtOptions {
  readonly url: string;
  readonly issuer?: string | undefined;
  readonly audience?: string | undefined;
  readonly tenantClaim: string;
  readonly scopeClaim: string;
  readonly time: Time;
}

/** Public keys only: with a shared secret whoever checks could also sign. */
const algorithms = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];
/** A key that its issuer no longer publishes counts for so long, and for `checkedMs` with a token that was checked. */
const refreshMs = 600_000;
/** While the issuer is away: how long its last keys count, and how often it is asked again. */
const keptMs = 86_400_000;
const againMs = 30_000;
const bound = 2_000;
/** A checked token isn't checked again for so long. */
const checkedMs = 60_000;

/** JSON Web Tokens of an issuer that publishes its keys (RFC 7519, RFC 7517). Who may do what stands in their claims. */
export class JwtVerifier {
  readonly #o: JwtOptions;
  readonly #keys: ReturnType<typeof createRemoteJWKSet>;
  readonly #tenants = new Set<string>();
  readonly #checked = new Map<string, { readonly caller: Caller; readonly until: number }>();
  /** Monotonic milliseconds; undefined: there are none yet. */
  #fetchedAt: number | undefined;
  #triedAt = -Infinity;
  #refreshing: Promise<void> | undefined;

  constructor(options: JwtOptions) {
    this.#o = options;
    // Fetched at the first token, and when a key is asked for that isn't known.
    this.#keys = createRemoteJWKSet(new URL(options.url), {
      cacheMaxAge: keptMs,
      cooldownDuration: 10_000,
      timeoutDuration: 3_000,
    });
  }

  /** Those that were seen, as many as are kept. */
  get tenants(): ReadonlySet<string> {
    return this.#tenants;
  }

  /** @throws Problem unauthorized; overloaded while the keys can't be fetched */
  verify(text: string): Caller | Promise<Caller> {
    const known = this.#checked.get(text);
    if (known !== undefined && known.until > this.#o.time.wall()) return known.caller;
    return this.#check(text);
  }

  async #check(text: string): Promise<Caller> {
    const { issuer, audience, time } = this.#o;
    let payload: JWTPayload;
    await this.#refresh();
    try {
      ({ payload } = await jwtVerify(text, this.#keys, {
        algorithms,
        requiredClaims: ["exp", "sub"],
        currentDate: new Date(time.wall()),
        ...(issuer === undefined ? {} : { issuer }),
        ...(audience === undefined ? {} : { audience }),
      }));
    } catch (error) {
      throw refusal(error);
    }
    this.#fetchedAt ??= time.monotonic();
    const caller = this.#caller(payload);
    if (this.#tenants.size < bound) this.#tenants.add(caller.tenant);
    this.#checked.delete(text);
    this.#checked.set(text, { caller, until: Math.min((payload.exp ?? 0) * 1000, time.wall() + checkedMs) });
    if (this.#checked.size > bound)
      for (const oldest of this.#checked.keys()) {
        this.#checked.delete(oldest);
        break;
      }
    return caller;
  }

  /** Keys that are old are fetched anew; when that fails, they go on to count: an issuer that is away for a while does no harm. */
  #refresh(): Promise<void> | undefined {
    const now = this.#o.time.monotonic();
    if (this.#refreshing !== undefined) return this.#refreshing;
    if (this.#fetchedAt === undefined || now - this.#fetchedAt < refreshMs || now - this.#triedAt < againMs)
      return undefined;
    this.#triedAt = now;
    return (this.#refreshing = this.#keys
      .reload()
      .then(() => void (this.#fetchedAt = now))
      .catch(() => undefined)
      .finally(() => (this.#refreshing = undefined)));
  }

  #caller(payload: JWTPayload): Caller {
    const said = payload[this.#o.scopeClaim];
    const list = Array.isArray(said) ? said : typeof said === "string" ? said.split(" ") : [];
    const scopes = list.flatMap((scope): Scope[] => {
      const name = String(scope).replace(/^hothot:/, "");
      return isScope(name) ? [name] : [];
    });
    const tenant = payload[this.#o.tenantClaim];
    if (tenant !== undefined && (typeof tenant !== "string" || !tenantForm.test(tenant)))
      throw new Problem("unauthorized", `The token's claim ${this.#o.tenantClaim} is no tenant's name.`);
    const sub: unknown = payload.sub;
    // It is written down as who did something: also where no text holds NUL or half a character.
    if (typeof sub !== "string" || sub === "" || /[\p{Cc}\p{Cs}]/u.test(sub))
      throw new Problem("unauthorized", "The token's claim sub is no name.");
    return {
      tenant: tenant === undefined || tenant === defaultTenant ? "" : tenant,
      principal: `jwt:${sub}`,
      // Operators of the whole group belong to no tenant.
      scopes: tenant === undefined ? scopes : scopes.filter((scope) => scope === "read" || scope === "write"),
    };
  }
}

function refusal(error: unknown): Problem {
  if (error instanceof errors.JWTExpired) return new Problem("unauthorized", "The token has expired.");
  if (error instanceof errors.JWTClaimValidationFailed)
    return new Problem("unauthorized", `The token's claim ${error.claim} is not what is wanted here.`);
  const fetching = error instanceof errors.JWKSTimeout || !(error instanceof errors.JOSEError) || isFetch(error);
  if (fetching)
    return new Problem("overloaded", "The keys that tokens are checked with can't be fetched now.", {
      retryAfterSeconds: 5,
      cause: asError(error),
    });
  return new Problem("unauthorized", "The token is not valid.", { cause: error });
}

/** jose tells a wrong answer of the keys' server by its plainest error. */
const isFetch = (error: errors.JOSEError): boolean => error.code === "ERR_JOSE_GENERIC";
