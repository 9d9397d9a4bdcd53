import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { endFolder, freshFolder } from "../harness/folder.js";
import { runCli } from "../harness/stack.js";

/** The program's own part: usage, exit codes, output. What the verbs do to a group is tested with real ones elsewhere. */
describe("the command line", () => {
  let server: Server;
  let url = "";
  let dir = "";
  const seen: { method: string; url: string; body: string; authorization: string | undefined }[] = [];
  let answer: (request: IncomingMessage, response: ServerResponse) => void = () => undefined;

  before(async () => {
    dir = freshFolder("cli");
    server = createServer((request, response) => {
      let body = "";
      request.on("data", (chunk: Buffer) => void (body += chunk.toString()));
      request.on("end", () => {
        seen.push({
          method: request.method ?? "",
          url: request.url ?? "",
          body,
          authorization: request.headers.authorization,
        });
        answer(request, response);
      });
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  after(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await endFolder(dir);
  });
  const reply = (response: ServerResponse, status: number, body: unknown): void => {
    response.writeHead(status, { "content-type": status < 400 ? "application/json" : "application/problem+json" });
    response.end(typeof body === "string" ? body : JSON.stringify(body));
  };

  for (const args of [
    [],
    ["bogus"],
    ["up", "--bogus"],
    ["up", "--shards", "0"],
    ["up", "--rtt", "-1"],
    ["clusters"],
    ["clusters", "put", "x"],
    ["clusters", "put", "x", "--data", "{"],
    ["clusters", "put", "x", "--data", "@/nowhere"],
    ["clusters", "get"],
    ["clusters", "import", "/nowhere"],
    ["switchover", "--to", "east"],
    ["switchover", "--dc", "east", "--shard", "1", "--to", "west"],
    ["drain"],
    ["repair"],
    ["simulate", "cut"],
    ["simulate", "cut", "--link", "east"],
    ["simulate", "crash"],
    ["up", "--dcs", "East", "--dir", "/nowhere"],
    ["up", "--bogus", "--json"],
    ["repair", "--json"],
  ]) {
    it(`wrong usage, exit code 2: hothot ${args.join(" ")}`, async () => {
      const { code, stdout, stderr } = await runCli(args, { HOTHOT_URL: url });
      assert.equal(code, 2, stderr);
      if (args.includes("--json")) assert.equal((JSON.parse(stdout) as { code: string }).code, "wrong_usage");
      else assert.equal(stdout, "");
      assert.notEqual(stderr, "");
    });
  }

  it("helps with every verb", async () => {
    for (const verb of [
      "up",
      "down",
      "status",
      "shards",
      "lag",
      "clusters",
      "jobs",
      "switchover",
      "takeover",
      "history",
      "verify",
      "divergence",
      "simulate",
    ]) {
      const { code, stdout } = await runCli([verb, "--help"]);
      assert.equal(code, 0);
      assert.match(stdout, /^Usage: hothot /);
    }
  });

  it("says where there is no stack, no server, or no place for a stack", async () => {
    const cases: [string, string[]][] = [
      ["no_stack", ["down", "--dir", path.join(dir, "none")]],
      ["no_stack", ["simulate", "crash", "east", "--dir", path.join(dir, "none")]],
      ["no_stack", ["status", "--dir", path.join(dir, "none")]],
      ["unreachable", ["shards", "--url", "http://127.0.0.1:1"]],
      ["not_writable", ["up", "--detach", "--dir", path.join(process.execPath, "below-a-file")]],
      ["not_writable", ["up", "--detach", "--dir", "/proc/nowhere"]],
    ];
    for (const [expected, args] of cases) {
      const { code, stderr } = await runCli(args);
      assert.equal(code, 1, args.join(" "));
      assert.match(stderr, new RegExp(`^hothot: ${expected}: .*\\n  \\S`), args.join(" "));
    }
  });

  it("gives the code of a problem, its faults, and with --json the problem itself", async () => {
    const problem = {
      type: "about:blank",
      title: "no",
      status: 400,
      code: "invalid_request",
      detail: "bad",
      errors: [{ path: "/name", message: "must be a string" }],
    };
    answer = (_request, response) => reply(response, 400, problem);
    const { code, stdout, stderr } = await runCli([
      "clusters",
      "put",
      "a/b",
      "--data",
      '{"name":1}',
      "--url",
      url,
      "--token",
      "t0",
      "--json",
    ]);
    assert.equal(code, 1);
    assert.match(stderr, /^hothot: invalid_request: bad\n {2}\/name: must be a string/);
    assert.deepEqual(JSON.parse(stdout), problem);
    assert.deepEqual(seen.at(-1), {
      method: "PUT",
      url: "/v1/clusters/a%2Fb",
      body: '{"name":1}',
      authorization: "Bearer t0",
    });
  });

  it("follows pages to the end, or to the limit", async () => {
    answer = (request, response) => {
      const query = new URL(request.url ?? "", url).searchParams;
      const from = Number(query.get("cursor") ?? 0);
      const to = Math.min(250, from + Number(query.get("limit")));
      reply(response, 200, {
        items: Array.from({ length: to - from }, (_, i) => ({
          id: `c${from + i}`,
          name: "n",
          spec: {},
          version: 3,
          owner: "east",
        })),
        nextCursor: to < 250 ? String(to) : null,
      });
    };
    const all = await runCli(["clusters", "list", "--url", url, "--json"]);
    assert.equal((JSON.parse(all.stdout) as { items: unknown[] }).items.length, 250);
    const some = await runCli(["clusters", "list", "--url", url, "--limit", "120", "--json"]);
    assert.equal((JSON.parse(some.stdout) as { items: unknown[] }).items.length, 120);
    const lines = (await runCli(["clusters", "export", "--url", url])).stdout.trimEnd().split("\n");
    assert.equal(lines.length, 250);
    assert.deepEqual(JSON.parse(lines[249] ?? ""), { id: "c249", name: "n", spec: {} });
  });

  it("imports lines, and sets aside those that are refused", async () => {
    answer = (request, response) => {
      assert.equal(request.url, "/v1/clusters/bulk");
      assert.equal(request.headers["content-type"], "application/x-ndjson");
      response.setHeader("content-type", "application/x-ndjson");
      response.end(
        [
          { line: 1, id: "good", status: 201, version: 1 },
          { line: 3, id: "bad", status: 400, code: "invalid_request", detail: "no" },
          { line: 4, status: 400, code: "invalid_request", detail: "is not JSON" },
          { line: 5, id: "made", status: 201, version: 1 },
        ]
          .map((line) => `${JSON.stringify(line)}\n`)
          .join(""),
      );
    };
    const file = path.join(dir, "in.ndjson");
    const rejects = path.join(dir, "rejects.ndjson");
    writeFileSync(file, '{"id":"good","name":"a"}\n\n{"id":"bad","name":"b"}\nnonsense\n{"name":"no id"}\n');
    const { code, stdout } = await runCli(["clusters", "import", file, "--rejects", rejects, "--url", url, "--json"]);
    assert.equal(code, 1);
    const result = JSON.parse(stdout) as { done: number; rejected: number; rejects: { line: number }[] };
    assert.equal(result.done, 2);
    assert.deepEqual(result.rejects.map(({ line }) => line).sort(), [3, 4]);
    const written = readFileSync(rejects, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as { line: number; code: string; input: string });
    assert.deepEqual(
      written.map(({ line, code, input }) => [line, code, input]),
      [
        [3, "invalid_request", '{"id":"bad","name":"b"}'],
        [4, "invalid_request", "nonsense"],
      ],
    );
    assert.equal(existsSync(`${file}.import`), false);
  });

  /**
   * A service that takes effect as the real one does: a key and line once, with the id that follows from them. Of each request it takes
   * `room` new lines; those named bad are refused.
   */
  const loading = (room: number) => {
    const clusters = new Map<string, number>();
    const answered = new Map<string, string>();
    const bodies: string[] = [];
    const service = {
      clusters,
      bodies,
      room,
      /** Once nothing more is answered. */
      silentAt: Infinity,
    };
    answer = (request, response) => {
      const key = String(request.headers["idempotency-key"]);
      const lines = (seen.at(-1)?.body ?? "").split("\n");
      bodies.push(lines.filter((line) => line !== "").join(","));
      response.setHeader("content-type", "application/x-ndjson");
      let left = service.room;
      const out = lines.flatMap((line, index): string[] => {
        if (line === "") return [];
        const place = `${key}:${index + 1}`;
        const refusal = (status: number, code: string): string[] => [
          JSON.stringify({ line: index + 1, status, code, detail: "no" }),
        ];
        if (line.includes("bad")) return refusal(400, "invalid_request");
        if (!answered.has(place)) {
          if (left-- <= 0) return refusal(429, "quota_exceeded");
          const id = (JSON.parse(line) as { id?: string }).id ?? `made-${place}`;
          clusters.set(id, (clusters.get(id) ?? 0) + 1);
          answered.set(place, JSON.stringify({ line: index + 1, id, status: 201, version: 1 }));
        }
        return [answered.get(place) ?? ""];
      });
      if (bodies.length < service.silentAt) response.end(`${out.join("\n")}\n`);
    };
    return service;
  };

  it("imports again what was beyond the tenant's writes a second, as long as some gets through", async () => {
    const file = path.join(dir, "quota.ndjson");
    writeFileSync(file, "1\n\n2\n3\n4\n5\n");
    const run = async () => {
      const { code, stdout } = await runCli(["clusters", "import", file, "--url", url, "--json"]);
      const { done, rejects } = JSON.parse(stdout) as { done: number; rejects: { line: number }[] };
      return { code, done, rejected: rejects.map(({ line }) => line) };
    };
    // The same request each time: what took effect is answered again.
    const some = loading(2);
    assert.deepEqual(await run(), { code: 0, done: 5, rejected: [] });
    assert.deepEqual(some.bodies, ["1,2,3,4,5", "1,2,3,4,5", "1,2,3,4,5"]);
    const none = loading(0);
    assert.deepEqual(await run(), { code: 1, done: 0, rejected: [1, 3, 4, 5, 6] });
    assert.equal(none.bodies.length, 2);
  });

  describe("an import that was killed and repeated takes each row once", () => {
    const rows = Array.from({ length: 8 }, (_, i) =>
      JSON.stringify(i === 3 ? { id: "named", name: "d" } : { name: `n${i}` }),
    );
    const again = /(go again[^]*){2}/;

    it("of a file", async () => {
      const file = path.join(dir, "killed.ndjson");
      writeFileSync(file, `${rows.join("\n")}\n`);
      const service = loading(2);
      const args = ["clusters", "import", file, "--url", url, "--json"];
      assert.equal((await runCli(args, {}, again)).stdout, "");
      assert.ok(service.clusters.size >= 4, "it was under way");
      const { code, stdout, stderr } = await runCli(args);
      assert.equal(code, 0, stderr);
      assert.equal((JSON.parse(stdout) as { done: number }).done, 8);
      assert.equal(service.clusters.size, 8);
      assert.deepEqual(new Set(service.clusters.values()), new Set([1]));
      assert.equal(existsSync(`${file}.import`), false);
    });

    it("of a pipe, with a key, and of a file that is taken up without naming the key again", async () => {
      const input = `${rows.join("\n")}\n`;
      const file = path.join(dir, "keyed.ndjson");
      writeFileSync(file, input);
      for (const [first, second] of [
        [
          ["--key", "nightly"],
          ["--key", "nightly"],
        ],
        [[file, "--key", "mine"], [file]],
      ] as const) {
        const service = loading(3);
        const args = (more: readonly string[]): string[] => ["clusters", "import", ...more, "--url", url, "--json"];
        await runCli(args(first), {}, again, undefined, input);
        assert.ok(service.clusters.size >= 3, "it was under way");
        const { code, stderr } = await runCli(args(second), {}, undefined, undefined, input);
        assert.equal(code, 0, stderr);
        assert.equal(service.clusters.size, 8);
        assert.deepEqual(new Set(service.clusters.values()), new Set([1]));
      }
    });

    it("and writes each refused line once, with the whole import's outcome", async () => {
      const file = path.join(dir, "refused.ndjson");
      const rejects = path.join(dir, "refused.out");
      // Three requests: the first two are answered before the kill.
      const long = "x".repeat(4_000_000);
      const lines = ["bad 1", JSON.stringify({ name: long }), JSON.stringify({ name: long }), "bad 4", "bad 5"];
      lines.push(JSON.stringify({ name: long }), JSON.stringify({ name: long }), "bad 8");
      writeFileSync(file, `${lines.join("\n")}\n`);
      writeFileSync(rejects, "of another import\n");
      const service = loading(Infinity);
      service.silentAt = 3;
      const args = ["clusters", "import", file, "--rejects", rejects, "--url", url, "--json"];
      await runCli(args, {}, /line 5[^]*done/);
      const written = (): number[] =>
        readFileSync(rejects, "utf8")
          .trimEnd()
          .split("\n")
          .map((line) => (JSON.parse(line) as { line: number }).line);
      assert.deepEqual(written(), [1, 4, 5]);
      // As if it had been killed between the lines and the word that they are dealt with.
      writeFileSync(rejects, `${readFileSync(rejects, "utf8")}{"line":8`);
      service.silentAt = Infinity;
      const { code, stdout } = await runCli(args);
      assert.equal(code, 1);
      assert.deepEqual(written(), [1, 4, 5, 8]);
      const { done, rejected } = JSON.parse(stdout) as { done: number; rejected: number };
      assert.deepEqual([done, rejected], [4, 4]);
      assert.equal(service.clusters.size, 4);
    });
  });

  it("waits for the end of a long operation, and fails when it failed", async () => {
    let asked = 0;
    const operation = (status: string): unknown => ({
      id: "o1",
      kind: "drain",
      status,
      progress: { done: asked, total: 2 },
      shards: [],
      error: status === "failed" ? "target died" : null,
    });
    answer = (request, response) =>
      reply(
        response,
        request.method === "POST" ? 202 : 200,
        operation(request.method === "POST" || ++asked < 2 ? "running" : "complete"),
      );
    const done = await runCli(["drain", "--dc", "east", "--url", url, "--json"]);
    assert.equal(done.code, 0, done.stderr);
    assert.equal((JSON.parse(done.stdout) as { status: string }).status, "complete");
    assert.match(done.stderr, /drain: 1 of 2/);
    answer = (request, response) => reply(response, request.method === "POST" ? 202 : 200, operation("failed"));
    const failed = await runCli(["drain", "--dc", "east", "--url", url]);
    assert.equal(failed.code, 1);
    assert.match(failed.stderr, /^hothot: failed: target died/m);
  });

  it("waits for the end of a job that it sets going again", async () => {
    const job = (status: string, attempt: number): unknown => ({
      id: "j1-a",
      status,
      attempt,
      stage: null,
      error: status === "failed" ? "no route" : null,
    });
    for (const verb of ["retry", "resume"])
      for (const [end, expected] of [
        ["complete", 0],
        ["failed", 1],
      ] as const) {
        let asked = 0;
        answer = (request, response) => {
          if (request.method === "POST") return reply(response, 202, job("running", 2));
          // The first look is at a copy that has not heard of it.
          reply(response, 200, asked++ === 0 ? job("failed", 1) : job(asked < 3 ? "running" : end, 2));
        };
        const { code, stdout, stderr } = await runCli(["jobs", verb, "j1-a", "--url", url, "--json"]);
        assert.equal(code, expected, stderr);
        assert.deepEqual(JSON.parse(stdout), job(end, 2));
        assert.equal(asked, 3);
      }
    const begun = await runCli(["jobs", "retry", "j1-a", "--no-wait", "--url", url, "--json"]);
    assert.deepEqual([begun.code, JSON.parse(begun.stdout)], [0, job("running", 2)]);
  });

  it("says so when an answer is cut off, with --json as JSON", async () => {
    answer = (_request, response) => {
      response.writeHead(200, { "content-type": "application/x-ndjson" });
      response.write('{"shard":1,"dc":"east","epoch":1,"position":5,"equal":true,"clusters":[]}\n{"sha', () =>
        response.destroy(),
      );
    };
    const { code, stdout, stderr } = await runCli(["verify", "--url", url, "--json"]);
    assert.equal(code, 1);
    assert.match(stderr, /^hothot: unreachable: The answer was cut off/m);
    assert.equal((JSON.parse(stdout) as { code: string }).code, "unreachable");
    answer = (_request, response) => void response.writeHead(200).write("\n");
    const late = await runCli(["verify", "--timeout", "1", "--url", url, "--json"]);
    assert.equal(late.code, 1);
    assert.equal((JSON.parse(late.stdout) as { code: string }).code, "deadline_exceeded");
  });

  it("tells by its exit code whether copies differ", async () => {
    const line = (dc: string, equal: boolean): string =>
      `${JSON.stringify({ shard: 1, dc, epoch: 1, position: 5, equal, clusters: equal ? [] : ["c9"] })}\n`;
    for (const [equal, expected] of [
      [true, 0],
      [false, 1],
    ] as const) {
      answer = (_request, response) => reply(response, 200, line("east", true) + line("west", equal));
      const { code, stdout, stderr } = await runCli(["verify", "--url", url, "--json"]);
      assert.equal(code, expected);
      assert.equal((JSON.parse(stdout) as { equal: boolean }).equal, equal);
      assert.equal(/copies_differ/.test(stderr), !equal);
    }
    const silent = JSON.stringify({ shard: 1, dc: "west", epoch: 0, position: 0, equal: false, clusters: [] });
    answer = (_request, response) => reply(response, 200, `${line("east", true)}${silent}\n`);
    const { code, stdout, stderr } = await runCli(["verify", "--url", url]);
    assert.equal(code, 1);
    assert.match(stdout, /^shard 1 in west: no answer\n1 of 2 copies do not answer$/m);
    assert.match(stderr, /^hothot: unreachable: 1 of 2$/m);
  });

  it("shows what it would do, and does not do it", async () => {
    const before = seen.length;
    const { code, stdout } = await runCli(["clusters", "delete", "x", "--dry-run", "--url", url]);
    assert.equal(code, 0);
    assert.deepEqual(JSON.parse(stdout), { method: "DELETE", path: "/v1/clusters/x" });
    assert.equal(seen.length, before);
  });
});
