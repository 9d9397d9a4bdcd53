import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Command } from "commander";
import { checkout, mainProgram } from "../../infra/local/checkout.js";
import { Failure } from "./failure.js";

/** Verbs with a program and options of their own. */
export function addPrograms(program: Command): void {
  passThrough(
    program,
    "demo",
    "the failover story: three datacenters under load, one is killed, and returns",
    async (args) => {
      const file = built("services/demo/main.js");
      const demo = (await import(pathToFileURL(file).href)) as { run(args: string[]): Promise<number> };
      return demo.run(args);
    },
  );
  passThrough(program, "bench", "benchmarks", (args) => child(built("test/bench/main.js"), args));
  for (const [name, description] of [
    ["serve", "one process of one datacenter, or of a witness, in the foreground"],
    ["init", "create a group's log and first shard map, once"],
  ] as const) {
    passThrough(program, name, description, async (args) => {
      // In this process: what supervises it must reach it with its signals.
      process.argv = [process.execPath, mainProgram, name, ...args];
      await import(pathToFileURL(built("services/http/program.js")).href);
      return undefined;
    });
  }
}

function passThrough(
  program: Command,
  name: string,
  description: string,
  run: (args: string[]) => Promise<number | undefined>,
): void {
  program
    .command(name)
    .description(description)
    .argument("[options...]", "see --help")
    .helpOption(false)
    .allowUnknownOption()
    .action(async (args: string[]) => {
      const code = await run(args);
      if (code !== undefined) process.exitCode = code;
    });
}

function built(file: string): string {
  const full = path.join(checkout, ".build", file);
  if (!existsSync(full)) throw new Failure("not_available", `${file.replace(/\.js$/, "")} is not there yet.`);
  return full;
}

function child(file: string, args: readonly string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const started = spawn(process.execPath, ["--enable-source-maps", file, ...args], { stdio: "inherit" });
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => started.kill(signal));
    started.once("error", reject);
    started.once("exit", (code) => resolve(code ?? 1));
  });
}
