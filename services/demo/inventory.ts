import { readFileSync } from "node:fs";

export interface InventoryNode {
  readonly name: string;
  readonly services: readonly string[];
  readonly hardware: string;
  readonly flavor: string;
}

export interface InventoryCluster {
  readonly id: string;
  readonly name: string;
  readonly spec: { readonly template: string; readonly nodes: readonly InventoryNode[] } & Readonly<
    Record<string, unknown>
  >;
  readonly labels: Readonly<Record<string, string>>;
}

/** The example inventory, in the order of its ids: what `npm run demo` imports. */
export function readInventory(): InventoryCluster[] {
  return JSON.parse(readFileSync(new URL("./inventory/clusters.json", import.meta.url), "utf8")) as InventoryCluster[];
}
