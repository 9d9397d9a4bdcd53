import { readFileSync } from "node:fs";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { FatalError } from "./errors.js";

export const allRoles = ["api", "replicator", "coordinator", "worker"] as const;
export type Role = (typeof allRoles)[number];

const siteName = z
  .string()
  .regex(/^[a-z][a-z0-9-]{0,31}$/, "must be 1 to 32 of a-z, 0-9 and '-', beginning with a letter");
const whole = (from: number, to: number) =>
  z.preprocess(
    (value) => (typeof value === "string" && value.trim() !== "" ? Number(value) : value),
    z
      .number("must be a whole number")
      .int("must be a whole number")
      .min(from, `must be at least ${from}`)
      .max(to, `must be at most ${to}`),
  );
const list = z.preprocess(
  (value) =>
    typeof value === "string"
      ? value
          .split(",")
          .map((part) => part.trim())
          .filter((part) => part !== "")
      : value,
  z.array(z.string()).min(1, "must name at least one"),
);
const flag = z.preprocess(
  (value) => (value === "true" ? true : value === "false" ? false : value),
  z.boolean("must be true or false"),
);

/** Every setting: its name here, and in the environment as HOTHOT_ and upper case (`leaseMs` is HOTHOT_LEASE_MS). Units are in the names. */
const schema = z.strictObject({
  group: siteName,
  /** Of the log; a new one is begun only when a majority of the sites is gone for good (README.md, break-glass). */
  logGeneration: whole(1, 1_000_000).default(1),
  dc: siteName.optional(),
  witness: siteName.optional(),
  node: z
    .string()
    .regex(/^[A-Za-z0-9-]{1,32}$/, "must be 1 to 32 of A-Za-z0-9-")
    .default("n1"),
  databaseUrl: z
    .string()
    .regex(/^postgres(ql)?:\/\/\S+$/, "must be like postgres://user:password@host:5432/database")
    .optional(),
  natsUrls: list.refine(
    (urls) => urls.every((url) => /^(nats|tls):\/\/\S+$/.test(url)),
    "each must be like nats://user:password@host:4222; the own site's server first",
  ),
  natsHeartbeatUser: z.string().optional(),
  dataDir: z.string().optional(),
  host: z.string().default("127.0.0.1"),
  port: whole(0, 65535).default(8101),
  cooprPort: whole(0, 65535).optional(),
  cooprHost: z.string().default("127.0.0.1"),
  cooprNoTokens: flag.optional(),
  cooprTenants: list.default(["superadmin"]),
  cooprSilentMs: whole(500, 86_400_000).default(120_000),
  roles: list.pipe(z.array(z.enum(allRoles, `must be of ${allRoles.join(", ")}`))).default([...allRoles]),
  logLevel: z.enum(["error", "warn", "info", "debug"]).default("info"),
  noTokens: flag.optional(),
  adminToken: z
    .string()
    .regex(/^[\x21-\x7e]{20,512}$/, "must be 20 to 512 visible ASCII characters")
    .optional(),
  adminTokenFile: z.string().optional(),
  jwksUrl: z
    .string()
    .regex(/^https?:\/\/\S+$/, "must be like https://issuer.example/jwks.json")
    .optional(),
  jwtIssuer: z.string().optional(),
  jwtAudience: z.string().optional(),
  jwtTenantClaim: z.string().default("tenant"),
  jwtScopeClaim: z.string().default("scope"),
  tokenRequestsPerSecond: whole(0, 1_000_000).default(0),
  catalog: z.string().optional(),
  leaseMs: whole(300, 60_000).default(1500),
  marginMs: whole(10, 10_000).default(100),
  heartbeatMs: whole(20, 10_000).default(200),
  coordinatorTermMs: whole(100, 60_000).default(900),
  dbDeadMs: whole(200, 60_000).default(2500),
  maxUnpublishedMs: whole(100, 86_400_000).default(20_000),
  maxUnpublishedBytes: whole(1_000_000, 1_000_000_000_000).default(256_000_000),
  backlogBytesPerSecond: whole(10_000, 10_000_000_000).default(16_000_000),
  logRetentionMs: whole(1_000, 365 * 86_400_000).default(86_400_000),
  logMaxBytes: whole(1_000_000, 1_000_000_000_000).default(8_000_000_000),
  digestMs: whole(200, 86_400_000).default(60_000),
  scrubMs: whole(100, 86_400_000).default(30_000),
  restateMs: whole(100, 86_400_000).default(180_000),
  databaseConnections: whole(4, 200).default(12),
  defaultTimeoutMs: whole(100, 600_000).default(10_000),
  bodyLimitBytes: whole(1_000, 16_000_000).default(512_000),
  idempotencyRetentionMs: whole(1_000, 31_536_000_000).default(86_400_000),
  taskLeaseMs: whole(500, 3_600_000).default(30_000),
  taskRetentionMs: whole(1_000, 31_536_000_000).default(604_800_000),
  workerConcurrency: whole(1, 1000).default(8),
  simulatedTaskMs: whole(0, 3_600_000).default(40),
  simulatedFailurePercent: whole(0, 100).default(0),
  automaticFailback: flag.default(true),
  /** Datacenters that take over first, in this order; the same in every datacenter. Empty: spread over all. */
  successors: list.default([]),
  failbackAfterMs: whole(100, 86_400_000).default(20_000),
  maxEventLoopLagMs: whole(1, 60_000).default(250),
  drainMs: whole(0, 600_000).default(5_000),
  drainNoticeMs: whole(0, 600_000).default(0),
});

