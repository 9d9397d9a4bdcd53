import { existsSync, readFileSync } from "node:fs";
import path from "node:path";

/** The folder of the checkout: where package.json, node_modules and .cache are. */
export const checkout = findCheckout(import.meta.dirname);

/** The compiled entry of a hothot process. */
export const mainProgram = path.join(checkout, ".build", "services", "http", "program.js");

function findCheckout(from: string): string {
  for (let folder = from; ; folder = path.dirname(folder)) {
    const file = path.join(folder, "package.json");
    if (existsSync(file) && (JSON.parse(readFileSync(file, "utf8")) as { name?: string }).name === "hothot")
      return folder;
    if (folder === path.dirname(folder)) throw new Error(`no checkout of hothot above ${from}`);
  }
}
