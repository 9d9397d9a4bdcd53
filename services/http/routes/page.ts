import { Problem } from "../../../infra/errors.js";
import type { Listed, Page } from "../../api.js";

/** A checked query's page, without absent fields. */
export function pageOf(query: { readonly limit: number; readonly cursor?: string | undefined }): Page {
  return query.cursor === undefined ? { limit: query.limit } : { limit: query.limit, cursor: query.cursor };
}

/** A page of a list that is short and held whole, such as that of shards. The cursor is the number of items before it. */
export function slice(list: Listed, { limit, cursor }: Page): Listed {
  const from = cursor === undefined ? 0 : /^\d{1,9}$/.test(cursor) ? Number(cursor) : -1;
  if (from < 0)
    throw new Problem("invalid_request", undefined, {
      errors: [{ path: "query/cursor", message: "must be a nextCursor of this list" }],
    });
  const end = from + limit;
  return { items: list.items.slice(from, end), nextCursor: end < list.items.length ? String(end) : null };
}