type Settings = z.infer<typeof schema>;

/** The process's settings: read once, checked whole, frozen. */
export type Config = Readonly<Omit<Settings, "dc" | "witness">> & {
  /** The site's name; `datacenter` tells which kind it is. */
  readonly site: string;
  readonly datacenter: boolean;
};

/** HOTHOT_ variables that belong to other programs than the server. */
const others = new Set([
  "HOTHOT_URL",
  "HOTHOT_TOKEN",
  "HOTHOT_NATS_SERVER",
  "HOTHOT_CONFIG",
  "HOTHOT_POSTGRES",
  "HOTHOT_DIR",
]);

export const variableOf = (setting: string): string =>
  `HOTHOT_${setting.replace(/[A-Z]/g, (c) => `_${c}`).toUpperCase()}`;

/**
 * Reads the environment, over the file when one is named.
 * @throws FatalError `bad_configuration` that names every fault at once.
 */
export function readConfig(environment: Readonly<Record<string, string | undefined>>, file?: string): Config {
  const faults: string[] = [];
  const names = new Map(Object.keys(schema.shape).map((setting) => [variableOf(setting), setting]));
  const given: Record<string, unknown> = file === undefined ? {} : readFile(file, names, faults);
  for (const [variable, value] of Object.entries(environment)) {
    if (!variable.startsWith("HOTHOT_") || others.has(variable) || value === undefined || value === "") continue;
    const setting = names.get(variable);
    if (setting === undefined) faults.push(`${variable}: there is no such setting`);
    else given[setting] = value;
  }
  const parsed = schema.safeParse(given);
  for (const issue of parsed.error?.issues ?? []) {
    if (issue.code === "unrecognized_keys")
      faults.push(...issue.keys.map((key) => `${key} (in the file): there is no such setting`));
    else
      faults.push(
        `${variableOf(String(issue.path[0]))}: ${given[String(issue.path[0])] === undefined ? "is missing" : issue.message}`,
      );
  }
  if (given["adminTokenFile"] !== undefined) {
    if (given["adminToken"] !== undefined)
      faults.push("HOTHOT_ADMIN_TOKEN, HOTHOT_ADMIN_TOKEN_FILE: only one of them may be set");
    else given["adminToken"] = readSecret(given["adminTokenFile"] as string, faults);
  }
  const dc = given["dc"];
  const witness = given["witness"];
  if ((dc === undefined) === (witness === undefined))
    faults.push("HOTHOT_DC, HOTHOT_WITNESS: exactly one of them must be set");
  if (dc !== undefined && given["databaseUrl"] === undefined)
    faults.push("HOTHOT_DATABASE_URL: is missing; a datacenter needs its PostgreSQL");
  if (witness !== undefined && given["dataDir"] === undefined)
    faults.push("HOTHOT_DATA_DIR: is missing; a witness keeps its votes there");
  faults.push(...faultsBetween(parsed.success ? parsed.data : soundOf(given), given));
  if (!parsed.success || faults.length > 0) {
    throw new FatalError(
      "bad_configuration",
      `the configuration has ${faults.length} fault(s):\n${faults.map((f) => `  ${f}`).join("\n")}`,
      "Mend them; README.md lists the settings.",
    );
  }
  const { dc: name, witness: other, ...rest } = parsed.data;
  return Object.freeze({ ...rest, site: name ?? other ?? "", datacenter: name !== undefined });
}

