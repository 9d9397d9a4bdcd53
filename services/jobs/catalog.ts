import { readFileSync } from "node:fs";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { FatalError } from "../../infra/errors.js";
import { builtInCatalog } from "./catalog-built-in.js";

/** A barrier of parallel tasks. */
export interface StageSpec {
  readonly name: string;
  /** Names of the tasks that each node (each service of each node; or the cluster, `once`) gets. */
  readonly tasks: readonly string[];
  readonly per: "node" | "service" | "once";
  /** How long one try of a task may take, milliseconds. */
  readonly timeoutMs: number;
  /** How often a task is tried in all before the job fails. */
  readonly retries: number;
  /** Whether a later attempt may begin behind this stage. Costs one record in the log per job. */
  readonly checkpoint: boolean;
}

export interface OperationSpec {
  readonly type: string;
  readonly stages: readonly StageSpec[];
}

const name = z
  .string("must be a text")
  .regex(/^[A-Za-z][A-Za-z0-9_.:-]{0,63}$/, "must be 1 to 64 of A-Za-z0-9_.:-, beginning with a letter");
const count = (from: number, to: number) =>
  z.int("must be a whole number").min(from, `must be at least ${from}`).max(to, `must be at most ${to}`);
const stageSchema = z.strictObject({
  name,
  tasks: z
    .array(name, "must be a list of task names")
    .min(1, "must name at least one task")
    .max(32, "must name at most 32 tasks")
    .optional(),
  per: z.enum(["node", "service", "once"], "must be node, service or once").default("node"),
  timeoutMs: count(1, 7 * 86_400_000).default(30 * 60_000),
  retries: count(1, 100).default(3),
  checkpoint: z.boolean("must be true or false").default(false),
});
const schema = z.strictObject({
  operations: z
    .record(
      name,
      z.strictObject({
        stages: z
          .array(stageSchema, "must be a list of stages")
          .min(1, "must have at least one stage")
          .max(64, "must have at most 64 stages"),
      }),
    )
    .refine((operations) => Object.keys(operations).length > 0, "must name at least one operation"),
});

/** The operation types and their stages, checked whole. */
export class Catalog {
  readonly operations: ReadonlyMap<string, OperationSpec>;

  constructor(operations: ReadonlyMap<string, OperationSpec>) {
    this.operations = operations;
  }

  /** What the product brings along. */
  static builtIn(): Catalog {
    return Catalog.of(builtInCatalog, "the built-in catalog");
  }

  /**
   * Reads a YAML or JSON file: it names all operations, none of the built-in ones is added.
   * @throws FatalError `bad_catalog` that names every fault at once.
   */
  static read(file: string): Catalog {
    return Catalog.parse(textOf(file), file);
  }

  /** @throws FatalError `bad_catalog`; `source` says in its message where the text came from. */
  static parse(text: string, source: string): Catalog {
    let value: unknown;
    try {
      value = parseYaml(text);
    } catch (error) {
      throw bad(source, [`is neither YAML nor JSON (${(error as Error).message.split("\n")[0]})`], error);
    }
    return Catalog.of(value, source);
  }

  static of(value: unknown, source: string): Catalog {
    const parsed = schema.safeParse(value);
    const faults = (parsed.error?.issues ?? []).map((issue) => {
      const at = issue.path.length === 0 ? "the catalog" : issue.path.join(".");
      if (issue.code === "unrecognized_keys") return `${at}: there is no such setting: ${issue.keys.join(", ")}`;
      return `${at}: ${issue.message}`;
    });
    faults.push(...repetitions(value));
    if (faults.length > 0) throw bad(source, faults);
    const operations = Object.entries(parsed.data?.operations ?? {}).map(
      ([type, { stages }]): [string, OperationSpec] => [
        type,
        { type, stages: stages.map((stage) => ({ ...stage, tasks: stage.tasks ?? [stage.name] })) },
      ],
    );
    return new Catalog(new Map(operations));
  }

  operation(type: string): OperationSpec | undefined {
    return this.operations.get(type);
  }

  stage(type: string, stage: string): StageSpec | undefined {
    return this.operations.get(type)?.stages.find((candidate) => candidate.name === stage);
  }
}

/** The catalog in use. A reload takes effect for stages that begin after it; a faulty file leaves the old one in use. */
export class CatalogFile {
  readonly #file: string | undefined;
  #current: Catalog;
  #text: string | undefined;

  /** Without a file: the built-in catalog. @throws FatalError `bad_catalog`. */
  constructor(file?: string) {
    this.#file = file;
    this.#current = Catalog.builtIn();
    this.reload();
  }

  get current(): Catalog {
    return this.#current;
  }

  /** The file as it was when it was taken into use. */
  get text(): string | undefined {
    return this.#text;
  }

  /** @throws FatalError `bad_catalog`, and the old catalog stays. */
  reload(): Catalog {
    if (this.#file === undefined) return this.#current;
    const text = textOf(this.#file);
    this.#current = Catalog.parse(text, this.#file);
    this.#text = text;
    return this.#current;
  }
}

function textOf(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw bad(file, [`can't be read (${(error as NodeJS.ErrnoException).code ?? "unknown error"})`], error);
  }
}

/** What is named twice; also in a catalog that has other faults, so that all are told at once. */
function repetitions(catalog: unknown): string[] {
  return Object.entries(fieldsOf(fieldsOf(catalog)["operations"])).flatMap(([type, operation]) => {
    const { stages } = fieldsOf(operation);
    const list = Array.isArray(stages) ? stages.map(fieldsOf) : [];
    return [
      ...repeated(list.map((stage) => stage["name"])).map(
        (twice) => `operations.${type}: has the stage ${twice} twice`,
      ),
      ...list.flatMap(({ tasks }, index) =>
        repeated(Array.isArray(tasks) ? tasks : []).map(
          (twice) => `operations.${type}.stages.${index}: has the task ${twice} twice`,
        ),
      ),
    ];
  });
}

const fieldsOf = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? { ...value } : {};

function repeated(names: readonly unknown[]): string[] {
  const texts = names.filter((name) => typeof name === "string");
  return [...new Set(texts.filter((name, index) => texts.indexOf(name) !== index))];
}

function bad(source: string, faults: readonly string[], cause?: unknown): FatalError {
  const list = faults.map((fault) => `  ${fault}`).join("\n");
  return new FatalError(
    "bad_catalog",
    `${source} has ${faults.length} fault(s):\n${list}`,
    "Mend them; services/jobs/README.md describes the file.",
    cause,
  );
}
