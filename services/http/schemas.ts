import { z } from "zod";
import { clusterStatuses, jobStatuses } from "../../replication/entities.js";
import { scopes } from "../api.js";
import { unstorable } from "./json.js";

/** What requests may hold. The OpenAPI document is generated from these. */

const idForm = /^[A-Za-z0-9._:-]{1,128}$/;
const idMessage = "must be 1 to 128 of A-Za-z0-9._:-";

export const clusterId = z.string().regex(idForm, idMessage).describe("1 to 128 of A-Za-z0-9._:-");
/** Registrations that begin with `coopr:` are provisioners, which the service calls back: they come by way of its adapter only. */
export const workerId = z
  .string()
  .regex(/^(?!coopr:)[A-Za-z0-9._:-]{1,128}$/, `${idMessage}, and not begin with coopr:`)
  .describe("1 to 128 of A-Za-z0-9._:-, not beginning with coopr:");
/** Job, task, move and divergent ids: made by the service, so a wrong one is merely unknown. */
export const madeId = z.string().regex(/^[A-Za-z0-9._:-]{1,256}$/, "must be 1 to 256 of A-Za-z0-9._:-");
export const idParam = (id: z.ZodType<string>) => z.strictObject({ id });

const siteName = z.string().regex(/^[a-z][a-z0-9-]{0,31}$/, "must be a datacenter's name");
const shardNumber = z
  .number("must be a shard's number")
  .int("must be a whole number")
  .min(0, "must be at least 0")
  .max(1_000_000, "must be at most 1000000");
const jsonObject = z.record(z.string(), z.unknown());
const labels = z.record(z.string(), z.string("must be a string"));

const latest = Date.parse("9999-12-31T23:59:59.999Z");

/** RFC 3339, made UTC with milliseconds; from 1970 to the end of 9999 in UTC, as every store behind can hold it. */
const time = z
  .string()
  .refine(
    (text) =>
      z.iso.datetime({ offset: true }).safeParse(text).success && Date.parse(text) >= 0 && Date.parse(text) <= latest,
    "must be a time like 2030-01-31T12:00:00Z",
  )
  .transform((text) => new Date(text).toISOString())
  .meta({ format: "date-time" });

const textOfQuery = (most: number) =>
  z
    .string()
    .min(1, "must not be empty")
    .max(most, `must have at most ${most} characters`)
    .refine((text) => !unstorable.test(text), "holds a NUL character or a lone surrogate");

/** A whole number in a query. */
const wholeOfQuery = (from: number, to: number) => {
  const message = `must be a whole number from ${from} to ${to}`;
  return z
    .string()
    .regex(/^\d{1,15}$/, message)
    .transform(Number)
    .pipe(z.number().int().min(from, message).max(to, message));
};

export const page = {
  limit: wholeOfQuery(1, 1000).default(100),
  cursor: textOfQuery(2000).optional(),
};
export const pageQuery = z.strictObject(page);

const clusterFields = {
  name: z.string(),
  spec: jsonObject,
  state: jsonObject.optional(),
  labels: labels.optional(),
  expiresAt: time.nullable().optional(),
};
export const putCluster = z.strictObject(clusterFields).meta({ id: "ClusterFields" });
const nullableObject = jsonObject.nullable();
/** RFC 7396 on ClusterFields: null removes, or sets what is always there to its empty value. */
export const patchCluster = z
  .strictObject({
    name: z.string().optional(),
    spec: nullableObject.optional(),
    state: nullableObject.optional(),
    labels: z.record(z.string(), z.string("must be a string or null").nullable()).nullable().optional(),
    expiresAt: time.nullable().optional(),
  })
  .meta({ id: "ClusterPatch" });
export const createCluster = z.strictObject({ id: clusterId.optional(), ...clusterFields });
export const bulkCluster = z.strictObject({ id: clusterId.optional(), ...clusterFields });

export const clusterQuery = z.strictObject({
  status: z.enum(clusterStatuses, `must be one of ${clusterStatuses.join(", ")}`).optional(),
  owner: siteName.optional(),
  shard: wholeOfQuery(0, 1_000_000).optional(),
  label: textOfQuery(2000)
    .regex(/^[^:]+:/, "must be <name>:<value>")
    .optional(),
  ...page,
});