/** Of the settings that can't all be used, those that can, by themselves. */
function soundOf(given: Readonly<Record<string, unknown>>): Partial<Settings> {
  const sound = Object.entries(schema.shape).flatMap(([setting, type]) => {
    const { success, data } = (type as z.ZodType).safeParse(given[setting]);
    return success && data !== undefined ? [[setting, data]] : [];
  });
  return Object.fromEntries(sound) as Partial<Settings>;
}

/** What doesn't go together. */
function faultsBetween(settings: Partial<Settings>, given: Readonly<Record<string, unknown>>): string[] {
  const faults: string[] = [];
  const { leaseMs, marginMs, heartbeatMs, host, noTokens, jwksUrl, cooprPort, cooprHost } = settings;
  if (leaseMs !== undefined && marginMs !== undefined && heartbeatMs !== undefined) {
    if (marginMs + 2 * heartbeatMs >= leaseMs)
      faults.push("HOTHOT_LEASE_MS: must be more than HOTHOT_MARGIN_MS and two HOTHOT_HEARTBEAT_MS together");
    if (marginMs < leaseMs * 0.02)
      faults.push("HOTHOT_MARGIN_MS: must be at least 2 % of HOTHOT_LEASE_MS, for clocks of different rates");
  }
  const tokens = noTokens ?? given["adminToken"] ?? given["jwksUrl"];
  if (host !== undefined && !isLoopback(host) && tokens === undefined)
    faults.push(
      "HOTHOT_HOST: listens beyond loopback without tokens; set HOTHOT_ADMIN_TOKEN (or HOTHOT_ADMIN_TOKEN_FILE) or HOTHOT_JWKS_URL, HOTHOT_NO_TOKENS=false if there are tokens already, or HOTHOT_NO_TOKENS=true if something else guards it",
    );
  if (cooprPort !== undefined && cooprHost !== undefined && !isLoopback(cooprHost) && settings.cooprNoTokens !== true)
    faults.push(
      "HOTHOT_COOPR_HOST: listens beyond loopback, and provisioners know no tokens: whoever reaches it may take and finish tasks; set HOTHOT_COOPR_NO_TOKENS=true if a network of its own guards it",
    );
  if (
    jwksUrl === undefined &&
    given["jwksUrl"] === undefined &&
    (settings.jwtIssuer ?? settings.jwtAudience) !== undefined
  )
    faults.push("HOTHOT_JWKS_URL: is missing; HOTHOT_JWT_ISSUER and HOTHOT_JWT_AUDIENCE mean nothing without it");
  return faults;
}

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

function readSecret(file: string, faults: string[]): string | undefined {
  try {
    const text = readFileSync(file, "utf8").trim();
    if (text === "") faults.push(`HOTHOT_ADMIN_TOKEN_FILE: ${file} is empty`);
    return text === "" ? undefined : text;
  } catch (error) {
    faults.push(
      `HOTHOT_ADMIN_TOKEN_FILE: ${file} can't be read (${(error as NodeJS.ErrnoException).code ?? "unknown error"})`,
    );
    return undefined;
  }
}

/** Settings of a file, which may call them as the environment does. */
function readFile(file: string, names: ReadonlyMap<string, string>, faults: string[]): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    faults.push(`${file}: can't be read (${(error as NodeJS.ErrnoException).code ?? "unknown error"})`);
    return {};
  }
  try {
    const value: unknown = parseYaml(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      return Object.fromEntries(
        Object.entries(value).map(([name, each]) => [names.get(name) ?? name, each as unknown]),
      );
    faults.push(`${file}: must hold an object of settings`);
  } catch (error) {
    faults.push(`${file}: is neither YAML nor JSON (${(error as Error).message.split("\n")[0]})`);
  }
  return {};
}
