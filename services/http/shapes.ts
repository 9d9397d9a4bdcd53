import { z } from "zod";
import { clusterStatuses, jobStatuses } from "../../replication/entities.js";
import { problems, type ProblemCode } from "../../infra/errors.js";
import { divergentStatuses } from "./schemas.js";

/** What answers hold, at least. The OpenAPI document is generated from these; answers aren't checked at run time. */

const whole = z.number().int();
const object = z.record(z.string(), z.unknown());
const time = z.string().meta({ format: "date-time" });
const text = z.string();
const site = z.string().nullable();

export const listOf = (item: z.ZodType) => z.looseObject({ items: z.array(item), nextCursor: text.nullable() });

export const cluster = z
  .looseObject({
    id: text,
    shard: whole,
    owner: site,
    status: z.enum(clusterStatuses),
    name: text,
    spec: object,
    state: object,
    labels: z.record(z.string(), text),
    expiresAt: time.nullable(),
    version: whole.min(1),
    createdAt: time,
    updatedAt: time,
  })
  .meta({ id: "Cluster" });

export const job = z
  .looseObject({
    id: text,
    clusterId: text,
    type: text,
    input: object,
    status: z.enum(jobStatuses),
    attempt: whole,
    epoch: whole,
    stage: text.nullable(),
    stages: z.array(text),
    startedIn: text,
    runsIn: text,
    createdAt: time,
    finishedAt: time.nullable(),
    error: z.unknown(),
  })
  .meta({ id: "Job" });

/** A task as jobs show it. */
export const task = z.looseObject({ id: text, name: text, stage: text, status: text }).meta({ id: "Task" });

export const takenTask = z
  .looseObject({
    id: text,
    jobId: text,
    clusterId: text,
    name: text,
    node: text.nullable(),
    stage: text,
    attempt: whole,
    token: text,
    input: object,
    leaseMs: whole,
  })
  .meta({ id: "TakenTask" });

export const taken = z.looseObject({ tasks: z.array(takenTask) });
export const taskLease = z.looseObject({ leaseMs: z.number(), stop: z.boolean() });
export const worker = z.looseObject({}).meta({ id: "Worker" });

export const shard = z
  .looseObject({
    shard: whole,
    partition: whole,
    owner: site,
    epoch: whole,
    state: z.enum(["owned", "moving", "unowned"]),
    position: whole,
    since: time.nullable(),
    reason: text.nullable(),
    // Why its log can't be applied here any more.
    stopped: text.optional(),
  })
  .meta({ id: "Shard" });

export const lag = z
  .looseObject({ shard: whole, owner: site, positions: z.number(), ms: z.number(), stopped: text.optional() })
  .meta({ id: "Lag" });

export const topology = z
  .looseObject({
    datacenters: z.array(
      z.looseObject({
        name: text,
        url: text.nullable(),
        state: z.enum(["serving", "fenced", "suspect", "dead", "catching_up"]),
        leaseMsLeft: z.number().nullable(),
        shardsOwned: whole,
        // Of a datacenter that is not heard nothing is known.
        lag: z.looseObject({ positions: z.number().nullable(), ms: z.number().nullable() }).nullable(),
      }),
    ),
    witnesses: z.array(z.looseObject({ name: text, state: text })),
    shards: whole,
    failoverPaused: z.boolean(),
    automaticTakeover: z.looseObject({ possible: z.boolean(), why: text.nullable() }),
  })
  .meta({ id: "Topology" });

export const ownershipChange = z
  .looseObject({
    id: z.union([text, z.number()]),
    at: time,
    shard: whole,
    epoch: whole,
    from: site,
    to: site,
    kind: z.enum(["initial", "takeover", "switchover", "drain", "failback", "rebalance"]),
    reason: text.nullable(),
    by: text.nullable(),
    // Planned: hold, carry, flush, open, serve. Takeover: votes, wait, open, serve. Those not known anywhere are missing.
    phasesMs: z.record(z.string(), z.number()),
    // Records between the change's begin and the end of the former epoch.
    drained: whole,
    // Of the former owner, set aside; 0 until it has returned.
    divergent: whole,
  })
  .meta({ id: "OwnershipChange" });

const plannedShard = z.looseObject({
  shard: whole,
  from: site,
  to: site,
  // Records that the target has still to apply.
  unapplied: z.number().nullable(),
  // Those of them that the log does not have, as far as is known of their owner: a takeover sets them aside, a planned move none.
  lost: z.number().nullable(),
});
export const plan = z.looseObject({ shards: z.array(plannedShard) }).meta({ id: "Plan" });
export const longOperation = z
  .looseObject({
    id: text,
    kind: text,
    status: z.enum(["running", "complete", "failed", "cancelled"]),
    progress: z.looseObject({ done: whole, total: whole }),
    shards: z.array(z.looseObject({ shard: whole, from: site, to: site, status: text, error: z.unknown() })),
    error: z.unknown(),
    by: text.nullable(),
    startedAt: time,
    finishedAt: time.nullable(),
  })
  .meta({ id: "LongOperation" });

export const divergent = z
  .looseObject({
    id: text,
    dc: text,
    shard: whole,
    epoch: whole,
    position: whole,
    clusterId: text.nullable(),
    type: text,
    version: whole.nullable(),
    value: z.unknown(),
    idempotencyKey: text.nullable(),
    committedAt: time,
    status: z.enum(divergentStatuses),
  })
  .meta({ id: "DivergentOperation" });

export const audited = z
  .looseObject({ at: time, who: text, dc: text, action: text, target: z.unknown(), result: z.unknown() })
  .meta({ id: "AuditEntry" });

export const token = z
  .looseObject({
    id: text,
    name: text.nullable(),
    scopes: z.array(text),
    tenant: text,
    createdAt: time,
    createdBy: text,
    expiresAt: time.nullable(),
    requestsPerSecond: z.number().nullable(),
  })
  .meta({ id: "Token" });
export const madeToken = token.extend({ token: text }).meta({ id: "MadeToken" });
export const tenant = z
  .looseObject({ id: text, maxClusters: whole.nullable(), writesPerSecond: z.number().nullable() })
  .meta({ id: "Tenant" });

export const members = z
  .looseObject({ number: whole, datacenters: z.array(text), witnesses: z.array(text), changing: z.boolean() })
  .meta({ id: "Members" });
export const failover = z.looseObject({ paused: z.boolean() });
export const copied = z.looseObject({ copied: z.unknown() });
export const ready = z
  .looseObject({ ready: z.boolean(), reason: text.nullable(), lagMs: z.number() })
  .meta({ id: "Readiness" });

export const problem = z
  .looseObject({
    type: text,
    title: text,
    status: whole,
    detail: text,
    code: z.enum(Object.keys(problems) as [ProblemCode, ...ProblemCode[]]),
    retryable: z.boolean(),
    requestId: text,
    owner: text.optional(),
    errors: z.array(z.looseObject({ path: text, message: text })).optional(),
  })
  .meta({ id: "Problem" });

export const ndjson = "application/x-ndjson";
export const eventStream = "text/event-stream";
