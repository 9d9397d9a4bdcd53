import type { IncomingHttpHeaders } from "node:http";
import type { FieldError } from "../../infra/errors.js";
import { epoch, position, shardId } from "../../shards/ids.js";
import type { Caller, Condition, Place, RequestContext } from "../api.js";
import { addFault } from "./faults.js";

export const longestTimeoutMs = 600_000;

/** What a route lets headers say. */
export interface HeaderRules {
  readonly write: boolean;
  readonly conditional: boolean;
}

const none: Condition = Object.freeze({});

/** The caller's deadline in milliseconds from now, or undefined. */
export function readTimeout(headers: IncomingHttpHeaders, faults: FieldError[]): number | undefined {
  const value = text(headers, "hothot-timeout-ms");
  if (value === undefined) return undefined;
  const ms = /^\d{1,6}$/.test(value) ? Number(value) : 0;
  if (ms >= 1 && ms <= longestTimeoutMs) return ms;
  addFault(faults, "header/Hothot-Timeout-Ms", `must be a whole number from 1 to ${longestTimeoutMs}`);
  return undefined;
}

/** Reads the contract's headers; adds each fault to `faults`. */
export function readContext(
  headers: IncomingHttpHeaders,
  rules: HeaderRules,
  fixed: {
    readonly requestId: string;
    readonly caller: Caller;
    readonly deadline: number;
    /** Of the request's own span; else the caller's goes along. */
    readonly traceparent?: string;
  },
  faults: FieldError[],
): RequestContext {
  const minPosition = readPlace(headers, faults);
  const idempotencyKey = rules.write ? readKey(headers, faults) : undefined;
  const traceparent = fixed.traceparent ?? traceparentOf(headers);
  return {
    ...fixed,
    durability: choice(headers, "Hothot-Durability", "local", "replicated", faults),
    consistency: choice(headers, "Hothot-Consistency", "local", "owner", faults),
    ...(minPosition === undefined ? undefined : { minPosition }),
    ...(idempotencyKey === undefined ? undefined : { idempotencyKey }),
    ...(traceparent === undefined ? undefined : { traceparent }),
  };
}

/** If-Match `"<version>"`, If-None-Match `*`. */
export function readCondition(headers: IncomingHttpHeaders, rules: HeaderRules, faults: FieldError[]): Condition {
  const match = headers["if-match"];
  const noneMatch = headers["if-none-match"];
  if (!rules.conditional || (match === undefined && noneMatch === undefined)) return none;
  if (match !== undefined && noneMatch !== undefined) {
    addFault(faults, "header/If-None-Match", "can't be combined with If-Match");
    return none;
  }
  if (noneMatch !== undefined) {
    if (noneMatch === "*") return { absent: true };
    addFault(faults, "header/If-None-Match", "must be *");
    return none;
  }
  const version = /^"(\d{1,15})"$/.exec(match ?? "")?.[1];
  if (version !== undefined) return { version: Number(version) };
  addFault(faults, "header/If-Match", 'must be a version in double quotes, like "3"');
  return none;
}

/** The caller's W3C trace context when it is one: the traceparent and, behind a space, the tracestate. */
export function traceparentOf(headers: IncomingHttpHeaders): string | undefined {
  const value = text(headers, "traceparent");
  if (value === undefined || !traceForm.test(value)) return undefined;
  const state = (text(headers, "tracestate") ?? "")
    .split(",")
    .map((member) => member.trim())
    .filter((member) => member !== "");
  const sane = state.length > 0 && state.length <= stateMembers && state.every((member) => stateForm.test(member));
  const joined = state.join(",");
  // One that is not sane is left out, as its specification says; the trace goes on.
  return sane && joined.length <= stateLength ? `${value} ${joined}` : value;
}

/** The client's request id when it is a sane one. */
export function givenRequestId(headers: IncomingHttpHeaders): string | undefined {
  const value = text(headers, "x-request-id");
  return value !== undefined && requestIdForm.test(value) ? value : undefined;
}

const traceForm = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;
const stateForm = /^[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]$/;
const stateMembers = 32;
const stateLength = 512;
const requestIdForm = /^[A-Za-z0-9._:-]{1,128}$/;
const keyForm = /^[\x21-\x7e]{1,255}$/;
const placeForm = /^(\d{1,7}):(\d{1,15}):(\d{1,15})$/;

function readKey(headers: IncomingHttpHeaders, faults: FieldError[]): string | undefined {
  const key = text(headers, "idempotency-key");
  if (key === undefined || keyForm.test(key)) return key;
  addFault(faults, "header/Idempotency-Key", "must be 1 to 255 visible ASCII characters");
  return undefined;
}

function readPlace(headers: IncomingHttpHeaders, faults: FieldError[]): Place | undefined {
  const value = text(headers, "hothot-min-position");
  if (value === undefined) return undefined;
  const parts = placeForm.exec(value);
  if (parts !== null)
    return { shard: shardId(Number(parts[1])), epoch: epoch(Number(parts[2])), position: position(Number(parts[3])) };
  addFault(faults, "header/Hothot-Min-Position", "must be <shard>:<epoch>:<position>, as Hothot-Position gave it");
  return undefined;
}

function choice<First extends string, Second extends string>(
  headers: IncomingHttpHeaders,
  name: string,
  first: First,
  second: Second,
  faults: FieldError[],
): First | Second {
  const value = text(headers, name.toLowerCase());
  if (value === undefined || value === first) return first;
  if (value === second) return second;
  addFault(faults, `header/${name}`, `must be ${first} or ${second}`);
  return first;
}

function text(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}
