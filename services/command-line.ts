import { parseArgs } from "node:util";
import { FatalError } from "../infra/errors.js";

/** What `serve` and `init` were told. */
export interface CommandLine {
  readonly verb: "serve" | "init";
  readonly help: string | null;
  readonly config: string | undefined;
  readonly drainMs: string | undefined;
  readonly sites: readonly string[] | undefined;
  readonly witnesses: readonly string[];
  readonly shards: number;
  readonly partitions: number | undefined;
  readonly newGeneration: boolean;
  readonly dryRun: boolean;
  readonly json: boolean;
}

const serveHelp = `Usage: hothot serve [options]

one process of one datacenter, or of a witness, in the foreground; its settings are HOTHOT_ variables (README.md lists them)

Options:
  --config <file>   settings in YAML or JSON; variables count more (also HOTHOT_CONFIG)
  --drain-ms <ms>   for requests under way when it is told to stop (also HOTHOT_DRAIN_MS)
  -h, --help        this text
`;

const initHelp = `Usage: hothot init [options]

create a group's log and first shard map, once; a second call changes nothing

Options:
  --sites <names>      datacenters, with commas between (default: the own one)
  --witness <names>    sites without data, that vote
  --shards <n>         fixed for life (default: 64)
  --partitions <n>     of the log, fixed for life (default: by the number of datacenters)
  --new-generation     begin a new log with this datacenter's copy, when a majority of the sites is gone for good
  --config <file>      settings in YAML or JSON; variables count more (also HOTHOT_CONFIG)
  --dry-run            only check the settings and show what would be created
  --json               one JSON document on standard output
  -h, --help           this text
`;

const text = { type: "string" } as const;
const yes = { type: "boolean" } as const;
const common = { config: text, help: { ...yes, short: "h" } } as const;
const optionsOf = {
  serve: { ...common, "drain-ms": text },
  init: {
    ...common,
    ...{ sites: text, dcs: text, witness: text, shards: text, partitions: text },
    ...{ "new-generation": yes, "dry-run": yes, json: yes },
  },
} as const;

/** @throws FatalError wrong_usage for an unknown verb or option, one without its value, a number that is none */
export function readCommandLine(argv: readonly string[]): CommandLine {
  const [verb, ...args] = argv;
  if (verb !== "serve" && verb !== "init")
    throw new FatalError("wrong_usage", `there is no verb '${verb ?? ""}'`, "Use `serve` or `init`.");
  const wayOut = `See \`hothot ${verb} --help\`.`;
  const given: Readonly<Record<string, unknown>> = (() => {
    try {
      return parseArgs({ args, options: optionsOf[verb], strict: true, allowPositionals: false }).values;
    } catch (error) {
      throw new FatalError("wrong_usage", (error as Error).message, wayOut);
    }
  })();
  const word = (name: string): string | undefined => {
    const value = given[name];
    if (value === "") throw new FatalError("wrong_usage", `--${name} has no value`, wayOut);
    return typeof value === "string" ? value : undefined;
  };
  const whole = (name: string): number | undefined => {
    const value = word(name);
    if (value !== undefined && !/^[1-9][0-9]{0,5}$/.test(value))
      throw new FatalError("wrong_usage", `--${name} must be a whole number from 1, got '${value}'`, wayOut);
    return value === undefined ? undefined : Number(value);
  };
  const names = (value: string | undefined): string[] | undefined => value?.split(",").filter((name) => name !== "");
  return {
    verb,
    help: given["help"] === true ? (verb === "serve" ? serveHelp : initHelp) : null,
    config: word("config"),
    drainMs: word("drain-ms"),
    sites: names(word("sites") ?? word("dcs")),
    witnesses: names(word("witness")) ?? [],
    shards: whole("shards") ?? 64,
    partitions: whole("partitions"),
    newGeneration: given["new-generation"] === true,
    dryRun: given["dry-run"] === true,
    json: given["json"] === true,
  };
}
