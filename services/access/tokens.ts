import { createHash, timingSafeEqual } from "node:crypto";
import type { Random } from "../../infra/random.js";
import { scopes, type Scope } from "../api.js";

/** A token as it is kept: never the token itself, only the hash of its secret. */
export interface KeptToken {
  readonly id: string;
  readonly name: string | null;
  readonly scopes: readonly Scope[];
  /** "" is the default tenant. */
  readonly tenant: string;
  /** SHA-256 of the secret, base64url. */
  readonly hash: string;
  readonly createdAt: string;
  readonly createdBy: string;
  readonly expiresAt: string | null;
  /** Of one process; null: as the configuration says. */
  readonly requestsPerSecond: number | null;
}

export const tenantForm = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
/** What the default tenant is called where a tenant is named. */
export const defaultTenant = "default";

/** 50 characters of 36: more than 256 bits. */
const secretLength = 50;
const tokenForm = /^hh_(t-[0-9a-z]{4,64})_([0-9a-z]{50})$/;

/** The text that its holder sends. */
export const tokenText = (id: string, secret: string): string => `hh_${id}_${secret}`;
export const newSecret = (random: Random): string => random.token(secretLength);
export const looksOwn = (text: string): boolean => text.startsWith("hh_");

export function parseToken(text: string): { readonly id: string; readonly secret: string } | undefined {
  const [, id, secret] = tokenForm.exec(text) ?? [];
  return id === undefined || secret === undefined ? undefined : { id, secret };
}

export const hashOf = (secret: string): string => createHash("sha256").update(secret).digest("base64url");

/** In constant time. */
export function isSecretOf(hash: string, secret: string): boolean {
  const kept = Buffer.from(hash, "base64url");
  const given = createHash("sha256").update(secret).digest();
  return kept.length === given.length && timingSafeEqual(kept, given);
}

/** `admin` may do everything; who may write or operate may also read. */
export function allows(held: readonly Scope[], needed: Scope): boolean {
  if (held.includes(needed) || held.includes("admin")) return true;
  return needed === "read" && (held.includes("write") || held.includes("operate"));
}

export const isScope = (text: string): text is Scope => (scopes as readonly string[]).includes(text);
