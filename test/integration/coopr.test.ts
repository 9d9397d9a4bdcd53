import assert from "node:assert/strict";
import { after as afterAll, before, describe, it } from "node:test";
import { FakeProvisioner, type ProvisionerOptions, type ProvisionerTask } from "../harness/provisioner.js";
import { startStack, type TestStack } from "../harness/stack.js";
import { allEqual, allServe, at, body, idsOf, problem, send, settleMs, shardMap, type Json } from "./support.js";

const silentMs = 4_000;
/** A create whose software stages are per service, as Coopr plans them. */
const spec = {
  provider: {
    name: "fake",
    description: "a provider for tests",
    providertype: "fake",
    provisioner: { region: "north", auth: { user: "u" } },
  },
  imagetype: "ubuntu12",
  hardwaretype: "small",
  dnsSuffix: "example",
  config: { hdfs: { replication: 2 } },
  nodes: [
    { name: "n1", services: ["namenode", "base"], flavor: "6", image: "img-6" },
    { name: "n2", services: ["base"], hardwaretype: "large" },
  ],
  services: {
    base: { actions: { install: { type: "shell", fields: { script: "setup.sh", args: "-v" } } } },
    namenode: { actions: { CONFIGURE: { type: "chef-solo", fields: { run_list: "recipe[x]" } } } },
  },
};
const stages = ["CREATE", "CONFIRM", "BOOTSTRAP", "INSTALL", "CONFIGURE", "INITIALIZE", "START"];

/** What plug-ins of the real one give: a provider on CREATE and CONFIRM, nothing but a status after that. */
function plugin(task: ProvisionerTask): Json {
  const name = task.taskName.toLowerCase();
  if (name === "create")
    return { status: 0, result: { providerid: `vm-${task.nodeId}`, "ssh-auth": { user: "root", password: "p" } } };
  if (name === "confirm")
    return { status: "0", hostname: `real-${task.nodeId}`, ipaddresses: { access_v4: "10.0.0.7" }, result: {} };
  return { status: 0, stdout: `${name} done\u0000`, stderr: "" };
}

