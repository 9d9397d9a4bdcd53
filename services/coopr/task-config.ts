import type { JsonObject } from "../../replication/entities.js";
import { readNodes, servicesOf, type NodeSpec } from "../jobs/plan.js";

/** What a task is about, as our own workers get it in `input`. */
export interface TaskInput {
  readonly cluster: { readonly id: string; readonly name: string; readonly spec: JsonObject };
  readonly node: NodeSpec | null;
  readonly service?: string;
  readonly results: Readonly<Record<string, JsonObject>>;
}

const software = new Set(["INSTALL", "CONFIGURE", "INITIALIZE", "START", "STOP", "REMOVE"]);
/** Names of the tasks that a provisioner's worker knows. */
export const knownTasks: ReadonlySet<string> = new Set([...software, "CREATE", "CONFIRM", "BOOTSTRAP", "DELETE"]);

/** Of a service that names none: it succeeds wherever a shell is. */
const noAction: JsonObject = { type: "shell", fields: { script: "true", args: "" } };

/**
 * `config` of a task: the node's settings over the cluster's, over defaults; then what its earlier tasks gave, key by key.
 * README.md shows where a cluster's spec says what.
 */
export function configOf(taskName: string, input: TaskInput): JsonObject {
  const { cluster, results } = input;
  const nodes = readNodes(cluster.spec).nodes ?? [];
  const node = input.node ?? { name: "" };
  const name = taskName.toUpperCase();
  const index = nodes.findIndex((each) => each.name === node.name);
  return {
    ...basics(input, node),
    nodenum: String(Math.max(0, index)),
    provider: providerOf(cluster.spec, node),
    cluster: objectOf(cluster.spec["config"]),
    nodes: Object.fromEntries(nodes.map((each) => [each.name, nodeView(input, each)])),
    services: servicesOf(node),
    automators: automatorsOf(cluster.spec, node),
    ...(software.has(name) ? { service: serviceOf(cluster.spec, node, input.service, name) } : {}),
    ...results[""],
    ...results[node.name],
  };
}

function basics({ cluster }: TaskInput, node: NodeSpec): JsonObject {
  const text = (key: string): string => {
    const value = node[key] ?? cluster.spec[key];
    return typeof value === "string" || typeof value === "number" ? String(value) : "";
  };
  const sshuser = text("sshuser");
  return {
    hostname: text("hostname") || hostnameOf(cluster, node),
    hardwaretype: text("hardwaretype"),
    imagetype: text("imagetype"),
    flavor: text("flavor"),
    image: text("image"),
    ...(sshuser === "" ? {} : { sshuser }),
  };
}

/** `<cluster's name>-<node's name>.<dnsSuffix>`, of letters, digits and "-". */
function hostnameOf(cluster: TaskInput["cluster"], node: NodeSpec): string {
  const label = [cluster.name, node.name]
    .map((part) => part.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-"))
    .join("-")
    .replaceAll(/^-+|-+$/g, "")
    .slice(-63)
    .replace(/^-+/, "");
  const suffix = cluster.spec["dnsSuffix"];
  return `${label || "node"}.${typeof suffix === "string" && suffix !== "" ? suffix : "local"}`;
}

function providerOf(spec: JsonObject, node: NodeSpec): JsonObject {
  const given = objectOf(node["provider"] ?? spec["provider"]);
  const text = (key: string): string => (typeof given[key] === "string" ? given[key] : "");
  return {
    ...given,
    name: text("name"),
    description: text("description"),
    providertype: text("providertype"),
    provisioner: objectOf(given["provisioner"]),
  };
}

/** What a node's neighbours may know of it. */
function nodeView(input: TaskInput, node: NodeSpec): JsonObject {
  const known = { ...basics(input, node), ...input.results[node.name] } as JsonObject;
  const { hostname, ipaddresses, hardwaretype, imagetype, flavor, image } = known;
  return {
    hostname,
    hardwaretype,
    imagetype,
    flavor,
    image,
    ...(ipaddresses === undefined ? {} : { ipaddresses }),
    services: servicesOf(node),
    automators: automatorsOf(input.cluster.spec, node),
  };
}

/** `spec.services.<name>.actions.<task>`; a task of the node as a whole gets its first service that has such an action. */
function serviceOf(spec: JsonObject, node: NodeSpec, service: string | undefined, task: string): JsonObject {
  const candidates = service === undefined ? servicesOf(node) : [service];
  for (const name of candidates) {
    const action = actionsOf(spec, name).get(task);
    if (action !== undefined) return { name, action };
  }
  return { name: candidates[0] ?? "", action: noAction };
}

/** Types of the actions of all the node's services: each has to be prepared once. */
function automatorsOf(spec: JsonObject, node: NodeSpec): string[] {
  const given = node["automators"] ?? spec["automators"];
  if (Array.isArray(given) && given.length > 0) return given.filter((each) => typeof each === "string");
  const types = servicesOf(node).flatMap((name) =>
    [...actionsOf(spec, name).values()].map((action) => String(action["type"])),
  );
  const found = [...new Set(types)].sort();
  return found.length > 0 ? found : ["shell"];
}

function actionsOf(spec: JsonObject, service: string): Map<string, JsonObject> {
  const actions = objectOf(objectOf(objectOf(spec["services"])[service])["actions"]);
  return new Map(
    Object.entries(actions).flatMap(([task, value]) => {
      const { type, fields } = objectOf(value);
      return typeof type === "string" ? [[task.toUpperCase(), { type, fields: objectOf(fields) }] as const] : [];
    }),
  );
}

function objectOf(value: unknown): JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
}
