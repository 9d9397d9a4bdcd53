import type { FieldError } from "../../infra/errors.js";
import { addFault } from "./faults.js";

/** The query's parameters by name. One that is given twice is a fault. */
export function readQuery(url: string, faults: FieldError[]): Record<string, string> {
  // A null prototype, so that no name means anything but a parameter.
  const query = Object.create(null) as Record<string, string>;
  const at = url.indexOf("?");
  if (at < 0) return query;
  for (const [name, value] of new URLSearchParams(url.slice(at + 1))) {
    if (name in query) addFault(faults, `query/${name}`, "is given more than once");
    else query[name] = value;
  }
  return query;
}
