import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { once } from "node:events";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { checkout } from "../../infra/local/checkout.js";
import { isAlive, startTimeOf, type ProcessId } from "../../infra/local/processes.js";
import { until, pause } from "../../infra/local/wait.js";
import { LocalStack } from "../../infra/local/stack.js";
import { endFolder } from "../harness/folder.js";
import { freshStackFolder, runCli, type CliResult } from "../harness/stack.js";

interface Status {
  readonly datacenters: readonly {
    readonly name: string;
    readonly url: string;
    readonly state: string;
    readonly shardsOwned: number;
    readonly pids: Record<string, number[]>;
  }[];
  readonly shards: number;
}

/** One stack's life, told by the commands that a user types. The steps build on each other. */
describe("the local stack", () => {
  let dir = "";
  let portBase = 0;
  let release: () => Promise<void>;
  const hothot = (...args: string[]): Promise<CliResult> => runCli([...args, "--dir", dir]);
  const ok = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await hothot(...args);
    assert.equal(code, 0, `${args.join(" ")}: ${stderr}${stdout}`);
    return stdout;
  };
  const refused = async (expected: string, ...args: string[]): Promise<string> => {
    const { code, stderr } = await hothot(...args);
    assert.equal(code, 1, stderr);
    assert.match(stderr, new RegExp(`^hothot: ${expected}: `, "m"));
    return stderr;
  };
  const status = async (): Promise<Status> => JSON.parse(await ok("status", "--json")) as Status;
  const states = async (): Promise<string> =>
    (await status()).datacenters.map(({ name, state }) => `${name} ${state}`).join(", ");
  const serving = async (): Promise<void> => {
    assert.notEqual(
      await until(async () => (await states()) === "east serving, central serving, west serving", 30_000, 200),
      undefined,
      await states(),
    );
  };

  before(async () => {
    ({ dir, portBase, release } = await freshStackFolder());
  });
  after(async () => {
    await endFolder(dir);
    await release();
  });

  it("starts three datacenters, and prints where they are", async () => {
    const started = performance.now();
    const table = await ok("up", "--detach", "--rtt", "0", "--port-base", String(portBase));
    assert.ok(performance.now() - started < 90_000);
    for (const [i, name] of ["east", "central", "west"].entries())
      assert.match(table, new RegExp(`${name} +http://127\\.0\\.0\\.1:${portBase + i + 1} +serving`));
    const { datacenters, shards } = await status();
    assert.equal(shards, 64);
    assert.deepEqual(datacenters.map(({ shardsOwned }) => shardsOwned).sort(), [21, 21, 22]);
    for (const { pids } of datacenters) {
      assert.ok((pids["node"]?.length ?? 0) >= 1 && (pids["nats"]?.length ?? 0) === 1);
      assert.ok((pids["postgres"]?.length ?? 0) > 1, "PostgreSQL's children are among its pids");
    }
    await ok("clusters", "put", "kept", "--data", '{"name":"kept","spec":{"n":1}}', "--durability", "replicated");
  });

  it("keeps its passwords to itself", () => {
    for (const file of ["stack.json", "links.json", "east/nats/nats.conf"])
      assert.equal(statSync(path.join(dir, file)).mode & 0o077, 0, file);
  });

  it("says that it is running when it is started again", async () => {
    const { code, stderr } = await hothot("up", "--detach");
    assert.equal(code, 0);
    assert.match(stderr, /running already/);
  });

  it("refuses other datacenters, and other options while it runs", async () => {
    assert.match(await refused("other_stack", "up", "--detach", "--dcs", "a,b,c"), /--dir/);
    await refused("other_stack", "up", "--detach", "--shards", "8");
    assert.match(await refused("stack_running", "up", "--detach", "--nodes", "2"), /hothot down/);
  });

  it("kills all processes of a site at once, and starts them again", async () => {
    const before = (await status()).datacenters.find(({ name }) => name === "west");
    await ok("simulate", "crash", "west");
    for (const pid of Object.values(before?.pids ?? {}).flat())
      assert.equal(startTimeOf(pid), undefined, `process ${pid} is dead`);
    assert.notEqual(
      await until(async () => /west (dead|suspect)/.test(await states()), 10_000, 200),
      undefined,
      await states(),
    );
    await ok("simulate", "restart", "west");
    await serving();
  });

  it("stops all processes of a site, and lets them go on", async () => {
    const pids = Object.values((await status()).datacenters.find(({ name }) => name === "central")?.pids ?? {}).flat();
    await ok("simulate", "pause", "central");
    for (const pid of pids) assert.equal(stateOf(pid), "T");
    await ok("simulate", "resume", "central");
    assert.ok(pids.filter((pid) => startTimeOf(pid) !== undefined).every((pid) => stateOf(pid) !== "T"));
    await serving();
  });

  it("cuts a link for both sides, and heals it", async () => {
    const stack = LocalStack.open(dir);
    const routes = async (site: string): Promise<string[]> => {
      const answer = await fetch(`${stack.site(site).nats.monitorUrl}/routez`, { signal: AbortSignal.timeout(2000) });
      return ((await answer.json()) as { routes: { remote_name: string }[] }).routes.map((route) => route.remote_name);
    };
    await ok("simulate", "cut", "--link", "east:west");
    assert.notEqual(
      await until(
        async () => !(await routes("east")).includes("west") && !(await routes("west")).includes("east"),
        15_000,
        100,
      ),
      undefined,
    );
    assert.ok((await routes("central")).includes("east") && (await routes("central")).includes("west"));
    // Long enough for a route that goes round the cut, if gossip led to one.
    for (const end = performance.now() + 3000; performance.now() < end; await pause(100))
      assert.ok(!(await routes("east")).includes("west"));
    await ok("simulate", "heal", "--link", "east:west");
    assert.notEqual(await until(async () => (await routes("east")).includes("west"), 15_000, 100), undefined);
    await serving();
  });

  it("names unknown sites and links", async () => {
    assert.match(await refused("no_such_site", "simulate", "crash", "north"), /east, central, west/);
    await refused("no_such_site", "simulate", "cut", "--link", "east:north");
  });

  it("stops, and starts again on its data; a stale pid file does not mislead it", async () => {
    const living = LocalStack.open(dir).sites.flatMap((site) => site.processes());
    await ok("down");
    assert.deepEqual(living.filter(isAlive), []);
    assert.equal(await ok("down"), "nothing was running\n");
    // As after a power failure: the number now belongs to somebody else, this test for one.
    writeFileSync(
      path.join(dir, "east", "n1.pid"),
      JSON.stringify({ pid: process.pid, started: "earlier" } satisfies ProcessId),
    );
    writeFileSync(path.join(dir, "west", "postgres.pid"), "half a fi");
    await ok("up", "--detach");
    assert.match(await ok("clusters", "get", "kept"), /"n": 1/);
  });

  it("names the port that is taken, and the way out", async () => {
    await ok("down");
    const other = createServer().listen(portBase + 12, "127.0.0.1");
    await once(other, "listening");
    const said = await refused("port_in_use", "up", "--detach");
    assert.match(said, new RegExp(`${portBase + 12} \\(PostgreSQL of central\\)`));
    assert.match(said, /--port-base/);
    await new Promise((resolve) => other.close(resolve));
  });

  it("in the foreground takes over what an earlier run left, and stops it at the end", async () => {
    await ok("up", "--detach");
    await ok("simulate", "crash", "east");
    const child = spawn(process.execPath, [path.join(checkout, "infra/local/hothot.mjs"), "up", "--dir", dir], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
    child.stdout.resume();
    assert.notEqual(await until(() => said.includes("Ctrl-C") || child.exitCode !== null, 60_000), undefined, said);
    assert.equal(child.exitCode, null, said);
    const living = LocalStack.open(dir).sites.map((site) => site.processes());
    assert.ok(living.every((processes) => processes.length === 3));
    child.kill("SIGINT");
    const [code] = (await once(child, "exit")) as [number];
    assert.equal(code, 0, said);
    assert.deepEqual(living.flat().filter(isAlive), []);
  });

  it("stops what it has started when it is interrupted before all of it runs", async () => {
    const child = spawn(process.execPath, [path.join(checkout, "infra/local/hothot.mjs"), "up", "--dir", dir], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
    assert.notEqual(await until(() => said.includes("starting hothot"), 60_000), undefined, said);
    const exited = once(child, "exit");
    child.kill("SIGINT");
    assert.deepEqual((await exited).slice(0, 1), [1], said);
    assert.deepEqual(
      LocalStack.open(dir).sites.flatMap((site) => site.processes()),
      [],
    );
  });
});

function stateOf(pid: number): string {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  return text[text.lastIndexOf(")") + 2] ?? "";
}
