import { systemRandom } from "../infra/random.js";
import { systemTime } from "../infra/clock.js";
import { readConfig, type Config } from "../infra/config.js";
import { asError, FatalError } from "../infra/errors.js";
import { createLogger, withoutSecrets } from "../infra/logger.js";
import { openTracing } from "../infra/tracing.js";
import { serve } from "./serve.js";
import { initialise, planOf } from "./init.js";
import { newGeneration } from "./new-generation.js";

/** `serve` and `init`: what runs in production; the CLI starts it. */
async function main(argv: readonly string[]): Promise<void> {
  const [verb, ...rest] = argv;
  const option = (name: string): string | undefined => {
    const at = rest.indexOf(`--${name}`);
    return at < 0 ? undefined : rest[at + 1];
  };
  const drainMs = option("drain-ms");
  const environment = drainMs === undefined ? process.env : { ...process.env, HOTHOT_DRAIN_MS: drainMs };
  const config = readConfig(environment, option("config") ?? process.env["HOTHOT_CONFIG"]);
  const log = createLogger(config.logLevel, { site: config.site, node: config.node });
  if (verb === "serve") {
    const tracing = await openTracing({ environment, resource: resourceOf(config), time: systemTime, log });
    await serve(config, log, systemTime, systemRandom, tracing).finally(() => tracing?.close());
  } else if (verb === "init") {
    const sites = (option("sites") ?? option("dcs") ?? config.site).split(",").filter((name) => name !== "");
    const witnesses = (option("witness") ?? "").split(",").filter((name) => name !== "");
    const whole = (name: string, fallback: number | undefined): number | undefined => {
      const text = option(name);
      if (text === undefined) return fallback;
      if (!/^[1-9][0-9]{0,5}$/.test(text))
        throw new FatalError(
          "wrong_usage",
          `--${name} must be a whole number from 1, got '${text}'`,
          "See `hothot init --help`.",
        );
      return Number(text);
    };
    if (rest.includes("--new-generation")) {
      const lost = await newGeneration(config, { datacenters: sites, witnesses }, log);
      log.info("a new log generation begins with this datacenter's copy", {
        generation: config.logGeneration,
        sites,
        witnesses,
        tookOver: lost,
      });
      return;
    }
    const plan = planOf({ datacenters: sites, witnesses }, whole("shards", 64) ?? 64, whole("partitions", undefined));
    const created = await initialise(config, plan, log);
    log.info(created ? "the group's log was created" : "the group's log is there already", {
      sites,
      witnesses,
      shards: plan.shards,
      partitions: plan.partitions,
    });
  } else throw new FatalError("wrong_usage", `there is no verb '${verb ?? ""}'`, "Use `serve` or `init`.");
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