export const startOperation = z.strictObject({
  type: z.string().regex(/^[A-Za-z0-9._-]{1,64}$/, "must be the name of an operation type"),
  input: jsonObject.optional(),
  notBefore: time.nullable().optional(),
});
export const jobQuery = z.strictObject({
  cluster: clusterId.optional(),
  status: z.enum(jobStatuses, `must be one of ${jobStatuses.join(", ")}`).optional(),
  ...page,
});

/** A request without fields. */
export const nothing = z.strictObject({});

export const putWorker = z.strictObject({
  capacity: z.number().int().min(1, "must be at least 1").max(10_000, "must be at most 10000").default(1),
  labels: labels.default({}),
});

export const longestWaitMs = 60_000;
export const takeTasks = z.strictObject({
  workerId,
  waitMs: z
    .number()
    .int()
    .min(0, "must be at least 0")
    .max(longestWaitMs, `must be at most ${longestWaitMs}`)
    .default(0),
  max: z.number().int().min(1, "must be at least 1").max(1000, "must be at most 1000").default(1),
  names: z.array(z.string().min(1).max(128)).max(200).optional(),
  labels: labels.optional(),
});

/** Any text: what is not the running attempt's token is a stale one. */
const token = z.string();
export const heartbeatTask = z.strictObject({ token, workerId });
export const finishTask = z.strictObject({
  token,
  workerId,
  try: z.number().int().min(1, "must be at least 1").optional(),
  status: z.enum(["ok", "failed"], "must be ok or failed"),
  result: jsonObject.optional(),
  stdout: z.string().optional(),
  stderr: z.string().optional(),
});

const oneOf = "exactly one of dc and shard must be given";
const dryRun = z.boolean("must be true or false").default(false);
export const addDatacenter = z.strictObject({ name: siteName });
export const datacenterParam = z.strictObject({ name: siteName });

const dcOrShard = { dc: siteName.optional(), shard: shardNumber.optional() };
const exactlyOne = (body: { dc?: string | undefined; shard?: number | undefined }): boolean =>
  (body.dc === undefined) !== (body.shard === undefined);

export const moves = {
  switchovers: z.strictObject({ ...dcOrShard, to: siteName, dryRun }).refine(exactlyOne, oneOf),
  drains: z.strictObject({ dc: siteName, dryRun }),
  failbacks: z.strictObject({ dc: siteName, dryRun }),
  rebalances: z.strictObject({ dryRun }),
  takeovers: z
    .strictObject({
      ...dcOrShard,
      to: siteName.optional(),
      force: z.boolean("must be true or false").default(false),
      dryRun,
    })
    .refine(exactlyOne, oneOf),
} as const;

export const putFailover = z.strictObject({ paused: z.boolean("must be true or false") });
export const repair = z
  .strictObject({ shard: shardNumber.optional(), clusterId: clusterId.optional(), from: siteName.optional() })
  .refine(
    (body) => (body.shard === undefined) !== (body.clusterId === undefined),
    "exactly one of shard and clusterId must be given",
  );

const tenantName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, "must be 1 to 63 of A-Za-z0-9._-, beginning with a letter or a digit");
const perSecond = z.number("must be a number").positive("must be above 0").max(1_000_000);
export const newToken = z
  .strictObject({
    scopes: z.array(z.enum(scopes, `must be one of ${scopes.join(", ")}`)).min(1, "must name at least one"),
    tenant: tenantName.optional(),
    name: z
      .string()
      .regex(/^[A-Za-z0-9._:@-]{1,64}$/, "must be 1 to 64 of A-Za-z0-9._:@-")
      .optional(),
    expiresAt: time.nullable().optional(),
    requestsPerSecond: perSecond.nullable().optional(),
  })
  .meta({ id: "NewToken" });
export const tenantParam = z.strictObject({ id: tenantName });
export const putTenant = z
  .strictObject({
    maxClusters: z.number().int("must be a whole number").min(0).max(1_000_000_000).nullable().default(null),
    writesPerSecond: perSecond.nullable().default(null),
  })
  .meta({ id: "TenantLimits" });

export const divergentStatuses = ["open", "replayed", "discarded", "superseded"] as const;
export const divergentQuery = z.strictObject({
  status: z.enum(divergentStatuses, `must be one of ${divergentStatuses.join(", ")}`).optional(),
  ...page,
});

/** Probes are called by strangers, so that other parameters don't matter. */
export const readyQuery = z.looseObject({ lagMs: wholeOfQuery(0, 86_400_000).optional() });
