import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { LogStreams } from "../../infra/nats/log-streams.js";
import { startStack, runCli, type TestStack } from "../harness/stack.js";
import { openLink } from "./log-reader.js";
import { allEqual, allServe, body, pause, send, shardMap, type Json } from "./support.js";

let stack: TestStack;
before(async () => {
  // The log soon lacks what was written first: a new datacenter can't get that from it.
  stack = await startStack({ worker: false, env: { HOTHOT_LOG_RETENTION_MS: "3000", HOTHOT_RESTATE_MS: "500" } });
  await allServe(stack);
});
after(() => stack?.stop());

/** The stack with other datacenters than it began with. */
const withDcs = (dcs: readonly string[]): TestStack =>
  Object.assign(Object.create(stack) as TestStack, { dcs, url: (dc: string) => urlOf(dc) });
const urls = new Map<string, string>();
const urlOf = (dc: string): string => urls.get(dc) ?? stack.url(dc);

/** Writes through each of `dcs` until it is ended: what was acknowledged, and every answer that was not. */
class Load {
  readonly acknowledged = new Set<string>();
  readonly failed: string[] = [];
  #ended = false;
  readonly #loops: Promise<void>[];

  constructor(prefix: string, dcs: readonly string[]) {
    this.#loops = dcs.flatMap((dc) => [0, 1].map((n) => this.#write(`${prefix}-${dc}-${n}`, dc)));
  }

  async end(): Promise<void> {
    this.#ended = true;
    await Promise.all(this.#loops);
  }

  async #write(prefix: string, dc: string): Promise<void> {
    for (let number = 0; !this.#ended; number++) {
      const id = `${prefix}-${number}`;
      try {
        const answer = await send({ url: urlOf }, dc, "PUT", `/v1/clusters/${id}`, { name: id, spec: {} });
        if (answer.status < 300) this.acknowledged.add(id);
        else this.failed.push(`${dc} ${answer.status} ${answer.text}`);
      } catch (error) {
        this.failed.push(`${dc} ${String(error)}`);
      }
      await pause(10);
    }
  }
}

const partitions = 12;

/** For each log partition the sites that hold it, and its first message. */
async function inLog(dc: string): Promise<{ sites: string[]; first: number }[]> {
  const link = await openLink(stack, dc);
  try {
    const streams = new LogStreams("local", 1, [link]);
    const states = await Promise.all(Array.from({ length: partitions }, (_, p) => streams.state(p, 5_000)));
    return states.map((state) => {
      const servers = [state?.leader ?? "", ...(state?.replicas ?? []).map((replica) => replica.name)];
      return { sites: servers.map((server) => server.split(".")[0] ?? "").sort(), first: state?.firstSequence ?? 0 };
    });
  } finally {
    await link.close();
  }
}

async function holdAll(dcs: readonly string[], ids: Iterable<string>): Promise<void> {
  const group = withDcs(dcs);
  await allEqual(group, dcs[0] ?? "", 60_000);
  const left = dcs.flatMap((dc) => [...ids].map((id) => [dc, id] as const));
  await Promise.all(
    Array.from({ length: 16 }, async () => {
      for (let next = left.pop(); next !== undefined; next = left.pop()) {
        const [dc, id] = next;
        const found = body<Json>(await send(group, dc, "GET", `/v1/clusters/${id}`), 200);
        assert.equal(found["name"], id, `${dc} has ${id}`);
      }
    }),
  );
}

