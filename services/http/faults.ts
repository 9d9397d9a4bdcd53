import type { z } from "zod";
import type { FieldError } from "../../infra/errors.js";

/** Where a value came from; the first part of a fault's path. A body's path is a JSON pointer alone. */
export type Source = "body" | "query" | "path";

const mostFaults = 100;

/** Parses, or adds every fault to `faults` and gives undefined. */
export function check(schema: z.ZodType, value: unknown, source: Source, faults: FieldError[]): unknown {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  for (const issue of parsed.error.issues) addIssue(issue, source, faults);
  return undefined;
}

export function addFault(faults: FieldError[], path: string, message: string): void {
  if (faults.length < mostFaults) faults.push({ path, message });
}

/** RFC 6901. */
export function pointer(path: readonly PropertyKey[]): string {
  let out = "";
  for (const part of path) out += `/${String(part).replaceAll("~", "~0").replaceAll("/", "~1")}`;
  return out;
}

function addIssue(issue: z.core.$ZodIssue, source: Source, faults: FieldError[]): void {
  const at = (path: readonly PropertyKey[]): string =>
    source === "body" ? pointer(path) : path.length === 0 ? source : `${source}/${path.map(String).join("/")}`;
  if (issue.code === "unrecognized_keys") {
    const what = source === "body" ? "there is no such field" : "there is no such parameter";
    for (const key of issue.keys) addFault(faults, at([...issue.path, key]), what);
    return;
  }
  addFault(faults, at(issue.path), plain(issue));
}

function plain(issue: z.core.$ZodIssue): string {
  if (issue.code !== "invalid_type") return issue.message;
  const article = /^[aeio]/.test(issue.expected) ? "an" : "a";
  const expected =
    issue.expected === "record"
      ? "an object"
      : issue.expected === "int"
        ? "a whole number"
        : `${article} ${issue.expected}`;
  return issue.message.endsWith("received undefined") ? `is missing; it must be ${expected}` : `must be ${expected}`;
}
