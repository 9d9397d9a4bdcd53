import type { FieldError } from "../../infra/errors.js";
import type { JsonObject, TaskRow } from "../../replication/entities.js";
import { hashText } from "../../shards/ids.js";
import type { StageSpec } from "./catalog.js";

/** A machine of the cluster, as `spec.nodes` names it: at least its name. */
export type NodeSpec = JsonObject & { readonly name: string };

export interface PlannedTask {
  readonly name: string;
  /** Null for a task that belongs to no node. */
  readonly node: string | null;
  /** Null unless the stage is per service. */
  readonly service: string | null;
}

/** More nodes than this are refused when a job starts: a stage is put down in one transaction. */
export const maxNodes = 2_000;

export interface ReadNodes {
  /** Null when the spec has no list of nodes: the tasks of a node run once, for the cluster. */
  readonly nodes: readonly NodeSpec[] | null;
  /** With paths from the cluster's root. */
  readonly faults: readonly FieldError[];
}

/** The nodes of a cluster's spec: a list of names, or of objects with a `name`. */
export function readNodes(spec: JsonObject): ReadNodes {
  const given = spec["nodes"];
  if (given === undefined || given === null) return { nodes: null, faults: [] };
  if (!Array.isArray(given)) return { nodes: null, faults: [{ path: "/spec/nodes", message: "must be a list" }] };
  if (given.length > maxNodes) {
    return { nodes: null, faults: [{ path: "/spec/nodes", message: `must name at most ${maxNodes} nodes` }] };
  }
  const faults: FieldError[] = [];
  const nodes: NodeSpec[] = [];
  const seen = new Set<string>();
  given.forEach((value: unknown, index) => {
    const node = asNode(value);
    const path = `/spec/nodes/${index}`;
    if (node === undefined)
      faults.push({ path, message: "must be a name, or an object with a name, of 1 to 255 characters" });
    else if (seen.has(node.name)) faults.push({ path, message: `names ${node.name} a second time` });
    else {
      seen.add(node.name);
      nodes.push(node);
    }
  });
  return faults.length > 0 ? { nodes: null, faults } : { nodes, faults: [] };
}

/** The tasks of a stage. Without nodes, or services of nodes, a stage that is per them has no tasks: it is passed at once. */
export function planStage(stage: StageSpec, nodes: readonly NodeSpec[] | null): PlannedTask[] {
  if (stage.per === "service")
    return (nodes ?? []).flatMap((node) =>
      servicesOf(node).flatMap((service) => stage.tasks.map((name) => ({ name, node: node.name, service }))),
    );
  if (stage.per === "once" || nodes === null) return stage.tasks.map((name) => ({ name, node: null, service: null }));
  return nodes.flatMap((node) => stage.tasks.map((name) => ({ name, node: node.name, service: null })));
}

/** The names in a node's `services`, each once. */
export function servicesOf(node: NodeSpec): string[] {
  const { services } = node as { services?: unknown };
  if (!Array.isArray(services)) return [];
  return [...new Set(services.filter((name): name is string => typeof name === "string" && name !== ""))];
}

/** Index of the first stage that an attempt runs. */
export const firstStage = (job: { readonly checkpoint: { readonly stages: number } | null }): number =>
  job.checkpoint?.stages ?? 0;

export type StageProgress =
  /** Tasks wait or run. */
  | { readonly kind: "open" }
  /** The barrier is reached: every task is ok. */
  | { readonly kind: "complete" }
  /** A task has used up its tries. */
  | { readonly kind: "failed"; readonly task: TaskRow };

/** The barrier: how far one stage of one attempt is. `tasks` may hold others too. */
export function progressOf(tasks: readonly TaskRow[], attempt: number, stageIndex: number): StageProgress {
  const mine = tasks.filter((task) => task.attempt === attempt && task.stageIndex === stageIndex);
  const failed = mine.find((task) => task.status === "failed" || task.status === "cancelled");
  if (failed !== undefined) return { kind: "failed", task: failed };
  return mine.every((task) => task.status === "ok") ? { kind: "complete" } : { kind: "open" };
}

/** The stage that an attempt is in: the latest that has tasks. Undefined before its first tasks. */
export function stageUnderWay(tasks: readonly TaskRow[], attempt: number): number | undefined {
  let latest: number | undefined;
  for (const task of tasks)
    if (task.attempt === attempt && (latest === undefined || task.stageIndex > latest)) latest = task.stageIndex;
  return latest;
}

/** By node name; results of tasks without a node are under "". */
export type Results = Readonly<Record<string, JsonObject>>;

/** What tasks gave: of one node, later stages win over earlier ones key by key. */
export function mergeResults(base: Results, tasks: readonly TaskRow[], attempt: number, fromStage: number): Results {
  const merged = new Map<string, JsonObject>(Object.entries(base));
  const done = tasks.filter(
    (task) => task.attempt === attempt && task.stageIndex >= fromStage && task.status === "ok" && task.result !== null,
  );
  for (const task of [...done].sort((a, b) => a.stageIndex - b.stageIndex)) {
    merged.set(task.node ?? "", { ...merged.get(task.node ?? ""), ...task.result });
  }
  return Object.fromEntries(merged);
}

/** Milliseconds before a task that failed `tries` times is offered again: doubling, at most a minute, spread by a quarter. */
export function backoffMs(taskId: string, tries: number, baseMs: number, capMs = 60_000): number {
  const plain = Math.min(capMs, baseMs * 2 ** Math.min(30, Math.max(0, tries - 1)));
  const spread = (hashText(`${taskId}/${tries}`) % 1000) / 1000;
  return Math.round(plain * (0.875 + 0.25 * spread));
}

function asNode(value: unknown): NodeSpec | undefined {
  const node = typeof value === "string" ? { name: value } : value;
  if (typeof node !== "object" || node === null || Array.isArray(node)) return undefined;
  const { name } = node as { name?: unknown };
  return typeof name === "string" && name.length >= 1 && name.length <= 255 ? { ...node, name } : undefined;
}
