import { isUtf8 } from "node:buffer";
import { Problem, type FieldError } from "../../infra/errors.js";
import { addFault, pointer } from "./faults.js";

/** Deeper values are refused: later stages walk them recursively. */
export const deepest = 32;

/**
 * Parses a body, and refuses what the stores behind could not keep as it is: NUL and lone surrogates (PostgreSQL),
 * numbers beyond double precision's range, `__proto__` keys, depth beyond `deepest`.
 * @throws Problem invalid_request with every place.
 */
export function parseJson(bytes: Buffer): unknown {
  if (!isUtf8(bytes)) throw refused([{ path: "", message: "is not valid UTF-8" }]);
  const text = bytes.toString("utf8");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refused([{ path: "", message: `is not JSON: ${where(error)}` }]);
  }
  const faults: FieldError[] = [];
  // In text that is UTF-8 and JSON they can only stand as escapes: most bodies have none, and their strings need no look.
  inspect(value, [], faults, text.includes("\\u"));
  if (faults.length > 0) throw refused(faults);
  return value;
}

/** Text that PostgreSQL can't store. */
export const unstorable = /\u0000|\p{Surrogate}/u;

export function refused(errors: readonly FieldError[]): Problem {
  return new Problem("invalid_request", undefined, { errors });
}

function inspect(value: unknown, path: PropertyKey[], faults: FieldError[], escapes: boolean): void {
  if (typeof value === "string") {
    if (escapes && unstorable.test(value)) addFault(faults, pointer(path), "holds a NUL character or a lone surrogate");
  } else if (typeof value === "number") {
    if (!Number.isFinite(value)) addFault(faults, pointer(path), "is a number out of range");
  } else if (typeof value === "object" && value !== null) {
    if (path.length >= deepest) {
      addFault(faults, pointer(path), `is nested deeper than ${deepest} levels`);
      return;
    }
    if (Array.isArray(value)) {
      for (let i = 0; i < value.length; i++) {
        path.push(i);
        inspect(value[i], path, faults, escapes);
        path.pop();
      }
      return;
    }
    for (const key of Object.keys(value)) {
      path.push(key);
      if (key === "__proto__") addFault(faults, pointer(path), "is not allowed as a field's name");
      else if (escapes && unstorable.test(key))
        addFault(faults, pointer(path.slice(0, -1)), "has a field's name with a NUL character or a lone surrogate");
      else inspect((value as Record<string, unknown>)[key], path, faults, escapes);
      path.pop();
    }
  }
}

/** The parser's message without the piece of input that newer engines quote. */
function where(error: unknown): string {
  const message = error instanceof Error ? error.message : "";
  return (
    /at position \d+/.exec(message)?.[0] ?? (message.includes("end of JSON") ? "it ends too early" : "syntax error")
  );
}
