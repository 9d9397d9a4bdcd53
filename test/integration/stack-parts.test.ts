import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { LinkProxy } from "../../infra/local/link-proxy.js";
import { isAlive, launch, running, send, signalTree, startTimeOf, waitGone } from "../../infra/local/processes.js";
import { fits, PortPlan } from "../../infra/local/ports.js";
import { sharedMemoryOf, usersOf } from "../../infra/local/shared-memory.js";
import { silentLogger } from "../../infra/logger.js";
import { NoResponders, TooLarge } from "../../infra/nats/messaging.js";
import { NatsLink } from "../../infra/nats/nats-link.js";
import { pause, until } from "../../infra/local/wait.js";
import { endFolder, freshFolder } from "../harness/folder.js";
import { claimPorts, type PortRange } from "../harness/ports.js";
import { freshDatabase, startNats, startPostgres } from "../harness/servers.js";

describe("a link's proxy", () => {
  let echo: Server;
  let echoed: Socket;
  let ports: PortRange;
  let proxy: LinkProxy;
  const roundTrip = async (socket: Socket, text: string, ms: number): Promise<number | undefined> => {
    const started = performance.now();
    let heard = "";
    const listener = (chunk: Buffer): void => void (heard += chunk.toString());
    socket.on("data", listener).write(text);
    const found = await until(() => heard.includes(text), ms, 1);
    socket.off("data", listener);
    return found === undefined ? undefined : performance.now() - started;
  };

  before(async () => {
    echo = createServer((socket) => {
      echoed = socket;
      socket.on("error", () => undefined).pipe(socket);
    }).listen(0, "127.0.0.1");
    await once(echo, "listening");
    ports = await claimPorts();
    proxy = new LinkProxy({ listen: ports.base + 1, target: (echo.address() as AddressInfo).port, delayMs: 25 });
    await proxy.start();
  });
  after(async () => {
    proxy.stop();
    echo.close();
    await ports.release();
  });

  it("adds its delay to each way", async () => {
    const socket = connect(ports.base + 1, "127.0.0.1");
    await roundTrip(socket, "first", 5000);
    const ms = await roundTrip(socket, "second", 5000);
    assert.ok(ms !== undefined && ms >= 50 && ms < 4_000, `${ms} ms`);
    socket.destroy();
  });

  it("is silent while it is cut, and then delivers what was sent", async () => {
    const socket = connect(ports.base + 1, "127.0.0.1");
    await roundTrip(socket, "before", 5000);
    proxy.cut();
    const late = connect(ports.base + 1, "127.0.0.1");
    assert.equal(await roundTrip(socket, "during", 300), undefined);
    let heard = "";
    for (const each of [socket, late]) each.on("data", (chunk: Buffer) => void (heard += chunk.toString()));
    late.write("new");
    await pause(50);
    assert.equal(heard, "");
    assert.ok(!socket.destroyed && !late.destroyed, "nothing is closed by a cut");
    proxy.heal();
    assert.notEqual(await until(() => heard.includes("during") && heard.includes("new"), 5000), undefined, heard);
    socket.destroy();
    late.destroy();
  });

  it("can be silent in one direction only", async () => {
    const socket = connect(ports.base + 1, "127.0.0.1");
    await roundTrip(socket, "before", 5000);
    proxy.cut({ there: false, back: true });
    let heard = "";
    socket.on("data", (chunk: Buffer) => void (heard += chunk.toString()));
    const arrived = once(echoed, "data");
    socket.write("asked");
    assert.equal(String((await arrived)[0]), "asked");
    await pause(50);
    assert.equal(heard, "", "the answer is held");
    proxy.heal();
    assert.notEqual(await until(() => heard.includes("asked"), 5000), undefined, heard);
    socket.destroy();
  });

  it("carries much in order, and the end of a connection", async () => {
    const socket = connect(ports.base + 1, "127.0.0.1");
    const sent = Buffer.alloc(20_000_000, "0123456789abcdef!");
    const parts: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => void parts.push(chunk));
    socket.end(sent);
    await once(socket, "end");
    assert.ok(Buffer.concat(parts).equals(sent));
  });
});

