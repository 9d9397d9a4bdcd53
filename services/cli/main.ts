import { Command, CommanderError } from "commander";
import { FatalError, asError } from "../../infra/errors.js";
import { addClusters } from "./clusters.js";
import { addDc } from "./dc.js";
import { addDivergence } from "./divergence.js";
import { addDown } from "./down.js";
import { Failure, UsageError } from "./failure.js";
import { addFailover } from "./failover.js";
import { addHistory, addLag, addShards } from "./shards.js";
import { addJobs } from "./jobs.js";
import { addMoves } from "./moves.js";
import { endProgress, printJson } from "./output.js";
import { addPrograms } from "./programs.js";
import { addSimulate } from "./simulate.js";
import { addStatus } from "./status.js";
import { addAudit, addTenant, addToken } from "./token.js";
import { addUp } from "./up.js";
import { addRepair, addVerify } from "./verify.js";

/** The command-line program. Sets the exit code: 0 done; 1 refused or failed, with the error's code on standard error; 2 wrong usage. */
export async function main(args: readonly string[]): Promise<void> {
  try {
    await buildProgram().parseAsync([...args], { from: "user" });
  } catch (error) {
    endProgress();
    process.exitCode = report(error, args.includes("--json"));
  } finally {
    endProgress();
  }
}

export function buildProgram(): Command {
  const program = new Command("hothot").description("Sharded hot-hot replication between datacenters.").exitOverride();
  program.configureHelp({ showGlobalOptions: true }).showHelpAfterError("(see --help)");
  const add = [
    addUp,
    addDown,
    addStatus,
    addShards,
    addLag,
    addHistory,
    addClusters,
    addJobs,
    addMoves,
    addFailover,
    addVerify,
    addRepair,
    addDivergence,
    addDc,
    addToken,
    addTenant,
    addAudit,
    addSimulate,
    addPrograms,
  ];
  for (const each of add) each(program);
  return program;
}

function report(error: unknown, json: boolean): number {
  const wrongUsage = (detail: string): 2 => {
    if (json) printJson({ code: "wrong_usage", detail });
    return 2;
  };
  if (error instanceof CommanderError) {
    // Help that was asked for is an answer; commander has printed whatever there is to say.
    return error.exitCode === 0 ? 0 : wrongUsage(error.message);
  }
  if (error instanceof UsageError) {
    process.stderr.write(`hothot: usage: ${error.message}\n`);
    return wrongUsage(error.message);
  }
  if (error instanceof Failure || error instanceof FatalError) {
    process.stderr.write(
      `hothot: ${error.code}: ${error.message}\n${error.wayOut === undefined ? "" : `  ${error.wayOut}\n`}`,
    );
    const problem = error instanceof Failure ? error.problem : undefined;
    if (json) printJson(problem ?? { code: error.code, detail: error.message });
    return error instanceof FatalError && error.code === "bad_option" ? 2 : 1;
  }
  const unexpected = asError(error);
  process.stderr.write(`hothot: internal: ${unexpected.stack ?? unexpected.message}\n`);
  if (json) printJson({ code: "internal", detail: unexpected.message });
  return 1;
}