describe("datacenters that come and go under load", { concurrency: false }, () => {
  it("adds one, that loads its copy and takes its share, and no request fails", async () => {
    const rows = Array.from({ length: 1_000 }, (_, n) => ({ id: `early-${n}`, name: `early-${n}`, spec: { n } }));
    const text = rows.map((row) => JSON.stringify(row)).join("\n");
    const type = { "content-type": "application/x-ndjson" };
    assert.equal((await send(stack, "east", "POST", "/v1/clusters/bulk", text, type)).status, 200);
    const load = new Load("add", ["east", "central", "west"]);
    await stack.until(
      async () => (await inLog("east")).every(({ first }) => first > 1),
      30_000,
      "the log has lost what came first",
    );
    const added = await stack.cli("dc", "add", "north");
    urls.set("north", `http://127.0.0.1:${stack.portBase + 4}`);
    await pause(500);
    await load.end();
    assert.equal(added.code, 0, added.stderr);
    assert.deepEqual(load.failed, []);
    assert.ok(load.acknowledged.size > 100, `${load.acknowledged.size} writes`);
    const all = ["east", "central", "west", "north"];
    const map = await shardMap({ url: urlOf }, "north");
    const owned = map.filter((shard) => shard.owner === "north").length;
    assert.ok(owned >= 10, `north owns ${owned} of ${map.length} shards`);
    await holdAll(all, [...load.acknowledged, ...rows.map(({ id }) => id)]);
    const { text: metrics } = await send({ url: urlOf }, "north", "GET", "/metrics");
    const loaded = Number(/^hothot_snapshot_rows_total (\d+)$/m.exec(metrics)?.[1]);
    assert.ok(loaded >= rows.length, `${loaded} rows came by snapshots`);
    for (const { sites } of await inLog("east")) assert.equal(new Set(sites).size, 3, sites.join());
  });

  it("removes one of the first, and no request fails", async () => {
    const load = new Load("remove", ["east", "central", "north"]);
    await pause(500);
    const west = stack.stack.site("west");
    const removed = await stack.cli("dc", "remove", "west");
    await pause(500);
    await load.end();
    assert.equal(removed.code, 0, removed.stderr);
    assert.deepEqual(load.failed, []);
    assert.deepEqual(west.processes(), []);
    for (const { sites } of await inLog("east")) assert.deepEqual(sites, ["central", "east", "north"]);
    const { datacenters } = body<{ datacenters: Json[] }>(
      await send({ url: urlOf }, "east", "GET", "/v1/topology"),
      200,
    );
    assert.deepEqual(
      datacenters.map((dc) => [dc["name"], dc["state"]]),
      [
        ["east", "serving"],
        ["central", "serving"],
        ["north", "serving"],
      ],
    );
    await holdAll(["east", "central", "north"], load.acknowledged);
    const place = { "hothot-durability": "replicated" };
    for (const dc of ["east", "central", "north"])
      body(await send({ url: urlOf }, dc, "PUT", `/v1/clusters/later-${dc}`, { name: "n", spec: {} }, place), 201);
  });

  it("refuses the one that left when it comes back, and its name", async () => {
    const again = await stack.cli("dc", "add", "west");
    assert.equal(again.code, 1);
    assert.match(again.stderr, /invalid_request[^]*west was removed/);
    const settings = stack.stack.site("west").settings(1);
    const west = stack.stack.site("west").postgres;
    assert.ok(west !== undefined);
    await west.start();
    try {
      const back = await runCli(["serve"], settings);
      assert.equal(back.code, 1, back.stdout);
      assert.match(`${back.stderr}${back.stdout}`, /removed_datacenter/);
    } finally {
      await west.stop();
    }
  });

  it("does not start on a database of another datacenter or group", async () => {
    const settings = stack.stack.site("east").settings(1);
    const port = String(stack.portBase + 8);
    for (const wrong of [{ HOTHOT_DC: "central" }, { HOTHOT_GROUP: "other" }]) {
      const refused = await runCli(["serve"], { ...settings, HOTHOT_PORT: port, HOTHOT_NODE: "n9", ...wrong });
      assert.equal(refused.code, 1);
      assert.match(`${refused.stderr}${refused.stdout}`, /wrong_database[^]*belongs to/);
    }
    await allServe(withDcs(["east", "central", "north"]));
  });
});
