import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import path from "node:path";
import helmet from "helmet";

/** The page as one text, and the middleware that sets its headers. */
export interface Dashboard {
  readonly html: string;
  readonly secure: (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void) => void;
}

/** Puts style and script into the page, and allows exactly these two by their hashes: nothing else may run or load. */
export function createDashboard(): Dashboard {
  const read = (name: string): string => readFileSync(path.join(import.meta.dirname, "page", name), "utf8");
  // By function, so that a `$` in the text means itself.
  const html = read("dashboard.html")
    .replace("/* dashboard.css */", () => read("dashboard.css"))
    .replace("/* dashboard.cjs */", () => read("dashboard.cjs"));
  const secure = helmet({
    contentSecurityPolicy: {
      useDefaults: false,
      directives: {
        "default-src": ["'none'"],
        "script-src": [hashOf(html, "script")],
        "style-src": [hashOf(html, "style")],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
      },
    },
    // The local stack speaks plain HTTP; a proxy that ends TLS sets this one itself.
    strictTransportSecurity: false,
  });
  return { html, secure };
}

/** The CSP source of an element's text, taken from the finished page so that it holds whatever stands around the text. */
function hashOf(html: string, tag: string): string {
  const text = html.slice(html.indexOf(`<${tag}>`) + tag.length + 2, html.indexOf(`</${tag}>`));
  return `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
}
