/**
 * The one catalogue of problems that a caller can meet. The page in routing/README.md is generated from it.
 * A 4xx or 503 had no effect; `outcome_unknown` is the only answer to a write that may or may not have happened.
 */
export interface ProblemKind {
  readonly status: number;
  readonly retryable: boolean;
  /** What happened, in a few words. */
  readonly meaning: string;
  /** What the caller does about it. */
  readonly advice: string;
}

const kind = (status: number, retryable: boolean, meaning: string, advice: string): ProblemKind => ({
  status,
  retryable,
  meaning,
  advice,
});

export const problems = {
  invalid_request: kind(400, false, "The request does not fit its schema.", "Mend the places that `errors` names."),
  unauthorized: kind(401, false, "No valid token came with the request.", "Send `Authorization: Bearer <token>`."),
  forbidden: kind(403, false, "The token may not do this.", "Use a token with the scope named in `detail`."),
  not_found: kind(404, false, "There is no such thing here.", "Check the id; a fresh write may not have arrived yet."),
  method_not_allowed: kind(405, false, "The path exists, this method does not.", "See `Allow`."),
  already_exists: kind(409, false, "The id is taken.", "Use PUT to replace it, or another id."),
  job_in_progress: kind(409, false, "A job of this cluster is running.", "Wait for it, or cancel it."),
  stale_token: kind(
    409,
    false,
    "The token is not that of the running attempt.",
    "Drop the work; a newer attempt has it.",
  ),
  invalid_transition: kind(
    409,
    false,
    "The operation can't start from this status.",
    "See the transition table of services/jobs.",
  ),
  owner_reachable: kind(409, false, "The owner is alive; a takeover is not needed.", "Use a switchover, or `force`."),
  already_moving: kind(
    409,
    false,
    "The shard is being moved already.",
    "Wait for the operation that moves it, or cancel that.",
  ),
  position_lost: kind(
    410,
    false,
    "The epoch of this position ended without it.",
    "Read again; see divergent operations at its datacenter.",
  ),
  version_mismatch: kind(
    412,
    false,
    "The version is another than the condition names.",
    "Read, merge, and send the new version.",
  ),
  payload_too_large: kind(413, false, "The body or a record is too large.", "Send less; large loads go through bulk."),
  unsupported_media_type: kind(415, false, "The body's content type is not accepted.", "Send `application/json`."),
  idempotency_key_reused: kind(
    422,
    false,
    "The key was used with another request.",
    "Use a new key for a new request.",
  ),
  rate_limited: kind(429, true, "Too many requests with this token.", "Wait as long as `Retry-After` says."),
  quota_exceeded: kind(429, true, "The tenant's quota is used up.", "Delete, or ask for more."),
  not_owner: kind(
    421,
    true,
    "This datacenter does not own the shard.",
    "Inside the group only: route again with a fresh map.",
  ),
  no_lease: kind(503, true, "This datacenter has no lease on its shards.", "Repeat, or use another datacenter."),
  no_majority: kind(
    503,
    true,
    "A majority of sites can't be reached.",
    "Repeat later; see the break-glass runbook if they are gone.",
  ),
  owner_unreachable: kind(503, true, "The shard's owner can't be reached and nobody has taken over yet.", "Repeat."),
  shard_moving: kind(503, true, "The shard is being moved.", "Repeat."),
  unpublished_limit: kind(503, true, "Too much is not in the log yet.", "Repeat later; the log can't be reached."),
  overloaded: kind(503, true, "This process has more work than it can take.", "Repeat after `Retry-After`."),
  draining: kind(503, true, "This process is stopping.", "Repeat at another node."),
  deadline_exceeded: kind(
    504,
    true,
    "The deadline passed before the answer; nothing was changed.",
    "Repeat with more time.",
  ),
  outcome_unknown: kind(
    504,
    true,
    "The write may or may not be there.",
    "Repeat with the same idempotency key, or read.",
  ),
  internal: kind(500, false, "A fault of ours.", "Report the request id."),
} as const satisfies Record<string, ProblemKind>;

export type ProblemCode = keyof typeof problems;

export interface FieldError {
  /** JSON pointer into the body, or `header/<name>`, `query/<name>`, `path/<name>`. */
  readonly path: string;
  readonly message: string;
}

/** What a problem may carry beside code and detail. */
export interface ProblemExtras {
  readonly owner?: string;
  readonly errors?: readonly FieldError[];
  readonly retryAfterSeconds?: number;
  /** `<dc>/<node>` that refused, where it is another than the one that was asked. */
  readonly servedBy?: string;
  /** Of a copy that does not have what was asked for: how far it is behind, milliseconds; that it may not be current. */
  readonly lagMs?: number;
  readonly stale?: boolean;
  readonly cause?: unknown;
}

/** A refusal that reaches the caller as application/problem+json. */
export class Problem extends Error {
  readonly code: ProblemCode;
  readonly extras: ProblemExtras;

  constructor(code: ProblemCode, detail?: string, extras: ProblemExtras = {}) {
    super(detail ?? problems[code].meaning, extras.cause === undefined ? undefined : { cause: extras.cause });
    this.name = "Problem";
    this.code = code;
    this.extras = extras;
  }

  get owner(): string | undefined {
    return this.extras.owner;
  }

  get errors(): readonly FieldError[] | undefined {
    return this.extras.errors;
  }

  get retryAfterSeconds(): number | undefined {
    return this.extras.retryAfterSeconds;
  }

  /** The same refusal, with the shard's owner and the process that refused, where none are named yet. */
  by(owner: string, servedBy: string): Problem {
    return new Problem(this.code, this.message, { owner, servedBy, ...this.extras });
  }

  get status(): number {
    return problems[this.code].status;
  }

  get retryable(): boolean {
    return problems[this.code].retryable;
  }
}

/** A fault that ends the process with a message for its operator: what is wrong, and the way out. */
export class FatalError extends Error {
  readonly code: string;
  readonly wayOut: string;

  constructor(code: string, message: string, wayOut: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "FatalError";
    this.code = code;
    this.wayOut = wayOut;
  }
}

export function asError(value: unknown): Error {
  return value instanceof Error ? value : new Error(String(value));
}
