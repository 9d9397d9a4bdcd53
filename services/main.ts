import { systemRandom } from "../infra/random.js";
import { systemTime } from "../infra/clock.js";
import { readConfig, type Config } from "../infra/config.js";
import { asError, FatalError } from "../infra/errors.js";
import { createLogger, withoutSecrets, type Logger } from "../infra/logger.js";
import { openTracing } from "../infra/tracing.js";
import { readCommandLine, type CommandLine } from "./command-line.js";
import { serve } from "./serve.js";
import { initialise, planOf } from "./init.js";
import { newGeneration } from "./new-generation.js";

/** `serve` and `init`: what runs in production; the CLI starts it. */
async function main(argv: readonly string[]): Promise<void> {
  const line = readCommandLine(argv);
  if (line.help !== null) return void process.stdout.write(line.help);
  const { drainMs } = line;
  const environment = drainMs === undefined ? process.env : { ...process.env, HOTHOT_DRAIN_MS: drainMs };
  const config = readConfig(environment, line.config ?? process.env["HOTHOT_CONFIG"]);
  const log = createLogger(config.logLevel, { site: config.site, node: config.node }, line.json ? "stderr" : "stdout");
  if (line.verb === "init") return init(config, line, log);
  const tracing = await openTracing({ environment, resource: resourceOf(config), time: systemTime, log });
  await serve(config, log, systemTime, systemRandom, tracing).finally(() => tracing?.close());
}

async function init(config: Config, line: CommandLine, log: Logger): Promise<void> {
  const { witnesses } = line;
  const sites = line.sites ?? [config.site];
  const show = (what: object): void => {
    if (line.json) process.stdout.write(`${JSON.stringify(what)}\n`);
  };
  if (line.newGeneration) {
    const plan = { generation: config.logGeneration, sites, witnesses };
    if (line.dryRun) {
      log.info("a new log generation would begin with this datacenter's copy", plan);
      return show({ ...plan, created: false });
    }
    const tookOver = await newGeneration(config, { datacenters: sites, witnesses }, log);
    log.info("a new log generation begins with this datacenter's copy", { ...plan, tookOver });
    return show({ ...plan, created: true, tookOver });
  }
  const plan = planOf({ datacenters: sites, witnesses }, line.shards, line.partitions);
  const fields = { sites, witnesses, shards: plan.shards, partitions: plan.partitions };
  if (line.dryRun) {
    log.info("the group's log would be created, unless it is there already", fields);
    return show({ ...fields, created: false });
  }
  const created = await initialise(config, plan, log);
  log.info(created ? "the group's log was created" : "the group's log is there already", fields);
  show({ ...fields, created });
}

/** What the process calls itself in traces. */
const resourceOf = ({ group, site, node }: Config): Record<string, string> => ({
  "service.namespace": group,
  "service.instance.id": `${site}/${node}`,
  "hothot.site": site,
});

main(process.argv.slice(2)).then(
  () => process.exit(0),
  (error: unknown) => {
    if (error instanceof FatalError)
      process.stderr.write(`hothot: ${error.code}: ${withoutSecrets(error.message)}\n  ${error.wayOut}\n`);
    else process.stderr.write(`hothot: ${withoutSecrets(asError(error).stack ?? String(error))}\n`);
    process.exit(error instanceof FatalError && error.code === "wrong_usage" ? 2 : 1);
  },
);
