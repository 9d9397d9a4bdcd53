// Finds a nats-server, or fetches one from Debian's packages into .cache/bin. Plain JavaScript: it runs before anything is installed.
import { execFile, execFileSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { SetupError } from "./setup-error.mjs";

const run = promisify(execFile);
const oldest = [2, 11];

/** Makes sure that there is a nats-server of 2.11 or newer: named, in the cache, on the PATH, or fetched. Resolves to its path. */
export async function setUpNats(root, say) {
  const named = process.env.HOTHOT_NATS_SERVER;
  if (named) {
    const why = unfit(named);
    if (why)
      throw new SetupError(
        `HOTHOT_NATS_SERVER names ${named}, which ${why}.`,
        "Name a nats-server of 2.11 or newer, or unset it.",
      );
    return named;
  }
  const cached = path.join(root, ".cache", "bin", "nats-server");
  if (existsSync(cached) && !unfit(cached)) return cached;
  const onPath = (process.env.PATH ?? "")
    .split(path.delimiter)
    .map((folder) => path.join(folder, "nats-server"))
    .find((file) => existsSync(file) && !unfit(file));
  if (onPath) return onPath;
  say("fetching nats-server ...");
  await fetchFromDebian(cached);
  return cached;
}

function unfit(file) {
  try {
    const text = execFileSync(file, ["--version"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    const [major = 0, minor = 0] = (/v?(\d+)\.(\d+)/.exec(text) ?? []).slice(1).map(Number);
    return major > oldest[0] || (major === oldest[0] && minor >= oldest[1]) ? undefined : `is too old (${text.trim()})`;
  } catch {
    return "can't be run";
  }
}

/** By a package list and a cache of our own, so that neither root is needed nor the system is touched. */
async function fetchFromDebian(target) {
  const ways =
    "Ways to get one: put a nats-server of 2.11 or newer on the PATH, or name it with HOTHOT_NATS_SERVER (https://nats.io/download has it for every system).";
  if (process.platform !== "linux" || !has("apt-get") || !has("dpkg")) {
    throw new SetupError("There is no nats-server, and without apt it can't be fetched.", ways);
  }
  let work;
  try {
    mkdirSync(path.dirname(target), { recursive: true });
    work = mkdtempSync(path.join(os.tmpdir(), "hothot-nats-"));
  } catch (error) {
    throw new SetupError(`${path.dirname(target)} can't be written (${error.code}).`, `Make it writable. ${ways}`);
  }
  try {
    // As root, apt downloads as its own user, who must be able to enter the folder.
    chmodSync(work, 0o755);
    for (const folder of ["lists/partial", "cache/archives/partial", "out"])
      mkdirSync(path.join(work, folder), { recursive: true });
    const options = [
      `-oDir::Etc::sourcelist=${work}/source.list`,
      "-oDir::Etc::sourceparts=/dev/null",
      `-oDir::State::lists=${work}/lists`,
      `-oDir::Cache=${work}/cache`,
      "-oAcquire::Retries=2",
      "-oAPT::Sandbox::User=root",
    ];
    const failures = [];
    for (const suite of ["sid", "testing"]) {
      try {
        const mirror = (await run("apt-get", ["indextargets", "--format", "$(REPO_URI)"])).stdout.split("\n")[0];
        if (!mirror) throw new Error("apt knows no mirror");
        const key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        writeFileSync(
          path.join(work, "source.list"),
          `deb ${existsSync(key) ? `[signed-by=${key}] ` : ""}${mirror} ${suite} main\n`,
        );
        await run("apt-get", [...options, "update"], { timeout: 60_000 });
        await run("apt-get", [...options, "download", "nats-server"], { cwd: path.join(work, "out"), timeout: 60_000 });
        const [archive] = readdirSync(path.join(work, "out")).filter((name) => name.endsWith(".deb"));
        await run("dpkg", ["-x", path.join(work, "out", archive), path.join(work, "files")]);
        const binary = ["usr/sbin", "usr/bin"]
          .map((folder) => path.join(work, "files", folder, "nats-server"))
          .find((file) => existsSync(file));
        if (!binary) throw new Error("the package holds no nats-server");
        const why = unfit(binary);
        if (why) throw new Error(`the fetched nats-server ${why}`);
        const fresh = `${target}.${process.pid}`;
        copyFileSync(binary, fresh);
        chmodSync(fresh, 0o755);
        renameSync(fresh, target);
        return;
      } catch (error) {
        failures.push(
          `${suite}: ${String(error.stderr || error.message)
            .trim()
            .split("\n")
            .slice(-2)
            .join(" ")}`,
        );
        rmSync(path.join(work, "out"), { recursive: true, force: true });
        mkdirSync(path.join(work, "out"));
      }
    }
    throw new SetupError(
      `nats-server could not be fetched from Debian's packages (${failures.join("; ")}).`,
      `Is there a network? ${ways}`,
    );
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function has(program) {
  return (process.env.PATH ?? "").split(path.delimiter).some((folder) => existsSync(path.join(folder, program)));
}
