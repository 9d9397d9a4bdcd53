import { z } from "zod";
import type { JsonObject } from "../../replication/entities.js";
import { parseTaskId, tokenOf } from "../jobs/ids.js";

/** Numbers may arrive as texts. */
const number = z.preprocess(
  (value) => (typeof value === "string" && /^\s*-?\d+(\.\d+)?\s*$/.test(value) ? Number(value) : value),
  z.number("must be a number, perhaps as a text"),
);
const id = z.string("must be a text").min(1, "must not be empty").max(255, "must have at most 255 characters");

/** Also a part of our own registrations' ids and of workers' names, so it has no "/". */
export const provisionerId = z
  .string("must be a text")
  .regex(/^[A-Za-z0-9._:-]{1,100}$/, "must be 1 to 100 of A-Za-z0-9._:-");

export const registration = z.looseObject({
  id: provisionerId.optional(),
  capacityTotal: number.pipe(z.int("must be a whole number").min(0, "must be at least 0").max(10_000, "is too large")),
  host: z.string("must be a text").regex(/^[A-Za-z0-9.:_-]{1,255}$/, "must be a host's name or address"),
  port: number.pipe(z.int("must be a whole number").min(1, "must be at least 1").max(65_535, "must be at most 65535")),
});

export const heartbeat = z.looseObject({ usage: z.record(z.string(), number).optional() });

export const take = z.looseObject({ provisionerId: id, workerId: id, tenantId: id });

export const finish = z.looseObject({
  provisionerId: id,
  workerId: id,
  tenantId: id,
  taskId: id,
  status: number,
  result: z.record(z.string(), z.unknown()).nullish(),
  hostname: z.string().nullish(),
  ipaddresses: z.unknown().optional(),
  stdout: z.unknown().optional(),
  stderr: z.unknown().optional(),
  message: z.unknown().optional(),
});
export type Finish = z.output<typeof finish>;

/** What a worker is told of a task: `<our task's id>.<epoch of its attempt>.<try>`, since it has no other token. Fit for a file's name. */
export function taskIdFor(task: { readonly id: string; readonly token: string; readonly try: number }): string {
  const [, epoch = "0"] = task.token.split(".");
  return `${task.id}.${epoch}.${task.try}`;
}

/** Undefined for what is no such id. */
export function parseTaskIdFor(text: string): { taskId: string; token: string; try: number } | undefined {
  const match = /^(.+)\.(\d{1,15})\.([1-9]\d{0,5})$/.exec(text);
  if (match === null) return undefined;
  const [, taskId = "", epoch, tried] = match;
  const parts = parseTaskId(taskId);
  if (parts === undefined) return undefined;
  const token = tokenOf({ shard: parts.shard, attempt: parts.attempt, epoch: Number(epoch) as never });
  return { taskId, token, try: Number(tried) };
}

/** A finish in the words of our own workers. `result` holds what later tasks of the node shall know. */
export function outcomeOf(body: Finish): {
  status: "ok" | "failed";
  result?: JsonObject;
  stdout?: string;
  stderr?: string;
} {
  const { status, hostname, ipaddresses } = body;
  const result = {
    ...body.result,
    ...(hostname == null ? {} : { hostname }),
    ...(typeof ipaddresses === "object" && ipaddresses !== null ? { ipaddresses } : {}),
  };
  const stdout = textOf(body.stdout);
  const stderr = textOf(body.stderr) ?? (status === 0 ? undefined : textOf(body.message));
  return {
    status: status === 0 ? "ok" : "failed",
    ...(Object.keys(result).length === 0 ? {} : { result }),
    ...(stdout === undefined ? {} : { stdout }),
    ...(stderr === undefined ? {} : { stderr }),
  };
}

const textOf = (value: unknown): string | undefined =>
  value === undefined || value === null ? undefined : typeof value === "string" ? value : JSON.stringify(value);