describe("processes", () => {
  let dir = "";
  before(() => {
    dir = freshFolder("processes");
  });
  after(() => endFolder(dir));

  it("are known by number and start, so that a number used again is not mistaken", async () => {
    const pidFile = path.join(dir, "sleep.pid");
    const started = await launch({ command: "sleep", args: ["60"], logFile: path.join(dir, "sleep.log"), pidFile });
    assert.deepEqual(running(pidFile), started);
    writeFileSync(pidFile, JSON.stringify({ pid: started.pid, started: "another time" }));
    assert.equal(running(pidFile), undefined);
    assert.ok(!readdirSync(dir).includes("sleep.pid"), "the stale file is gone");
    assert.ok(isAlive(started), "and the stranger is left alone");
    signalTree(started, "SIGKILL");
    assert.ok(await waitGone(started, 5000));
  });

  it("are killed with all below them", async () => {
    const script =
      'const {spawn}=require("node:child_process");spawn("sleep",["60"],{detached:true});setInterval(()=>{},1e6)';
    const started = await launch({
      command: process.execPath,
      args: ["-e", script],
      logFile: path.join(dir, "tree.log"),
      pidFile: path.join(dir, "tree.pid"),
    });
    const { treeOf } = await import("../../infra/local/processes.js");
    const tree = await until(() => (treeOf(started).length === 2 ? treeOf(started) : undefined), 5000);
    assert.ok(tree !== undefined);
    signalTree(started, "SIGKILL");
    assert.notEqual(await until(() => tree.every((pid) => startTimeOf(pid) === undefined), 5000), undefined);
  });

  it("of a test that is killed are ended by its reaper, and its files removed", async () => {
    const program = `
      const { startNats } = await import(${JSON.stringify(path.join(import.meta.dirname, "../harness/servers.js"))});
      const nats = await startNats(1);
      const info = await (await fetch(nats.monitor("east") + "/varz")).json();
      console.log(JSON.stringify({ config: info.config_load_time, file: info.jetstream.config.store_dir, port: nats.monitor("east") }));
      setInterval(() => {}, 1e6);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let said = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (said += text));
    assert.notEqual(await until(() => said.includes("\n"), 30_000), undefined);
    const { port, file } = JSON.parse(said) as { port: string; file: string };
    send(child.pid ?? 0, "SIGKILL");
    const gone = await until(
      async () => {
        const answers = await fetch(port, { signal: AbortSignal.timeout(500) }).then(
          () => true,
          () => false,
        );
        return !answers && !exists(path.dirname(path.dirname(file)));
      },
      15_000,
      50,
    );
    assert.notEqual(gone, undefined, "server and folder are gone");
  });
});

describe("throw-away servers", () => {
  it("PostgreSQL comes back with what was committed after a kill, and leaves no shared memory when it does not", async () => {
    const postgres = await startPostgres();
    let memory: ReturnType<typeof sharedMemoryOf>;
    try {
      const first = await freshDatabase(postgres);
      for (let i = 0; i < 3; i++) {
        await postgres.kill();
        await postgres.restart();
      }
      const second = await freshDatabase(postgres);
      assert.notEqual(first, second);
      memory = sharedMemoryOf(postgres.data);
      assert.ok(memory !== undefined);
      // Undefined where there is no such list.
      const used = usersOf(memory);
      await postgres.kill();
      if (used !== undefined) assert.notEqual(usersOf(memory), undefined, "it stays when its server is killed");
    } finally {
      await postgres.stop();
    }
    assert.equal(usersOf(memory), undefined, "the system has some thousand pieces in all");
  });

  it("NATS servers form one cluster with a leader, also when one is killed and comes back", async () => {
    const nats = await startNats(3);
    try {
      await nats.site("west").kill();
      await nats.site("west").restart();
      const size = await until(
        async () => {
          const answer = await fetch(`${nats.monitor("west")}/routez`, { signal: AbortSignal.timeout(1000) });
          return (
            new Set(
              ((await answer.json()) as { routes: { remote_name: string }[] }).routes.map((route) => route.remote_name),
            ).size === 2
          );
        },
        15_000,
        50,
      );
      assert.equal(size, true);
    } finally {
      await nats.stop();
    }
  });
});

describe("a connection to NATS", () => {
  it("goes on through another server while its own is down, and returns to it with what was subscribed and asked", async () => {
    const nats = await startNats(2);
    const open = (sites: readonly string[], name: string): Promise<NatsLink> =>
      NatsLink.open({
        servers: sites.map((site) => nats.url(site)),
        name,
        waitMs: 5_000,
        log: silentLogger,
        pingMs: 200,
      });
    const link = await open(["east", "central"], "mover");
    const other = await open(["central"], "other");
    let near: NatsLink | undefined;
    try {
      const heard: number[] = [];
      const text = new TextEncoder();
      link.subscribe("count", (message) => heard.push(Number(new TextDecoder().decode(message.data))));
      link.subscribe("echo", (message) => message.respond(message.data), { queue: "q" });
      other.subscribe("slow", (message) => void setTimeout(() => message.respond(message.data), 3_500));
      await Promise.all([link.flush(), other.flush()]);
      assert.equal(link.serverName, "east");
      await nats.site("east").kill();
      assert.equal(await until(() => link.connected && link.serverName === "central", 10_000, 20), true);
      let sent = 0;
      const sending = setInterval(() => other.publish("count", text.encode(String(sent++))), 2);
      // Asked on the connection that is left, and answered after that.
      const slow = link.request("slow", text.encode("late"), 8_000);
      await nats.site("east").restart();
      assert.equal(await until(() => link.serverName === "east", 15_000, 5), true);
      assert.equal(new TextDecoder().decode(await slow), "late");
      assert.equal(await until(() => heard.at(-1) === sent - 1, 5_000, 1), true);
      clearInterval(sending);
      assert.equal(new Set(heard).size, heard.length, "nothing was heard twice");
      assert.deepEqual(
        heard,
        heard.toSorted((a, b) => a - b),
      );
      const echoed = await other.request("echo", text.encode("here"), 2_000);
      assert.equal(new TextDecoder().decode(echoed), "here");

      // What no message holds was not sent.
      const large = new Uint8Array(1_048_577);
      await assert.rejects(other.request("echo", large, 5_000), TooLarge);
      let respond: ((data: Uint8Array) => void) | undefined;
      const ends = link.subscribe("ends", (message) => {
        if (message.data.length === 0) respond = (data) => message.respond(data);
        else message.respond(message.data);
      });
      await link.flush();
      const asker = (near = await open(["east"], "near"));
      const answered = asker.request("ends", new Uint8Array(0), 5_000);
      await until(() => respond !== undefined, 5_000, 1);
      assert.throws(() => respond?.(large), TooLarge);
      respond?.(text.encode("small"));
      assert.equal(new TextDecoder().decode(await answered), "small");

      // What its server had got for a subscription that drains is heard.
      const asked = Array.from({ length: 200 }, (_, i) => asker.request("ends", new Uint8Array([i]), 5_000));
      await asker.flush();
      await ends.drain();
      assert.deepEqual(
        (await Promise.all(asked)).map(([first]) => first),
        asked.map((_, i) => i),
      );
      await assert.rejects(asker.request("ends", new Uint8Array([1]), 5_000), NoResponders);
    } finally {
      await Promise.all([link.close(), other.close(), near?.close()]);
      await nats.stop();
    }
  });
});

describe("the plan of ports", () => {
  it("gives no port twice, within its hundred", () => {
    for (const [sites, nodes, proxied] of [
      [9, 2, 5],
      [9, 3, 4],
      [9, 5, 1],
      [5, 2, 5],
    ] as const) {
      assert.ok(fits(nodes, proxied));
      const plan = new PortPlan(8100);
      const ports = [plan.range, plan.control, plan.command];
      for (let slot = 1; slot <= sites; slot++) {
        ports.push(
          plan.postgres(slot),
          plan.natsClient(slot),
          plan.natsCluster(slot),
          plan.natsMonitor(slot),
          plan.standby(slot),
        );
        for (let node = 1; node <= nodes; node++) ports.push(plan.http(slot, node));
      }
      for (let b = 1; b < proxied; b++) for (let a = 0; a < b; a++) ports.push(...Object.values(plan.link(a, b)));
      assert.equal(new Set(ports).size, ports.length);
      assert.ok(ports.every((port) => port >= 8100 && port < 8200));
    }
    assert.ok(!fits(3, 5) && !fits(5, 2));
  });
});

function exists(folder: string): boolean {
  try {
    readdirSync(folder);
    return true;
  } catch {
    return false;
  }
}
