import type { IncomingMessage } from "node:http";

const reading = new Set(["GET", "HEAD", "OPTIONS"]);

/**
 * Whether a browser sends this for a page of another site, and it may change something. Where no token is needed that is all that tells
 * the page's wish from its user's. Browsers say it themselves (Fetch Metadata); those that don't name the page's origin. Programs send
 * neither.
 */
export function isCrossSite({ method = "", headers }: Pick<IncomingMessage, "method" | "headers">): boolean {
  if (reading.has(method)) return false;
  const site = headers["sec-fetch-site"];
  if (site !== undefined) return site !== "same-origin" && site !== "none";
  const { origin, host } = headers;
  return origin !== undefined && origin.replace(/^https?:\/\//i, "").toLowerCase() !== host?.toLowerCase();
}
