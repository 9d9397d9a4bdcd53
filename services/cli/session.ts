import path from "node:path";
import type { Command } from "commander";
import { checkout } from "../../infra/local/checkout.js";
import { LocalStack } from "../../infra/local/stack.js";
import { Client, type RequestOptions } from "./client.js";
import { UsageError } from "./failure.js";
import { printJson, progress, table, type Row } from "./output.js";

/** Options that every verb has. */
export interface CommonOptions {
  readonly json?: boolean;
  readonly url?: string;
  readonly token?: string;
  readonly dir?: string;
  readonly dryRun?: boolean;
}

export const defaultUrl = "http://127.0.0.1:8101";

/** One call of the program: where it goes, and how it speaks. */
export class Session {
  readonly json: boolean;
  readonly dryRun: boolean;
  readonly #options: CommonOptions;
  #stack: LocalStack | undefined | null = null;
  #client: Client | undefined;

  constructor(options: CommonOptions) {
    this.#options = options;
    this.json = options.json ?? false;
    this.dryRun = options.dryRun ?? false;
  }

  /** The folder of the local stack: named, or that of the checkout. */
  get dir(): string {
    const named = this.#options.dir ?? given("HOTHOT_DIR");
    return named === undefined ? path.join(checkout, ".hothot") : path.resolve(named);
  }

  /** The local stack, unless a server was named instead. @throws FatalError no_stack where a folder was named that has none */
  get stack(): LocalStack | undefined {
    if (this.#stack === null) {
      const elsewhere =
        this.#options.url !== undefined || (this.#options.dir === undefined && given("HOTHOT_URL") !== undefined);
      const named = this.#options.dir !== undefined;
      this.#stack = elsewhere ? undefined : named ? LocalStack.open(this.dir) : LocalStack.find(this.dir);
    }
    return this.#stack;
  }

  /** @throws FatalError no_stack */
  requireStack(): LocalStack {
    if (this.#options.url !== undefined)
      throw new UsageError("this works on a local stack: name its folder with --dir, not a --url");
    return LocalStack.open(this.dir);
  }

  get client(): Client {
    return (this.#client ??= new Client(this.#urls(), this.#token()));
  }

  /** A client of each datacenter, by name. */
  async datacenters(): Promise<Map<string, Client>> {
    const stack = this.stack;
    if (stack !== undefined)
      return new Map(stack.datacenters.map((site) => [site.name, this.client.at(stack.url(site.name))]));
    const { datacenters } = await this.client.get<{ datacenters: { name: string; url: string }[] }>("/v1/topology");
    return new Map(datacenters.map(({ name, url }) => [name, this.client.at(url)]));
  }

  /** Sends a request that changes something, or, for a dry run, only shows it. */
  async act(method: string, where: string, options: RequestOptions = {}): Promise<unknown> {
    if (this.dryRun) {
      this.show({ method, path: where, ...(options.body === undefined ? {} : { body: options.body }) });
      return undefined;
    }
    return (await this.client.request(method, where, options)).body;
  }

  /** The result: JSON, or for people rows of a table or `text`. */
  show(result: unknown, text?: string | readonly Row[]): void {
    if (this.json || text === undefined) printJson(result);
    else if (typeof text === "string") process.stdout.write(`${text}\n`);
    else process.stdout.write(table(text));
  }

  say(text: string): void {
    progress(text);
  }

  /** Who may see a local stack's folder may also use the administrator's token that it was started with. */
  #token(): string | undefined {
    return this.#options.token ?? given("HOTHOT_TOKEN") ?? this.stack?.file.env["HOTHOT_ADMIN_TOKEN"];
  }

  #urls(): string[] {
    if (this.#options.url !== undefined) return [this.#options.url];
    const stack = this.stack;
    if (stack !== undefined) return stack.datacenters.map((site) => stack.url(site.name));
    return [given("HOTHOT_URL") ?? defaultUrl];
  }
}

/** Adds the options that every verb has; `acts` adds --dry-run. */
export function common(command: Command, acts = false): Command {
  command
    .option("--json", "one JSON document on standard output")
    .option("--url <url>", "server to ask (also HOTHOT_URL)")
    .option("--token <token>", "bearer token (also HOTHOT_TOKEN)")
    .option("--dir <dir>", "folder of the local stack (default: .hothot of the checkout)");
  return acts ? command.option("--dry-run", "only show what would be done") : command;
}

/** Runs a verb's action with its session; what it returns is the exit code. */
export function verb<O extends object>(
  action: (session: Session, options: O & CommonOptions, args: string[]) => Promise<number | undefined>,
) {
  return async (...given: unknown[]): Promise<void> => {
    const command = given.at(-1) as Command;
    const options = command.opts<O & CommonOptions>();
    process.exitCode = (await action(new Session(options), options, command.processedArgs.flat() as string[])) ?? 0;
  };
}

function given(variable: string): string | undefined {
  const value = process.env[variable];
  return value === "" ? undefined : value;
}