describe("provisioners of Coopr", { timeout: 240_000 }, () => {
  let stack: TestStack;
  const running: FakeProvisioner[] = [];
  before(async () => {
    stack = await startStack({
      steady: true,
      coopr: true,
      worker: false,
      env: { HOTHOT_AUTOMATIC_FAILBACK: "false", HOTHOT_COOPR_SILENT_MS: String(silentMs) },
    });
  });
  afterAll(async () => {
    await Promise.all(running.map((provisioner) => provisioner.kill()));
    await stack?.stop();
  });

  const provisioner = (id: string, dc: string, more: Partial<ProvisionerOptions> = {}): FakeProvisioner => {
    const made = new FakeProvisioner({ id, server: () => stack.cooprUrl(dc), plugin, ...more });
    running.push(made);
    return made;
  };
  const ended = async (made: FakeProvisioner): Promise<void> => {
    running.splice(running.indexOf(made), 1);
    await made.kill();
  };
  const on = (dc: string, method: string, where: string, data?: unknown, headers?: Record<string, string>) =>
    send(stack, dc, method, where, data, headers);
  const start = async (dc: string, id: string, type = "create", of: Json = spec): Promise<string> => {
    const made = await on(dc, "PUT", `/v1/clusters/${id}`, { name: id, spec: of });
    assert.ok(made.status < 300, made.text);
    return String(body(await on(dc, "POST", `/v1/clusters/${id}/operations`, { type }), 202)["id"]);
  };
  const ends = (dc: string, job: string, ms = settleMs): Promise<Json> =>
    stack.until(
      async () => {
        const found = body(await on(dc, "GET", `/v1/jobs/${job}`), 200);
        return ["complete", "failed", "cancelled"].includes(String(found["status"])) && found;
      },
      ms,
      `job ${job} ends`,
    );
  const tasksOf = async (dc: string, job: string): Promise<Json[]> =>
    body<{ items: Json[] }>(await on(dc, "GET", `/v1/jobs/${job}/tasks`), 200).items;
  const owned = async (dc: string, prefix: string, count = 1): Promise<string[]> =>
    idsOf(await shardMap(stack, dc), dc, prefix, count);

  it("registers, is told of its tenant at the second try, works a create through, and a delete", async () => {
    const [id = ""] = await owned("east", "whole");
    const mine = provisioner("master-one-1", "east");
    mine.refuseCalls = 1;
    assert.equal(await mine.start(), 200);
    const job = await start("west", id);
    const done = await ends("west", job);
    assert.equal(done["status"], "complete", String(done["error"]));
    assert.deepEqual(mine.called.slice(0, 2), ["PUT superadmin 2", "PUT superadmin 2"]);
    assert.ok(mine.finished.every(({ status }) => status === 200));
    assert.deepEqual(
      mine.taken.map(({ taskName }) => taskName),
      stages.flatMap((stage) => [stage, stage]),
    );
    for (const task of mine.taken) {
      assert.deepEqual(Object.keys(task).sort(), ["clusterId", "config", "jobId", "nodeId", "taskId", "taskName"]);
      assert.match(task.taskId, /^[A-Za-z0-9.-]+$/);
      assert.equal(task.jobId, job);
      assert.equal(task.clusterId, id);
      const { config } = task;
      const large = task.nodeId === "n2";
      assert.deepEqual(config["provider"], spec.provider);
      assert.equal(config["imagetype"], "ubuntu12");
      assert.equal(config["hardwaretype"], large ? "large" : "small");
      assert.equal(config["flavor"], large ? "" : "6");
      assert.equal(config["image"], large ? "" : "img-6");
      assert.deepEqual(config["cluster"], spec.config);
      assert.deepEqual(config["services"], large ? ["base"] : ["namenode", "base"]);
      const stage = stages.indexOf(task.taskName);
      // What CREATE and CONFIRM gave reaches all that follow.
      assert.equal(config["providerid"], stage > 0 ? `vm-${task.nodeId}` : undefined);
      assert.deepEqual(config["ssh-auth"], stage > 0 ? { user: "root", password: "p" } : undefined);
      assert.deepEqual(config["ipaddresses"], stage > 1 ? { access_v4: "10.0.0.7" } : undefined);
      assert.equal(config["hostname"], stage > 1 ? `real-${task.nodeId}` : `${id}-${task.nodeId}.example`);
      const nodes = config["nodes"] as Record<string, Json>;
      assert.deepEqual(Object.keys(nodes), ["n1", "n2"]);
      if (stage > 1) assert.equal(nodes["n2"]?.["hostname"], "real-n2");
      assert.deepEqual(config["automators"], large ? ["shell"] : ["chef-solo", "shell"]);
      const service = config["service"] as { action: Json } | undefined;
      if (task.taskName === "INSTALL")
        assert.deepEqual(service?.action, { type: "shell", fields: { script: "setup.sh", args: "-v" } });
      else if (task.taskName === "CONFIGURE" && !large) assert.equal(service?.action["type"], "chef-solo");
      else if (stage > 2) assert.equal(service?.action["type"], "shell");
      else assert.equal(service, undefined);
    }
    const made = body(await on("east", "GET", `/v1/clusters/${id}`), 200);
    assert.equal(made["status"], "active");
    assert.match(JSON.stringify(made["state"]), /vm-n1/);
    const tasks = await tasksOf("central", job);
    assert.ok(tasks.every((task) => task["status"] === "ok" && task["tries"] === 1));
    assert.match(String(tasks.at(-1)?.["stdout"]), /^start done/);
    assert.match(String(tasks[0]?.["workerId"]), /^coopr:master-one-1\/master-one-1\.worker\d$/);
    const deleting = body(await on("east", "POST", `/v1/clusters/${id}/operations`, { type: "delete" }), 202);
    const gone = await ends("east", String(deleting["id"]));
    assert.equal(gone["status"], "complete");
    assert.equal(mine.taken.at(-1)?.config["providerid"], `vm-${mine.taken.at(-1)?.nodeId}`, "known to the delete");
    // It unregisters: then it is unknown in every datacenter, and a task of another is not its.
    running.splice(running.indexOf(mine), 1);
    assert.equal(await mine.stop(), 200);
    for (const dc of stack.dcs)
      await stack.until(
        async () => {
          const stranger = new FakeProvisioner({ id: "master-one-1", server: () => stack.cooprUrl(dc), plugin });
          return (await stranger.send("POST", "/v2/provisioners/master-one-1/heartbeat", { usage: {} })).status === 404;
        },
        settleMs,
        `${dc} knows it no more`,
      );
  });

  it("answers with the codes of the contract", async () => {
    const mine = provisioner("master-codes-1", "central", { capacity: 0 });
    const ids = { provisionerId: "master-codes-1", workerId: "w1", tenantId: "superadmin" };
    const take = (of: Json = ids) => mine.send("POST", "/v2/tasks/take", of);
    const finish = (of: Json) => mine.send("POST", "/v2/tasks/finish", of);
    assert.equal((await mine.send("POST", "/v2/provisioners/master-codes-1/heartbeat", { usage: {} })).status, 404);
    assert.equal((await take()).status, 403);
    assert.equal((await mine.send("DELETE", "/v2/provisioners/master-codes-1")).status, 404);
    for (const bad of [{ host: "h" }, { capacityTotal: "x", host: "h", port: 1 }, "nonsense", [], { id: "other" }])
      assert.equal((await mine.send("PUT", "/v2/provisioners/master-codes-1", bad)).status, 400);
    const registration = { id: "master-codes-1", capacityTotal: "10", host: "127.0.0.1", port: "1" };
    assert.equal((await mine.send("PUT", "/v2/provisioners/master-codes-1", registration)).status, 200);
    assert.equal((await mine.send("POST", "/v2/provisioners/master-codes-1/heartbeat", { usage: {} })).status, 200);
    assert.equal((await take()).status, 204);
    assert.equal((await take({ ...ids, tenantId: "stranger" })).status, 403);
    for (const bad of [{}, "{", { ...ids }, { ...ids, taskId: "t", status: "soon" }])
      assert.equal((await mine.send("POST", "/v2/tasks/finish", bad)).status, 400);
    assert.equal((await mine.send("GET", "/v2/tasks/take")).status, 405);
    assert.equal((await mine.send("POST", "/v2/nothing", {})).status, 404);

    const [id = ""] = await owned("central", "codes");
    const job = await start("central", id, "stop", { ...spec, nodes: ["n1"] });
    const answer = await stack.until(
      async () => {
        const got = await take();
        return got.status === 200 && got;
      },
      settleMs,
      "a task",
    );
    const { taskId } = answer.body as ProvisionerTask;
    assert.equal((await finish({ ...ids, taskId, workerId: "w2", status: 0 })).status, 417);
    assert.equal((await finish({ ...ids, taskId, provisionerId: "nobody", status: 0 })).status, 403);
    assert.equal((await finish({ ...ids, taskId: "nonsense", status: 0 })).status, 417);
    assert.equal((await finish({ ...ids, taskId: taskId.replace(/\d+$/, "2"), status: 0 })).status, 417);
    const [before] = await tasksOf("east", job);
    assert.equal(before?.["status"], "taken", "nothing changed");
    // It fails with what the worker says of an exception, and is offered again under another id.
    assert.equal((await finish({ ...ids, taskId, status: "1", stderr: "it broke" })).status, 200);
    assert.equal((await finish({ ...ids, taskId, status: "1", stderr: "it broke" })).status, 200, "repeated");
    const again = await stack.until(
      async () => {
        const got = await take();
        return got.status === 200 && got;
      },
      settleMs,
      "its next try",
    );
    const next = (again.body as ProvisionerTask).taskId;
    assert.notEqual(next, taskId);
    assert.equal((await finish({ ...ids, taskId, status: "1", stderr: "late" })).status, 417, "the first try is over");
    assert.equal((await finish({ ...ids, taskId: next, status: 0 })).status, 200);
    assert.equal((await ends("east", job))["status"], "complete");
  });

  it("is removed when it is silent, its task goes to another one, and it is taken back when it speaks again", async () => {
    const [id = ""] = await owned("west", "silent");
    let release: () => void = () => undefined;
    const stuck = new Promise<void>((resolve) => (release = resolve));
    // Its heartbeats stop after the first; its API still listens.
    const silent = provisioner("master-silent-1", "west", {
      capacity: 1,
      heartbeatMs: 3_600_000,
      plugin: async () => {
        await stuck;
        return { status: 0 };
      },
    });
    await silent.start();
    const job = await start("west", id, "stop", { ...spec, nodes: ["n1"] });
    await stack.until(() => silent.taken.length === 1, settleMs, "it took the task");
    const other = provisioner("master-silent-2", "west", { capacity: 1 });
    await other.start();
    const done = await ends("west", job);
    assert.equal(done["status"], "complete");
    assert.equal(other.taken.length, 1);
    assert.equal(other.taken[0]?.config["hostname"], silent.taken[0]?.config["hostname"]);
    await stack.until(() => silent.called.includes("DELETE superadmin"), settleMs, "its tenant is taken from it");
    release();
    await stack.until(() => silent.finished.length === 1, settleMs, "its finish was answered");
    assert.equal(silent.finished[0]?.status, 403);
    const beat = () => silent.send("POST", "/v2/provisioners/master-silent-1/heartbeat", { usage: {} });
    assert.equal((await beat()).status, 404);
    await stack.until(async () => (await beat()).status === 200, settleMs, "it is taken back");
    await stack.until(() => silent.called.at(-1) === "PUT superadmin 1", settleMs, "and told of its tenant");
    await ended(silent);
    await ended(other);
  });

  it("holds its tasks for longer than a silence may last, also where a planned move has brought them", async () => {
    const [id = ""] = await owned("east", "long");
    let release: () => void = () => undefined;
    const stuck = new Promise<void>((resolve) => (release = resolve));
    const mine = provisioner("master-long-1", "east", {
      plugin: async () => {
        await stuck;
        return { status: 0 };
      },
    });
    await mine.start();
    const job = await start("east", id, "stop");
    await stack.until(() => mine.taken.length === 2, settleMs, "it took both tasks");
    const shard = Number(/^j(\d+)-/.exec(job)?.[1]);
    const moved = await stack.cli("switchover", "--shard", String(shard), "--to", "central", "--json");
    assert.equal(moved.code, 0, moved.stderr);
    await new Promise((resolve) => setTimeout(resolve, 1.3 * silentMs));
    assert.ok((await tasksOf("west", job)).every((task) => task["status"] === "taken" && task["tries"] === 1));
    release();
    const done = await ends("west", job);
    assert.equal(done["status"], "complete");
    assert.equal(done["attempt"], 1);
    assert.equal(done["runsIn"], "east", "the attempt is the one that began there");
    assert.ok(mine.finished.every(({ status }) => status === 200));
    await ended(mine);
  });

  it("goes on at another datacenter, without registering, when the one it spoke to is dead", async () => {
    let dc = "central";
    const [id = ""] = await owned("central", "dies");
    const mine = provisioner("master-dies-1", "central", {
      server: () => stack.cooprUrl(dc),
      plugin: async (task) => {
        if (dc === "central" && task.taskName === "CONFIRM") {
          await stack.simulate("crash", "central");
          dc = "east";
        }
        return plugin(task);
      },
    });
    await mine.start();
    const other = provisioner("master-dies-2", "west");
    await other.start();
    const nodes = [{ name: "n1", services: ["base"] }];
    const job = await start("central", id, "create", { ...spec, nodes });
    const done = await ends("east", job, 60_000);
    assert.equal(done["status"], "complete", String(done["error"]));
    assert.equal(done["attempt"], 2);
    assert.ok(mine.beats.slice(-3).every((status) => status === 200));
    assert.ok(!mine.called.some((call) => call.startsWith("DELETE")));
    const late = [...mine.finished].find(({ task }) => task.taskName === "CONFIRM" && task.taskId.includes(".1."));
    // Refused by the new owner, or stored because no owner could answer: either way it changed nothing.
    assert.ok(late?.status === 417 || late?.status === 200, `the finish of the dead attempt: ${String(late?.status)}`);
    const confirmed = [...mine.finished, ...other.finished].filter(({ task }) => task.taskName === "CONFIRM");
    assert.ok(
      confirmed.some(({ task, status }) => status === 200 && task.jobId === job && task.taskId.includes(".2.")),
      "the stage was finished by the next attempt",
    );
    // The checkpoint behind CREATE: the machine is not made twice.
    const all = [...mine.taken, ...other.taken].filter((task) => task.jobId === job);
    assert.equal(all.filter(({ taskName }) => taskName === "CREATE").length, 1);
    assert.equal(all.at(-1)?.config["providerid"], "vm-n1");
    // Registered anew in another datacenter under the same id: the same provisioner.
    assert.equal(await mine.register(), 200);
    await stack.simulate("restart", "central");
    await allServe(stack);
    const back = new FakeProvisioner({ id: "master-dies-1", server: () => stack.cooprUrl("central"), plugin });
    const beat = await back.send("POST", "/v2/provisioners/master-dies-1/heartbeat", { usage: { superadmin: 2 } });
    assert.equal(beat.status, 200);
    await ended(mine);
    await ended(other);
  });

  it("stores finishes that no owner can answer, over a kill -9, and forwards them until one does", async () => {
    const [id = "", other = ""] = await owned("east", "stored", 2);
    const ids = { provisionerId: "master-stored-1", workerId: "w1", tenantId: "superadmin" };
    const mine = provisioner("master-stored-1", "east", { capacity: 0 });
    const registration = { id: "master-stored-1", capacityTotal: "5", host: "127.0.0.1", port: "1" };
    assert.equal((await mine.send("PUT", "/v2/provisioners/master-stored-1", registration)).status, 200);
    body(await on("east", "PUT", "/v1/workers/w-stored", { capacity: 5 }), 200);
    const first = await start("east", id, "restart", { ...spec, nodes: ["n1"] });
    const taken = await stack.until(
      async () => {
        const got = await mine.send("POST", "/v2/tasks/take", ids);
        return got.status === 200 && (got.body as ProvisionerTask);
      },
      settleMs,
      "a task",
    );
    const second = await start("east", other, "restart", { ...spec, nodes: ["n1"] });
    const order = { workerId: "w-stored", waitMs: 5_000 };
    const task = at(body<{ tasks: Json[] }>(await on("east", "POST", "/v1/tasks/take", order), 200).tasks, 0);
    // The attempts go on at west, which then stands still; nobody may take its shards over.
    for (const job of [first, second]) {
      const shard = /^j(\d+)-/.exec(job)?.[1] ?? "";
      const moved = await stack.cli("switchover", "--shard", shard, "--to", "west", "--json");
      assert.equal(moved.code, 0, moved.stderr);
    }
    assert.equal((await stack.cli("failover", "pause")).code, 0);
    await stack.simulate("pause", "west");
    const finish = { token: task["token"], workerId: "w-stored", status: "ok", result: { kept: "by east" } };
    const [coopr, ours] = await Promise.all([
      mine.send("POST", "/v2/tasks/finish", { ...ids, taskId: taken.taskId, status: 0, result: { kept: "too" } }),
      on("east", "POST", `/v1/tasks/${String(task["id"])}/finish`, finish, { "hothot-timeout-ms": "3000" }),
    ]);
    assert.equal(coopr.status, 200);
    problem(ours, "outcome_unknown");
    await stack.simulate("crash", "east");
    await stack.simulate("restart", "east");
    await stack.simulate("resume", "west");
    // Nobody repeats them: they come out of east's database.
    for (const [job, cluster] of [
      [first, id],
      [second, other],
    ] as const) {
      await stack.until(
        async () => (await tasksOf("central", job)).find((each) => each["stage"] === "STOP")?.["status"] === "ok",
        settleMs,
        `the finish of ${job} has arrived`,
      );
      const [stop, next] = await tasksOf("central", job);
      assert.equal(stop?.["tries"], 1);
      assert.equal(next?.["stage"], "START");
      assert.equal(body(await on("west", "GET", `/v1/jobs/${job}`), 200)["attempt"], 1);
      assert.ok(cluster.length > 0);
      body(await on("west", "POST", `/v1/jobs/${job}/cancel`), 200);
    }
    await allServe(stack);
    const resumed = await stack.cli("failover", "resume");
    assert.equal(resumed.code, 0, resumed.stderr);
    await allEqual(stack, "east");
  });
});
