import { execFile } from "node:child_process";
import path from "node:path";
import { promisify } from "node:util";
import { FatalError } from "../errors.js";
import { mainProgram } from "./checkout.js";
import { nodeEnvironment } from "./hothot-node.js";
import type { StackFile } from "./stack-file.js";
import type { StackSite } from "./stack-site.js";

/**
 * Creates the log of a stack whose servers run, or begins its next generation (`hothot init`). May be repeated.
 * @throws FatalError init_failed
 */
export async function createLog(file: StackFile, datacenters: readonly StackSite[], dir: string): Promise<void> {
  const { shards, partitions, sites, primary } = file;
  const first = primary === undefined ? datacenters[0] : datacenters.find((site) => site.name === primary);
  if (first === undefined) return;
  const names = sites.filter((site) => site.kind === "datacenter").map((site) => site.name);
  const witness = sites.find((site) => site.kind === "witness")?.name;
  const args = [
    "init",
    "--sites",
    names.join(","),
    ...(witness === undefined ? [] : ["--witness", witness]),
    ...(primary === undefined ? ["--shards", String(shards)] : ["--new-generation"]),
  ];
  if (partitions !== null && primary === undefined) args.push("--partitions", String(partitions));
  try {
    const run = promisify(execFile)(process.execPath, ["--enable-source-maps", mainProgram, ...args], {
      cwd: "/",
      env: nodeEnvironment(first.settings(1)),
      timeout: 120_000,
    });
    run.child.stdin?.end();
    await run;
  } catch (error) {
    const { stdout = "", stderr = "" } = error as { stdout?: string; stderr?: string };
    const said = `${stdout}${stderr}`.trimEnd().split("\n").slice(-8).join("\n");
    throw new FatalError(
      "init_failed",
      `The group's log could not be created:\n${said}`,
      `See ${path.join(dir, "*", "nats.log")}; \`hothot up\` tries again.`,
      error,
    );
  }
}
