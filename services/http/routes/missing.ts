import { Problem } from "../../../infra/errors.js";

/** The answer of a route whose feature this process hasn't. @throws Problem not_found, always */
export function missing(): never {
  throw new Problem("not_found", "not available in this version");
}
