#!/usr/bin/env node
// Transpiles every TypeScript file to .build/ (one file to one file, with source maps); fast enough to run before each start.
// Types are checked by `npm run typecheck`, not here.
import { build } from "esbuild";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  renameSync,
} from "node:fs";
import { createHash } from "node:crypto";
import path from "node:path";
import process from "node:process";

const root = path.resolve(import.meta.dirname, "../..");
const out = path.join(root, ".build");
/** Also named in checkout.ts. */
const program = path.join("services", "http", "program.js");
const folders = ["services", "shards", "routing", "replication", "infra", "test"];

/**
 * Packages get a source map of one entry: the engine keeps the whole map in memory once it has shown a stack, and a stack needs
 * the places of the project's own files.
 */
const unmapped = {
  name: "unmapped-packages",
  setup: (builder) =>
    builder.onLoad({ filter: /[\\/]node_modules[\\/].*\.[cm]?js$/ }, ({ path: file }) => ({
      contents: `${readFileSync(file, "utf8").replace(/^\/\/[#@] sourceMappingURL=.*$/gm, "")}\n//# sourceMappingURL=data:application/json;base64,${emptyMap}`,
      loader: "default",
    })),
};
const emptyMap = Buffer.from('{"version":3,"sources":["package"],"mappings":"AAAA"}').toString("base64");

const files = folders.flatMap((folder) =>
  existsSync(path.join(root, folder))
    ? readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && !entry.name.endsWith(".md"))
        .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name))
    : [],
);
const stamp = createHash("sha256");
for (const file of [...files].sort())
  stamp.update(`${path.relative(root, file)} ${statSync(file).mtimeMs} ${statSync(file).size}\n`);
const digest = stamp.digest("hex");
const stampFile = path.join(out, "stamp");
if (process.argv.includes("--force") || !existsSync(stampFile) || readFileSync(stampFile, "utf8") !== digest) {
  // Built beside the running one and moved in file by file, so that a process that starts meanwhile never reads half a file.
  const fresh = path.join(root, `.build.${process.pid}`);
  try {
    await build({
      entryPoints: files.filter((file) => file.endsWith(".ts")),
      outdir: fresh,
      outbase: root,
      format: "esm",
      platform: "node",
      target: "node20",
      sourcemap: "linked",
      logLevel: "warning",
    });
    // The service's program once more, with its packages in one file: its processes start in half the time. It lies beside the page
    // that it serves. Packages with a native part, or that are loaded only when they are configured, stay outside.
    await build({
      entryPoints: [path.join(root, "services", "main.ts")],
      outfile: path.join(fresh, program),
      bundle: true,
      external: ["msgpackr", "@opentelemetry/*", "pg-native"],
      banner: { js: 'import { createRequire as r } from "node:module"; const require = r(import.meta.url);' },
      format: "esm",
      platform: "node",
      target: "node20",
      sourcemap: "linked",
      sourcesContent: false,
      legalComments: "linked",
      plugins: [unmapped],
      logLevel: "warning",
    });
    mkdirSync(out, { recursive: true });
    const built = readdirSync(fresh, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    for (const entry of built) {
      const from = path.join(entry.parentPath ?? entry.path, entry.name);
      const to = path.join(out, path.relative(fresh, from));
      mkdirSync(path.dirname(to), { recursive: true });
      renameSync(from, to);
    }
    for (const file of files.filter((name) => !/\.(ts|mjs)$/.test(name))) {
      const to = path.join(out, path.relative(root, file));
      mkdirSync(path.dirname(to), { recursive: true });
      cpSync(file, to);
    }
    // A test whose source is gone must not run again.
    const wanted = new Set([
      program,
      ...files.filter((file) => file.endsWith(".ts")).map((file) => path.relative(root, file).replace(/\.ts$/, ".js")),
    ]);
    for (const entry of readdirSync(out, { recursive: true, withFileTypes: true })) {
      const name = path.relative(out, path.join(entry.parentPath ?? entry.path, entry.name));
      if (entry.isFile() && name.endsWith(".js") && !wanted.has(name)) rmSync(path.join(out, name), { force: true });
    }
    writeFileSync(path.join(out, "package.json"), '{"type":"module"}\n');
    writeFileSync(stampFile, digest);
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}
