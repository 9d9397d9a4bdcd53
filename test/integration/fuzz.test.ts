import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { request as ask, type IncomingMessage } from "node:http";
import { after as afterAll, before, describe, it } from "node:test";
import fc from "fast-check";
import { startStack, type TestStack } from "../harness/stack.js";
import { checkAnswer, type ApiDocument } from "../harness/openapi.js";
import { databaseOf } from "./database.js";
import { after, allEqual, allServe, at, body, problem, send, type Answered, type Json } from "./support.js";

const retentionMs = 4_000;

interface Raw {
  readonly status: number;
  readonly headers: IncomingMessage["headers"];
  readonly text: string;
}

/** What goes through all datacenters: hostile input, request ids, keys that grow old. */
describe("any request", () => {
  let stack: TestStack;
  let document: ApiDocument;
  const on = (
    dc: string,
    method: string,
    where: string,
    sent?: unknown,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Answered> => send(stack, dc, method, where, sent, headers);

  before(async () => {
    stack = await startStack({
      steady: true,
      env: { HOTHOT_IDEMPOTENCY_RETENTION_MS: String(retentionMs), HOTHOT_LOG_LEVEL: "debug" },
    });
    document = body<never>(await on("east", "GET", "/openapi.json"), 200);
  });
  afterAll(() => stack.stop());

  /** Megabytes of each datacenter's process. */
  const residents = (): number[] =>
    stack.dcs.map((dc) => {
      const [pid = 0] = stack.pids(dc).node;
      return Math.round(Number(execFileSync("ps", ["-o", "rss=", "-p", String(pid)], { encoding: "utf8" })) / 1000);
    });

  /** As it is, byte for byte: fetch would refuse to send much of it. */
  const raw = async (
    dc: string,
    method: string,
    where: string,
    headers: Readonly<Record<string, string>>,
    bytes: string | undefined,
  ): Promise<Raw> => {
    const sent = ask(`${stack.url(dc)}`, { path: where, method, headers, agent: false, timeout: 20_000 });
    sent.on("timeout", () => sent.destroy(new Error(`${method} ${where} hangs`)));
    sent.end(bytes);
    const [answer] = (await once(sent, "response")) as [IncomingMessage];
    const chunks: Buffer[] = [];
    for await (const chunk of answer) chunks.push(chunk as Buffer);
    return { status: answer.statusCode ?? 0, headers: answer.headers, text: Buffer.concat(chunks).toString() };
  };

  it("is answered as the document says, whatever is sent to whichever path: no 500, no hang, no growth of memory", async (t) => {
    // What moves ownership or sets limits is left to its own tests: the fuzz would only fight itself.
    const left = /^\/v1\/(events|failover|tenants|tokens|takeovers|drains|switchovers|rebalances|failbacks|verify)/;
    const operations = Object.entries(document.paths).flatMap(([path, item]) =>
      Object.keys(item).flatMap((method) =>
        left.test(path) && method !== "get"
          ? []
          : /events|verify/.test(path)
            ? []
            : [{ path, method: method.toUpperCase() }],
      ),
    );
    const id = fc.oneof(
      fc.constantFrom(
        "a",
        "fuzz-1",
        "fuzz-2",
        "j3-abcdefghijklmnop",
        "j3-abcdefghijklmnop.1.1",
        "x".repeat(129),
        "..",
        "%00",
        "%F0%9F%92%A9",
      ),
      fc
        .string({ minLength: 1, maxLength: 20 })
        .map(encodeURIComponent)
        .filter((text) => text !== "." && text !== ""),
    );
    const key = fc.oneof(
      fc.constantFrom(
        "name",
        "spec",
        "state",
        "labels",
        "expiresAt",
        "id",
        "type",
        "input",
        "workerId",
        "token",
        "status",
        "waitMs",
        "nodes",
        "scopes",
        "capacity",
        "max",
        "__proto__",
        "constructor",
      ),
      fc.string({ maxLength: 8 }),
    );
    const leaf = fc.oneof(
      fc.string(),
      fc.string({ unit: "binary", maxLength: 8 }),
      fc.integer(),
      fc.double(),
      fc.boolean(),
      fc.constantFrom(null, "\u0000", "\ud800", "2030-01-01T00:00:00Z", "create", 1e308, -0, [], {}),
    );
    const { value } = fc.letrec<{ value: unknown }>((tie) => ({
      value: fc.oneof(
        { maxDepth: 4, withCrossShrink: true },
        leaf,
        fc.dictionary(key, tie("value"), { maxKeys: 5 }),
        fc.array(tie("value"), { maxLength: 4 }),
      ),
    }));
    const good = fc.record({ name: fc.string(), spec: fc.dictionary(fc.string(), fc.jsonValue()) });
    const bytes = fc.oneof(
      { weight: 4, arbitrary: fc.dictionary(key, value, { maxKeys: 6 }).map((it) => JSON.stringify(it)) },
      { weight: 2, arbitrary: good.map((it) => JSON.stringify(it)) },
      {
        weight: 1,
        arbitrary: fc.constantFrom(
          "",
          "{",
          "null",
          "[]",
          '{"a":1,"a":2}',
          `${"[".repeat(500)}${"]".repeat(500)}`,
          "x".repeat(600_000),
        ),
      },
      { weight: 1, arbitrary: fc.string({ unit: "binary" }) },
    );
    const header = fc.oneof(
      fc.constantFrom(
        "1",
        "0",
        "-1",
        "owner",
        "replicated",
        "local",
        '"1"',
        '"999999999999999"',
        "*",
        "3:1:1",
        "3:999999:999999999",
        "é",
        "a b",
      ),
      fc.string({ unit: fc.constantFrom(...'abc019:-"*, '), maxLength: 30 }),
    );
    const headers = fc.dictionary(
      fc.constantFrom(
        "idempotency-key",
        "hothot-durability",
        "hothot-consistency",
        "hothot-min-position",
        "if-match",
        "if-none-match",
        "traceparent",
        "x-request-id",
      ),
      header.map((text) => Buffer.from(text, "utf8").toString("latin1").trim()),
      { maxKeys: 3 },
    );
    const types = fc.oneof(
      { weight: 6, arbitrary: fc.constant("application/json") },
      {
        weight: 1,
        arbitrary: fc.constantFrom(
          "application/x-ndjson",
          "text/plain",
          "application/json; charset=latin1",
          "application/merge-patch+json",
        ),
      },
    );
    const query = fc.oneof(
      { weight: 3, arbitrary: fc.constant("") },
      {
        weight: 1,
        arbitrary: fc
          .array(
            fc.tuple(
              fc.constantFrom("limit", "cursor", "status", "owner", "shard", "label", "x", "lagMs"),
              fc.oneof(
                fc.constantFrom("1", "-1", "a:b", "e30", "bnVsbA", "[]", "active", "east"),
                fc.string({ maxLength: 10 }),
              ),
            ),
            { maxLength: 3 },
          )
          .map((pairs) => `?${new URLSearchParams(pairs).toString()}`),
      },
    );
    const one = fc.record({ operation: fc.constantFrom(...operations), id, bytes, headers, types, query });
    const seen = new Map<number, number>();
    const reached = new Set<string>();
    const property = fc.asyncProperty(
      fc.array(one, { minLength: 8, maxLength: 8 }),
      fc.nat(2),
      async (requests, first) => {
        await Promise.all(
          requests.map(async ({ operation, id: named, bytes: sent, headers: extra, types: type, query: asked }, i) => {
            const { method, path } = operation;
            const where = path.replace("{id}", named) + asked;
            const withBody = method !== "GET" && method !== "DELETE";
            const size = Buffer.byteLength(sent);
            const got = await raw(
              at(stack.dcs, (first + i) % 3),
              method,
              where,
              {
                ...extra,
                "hothot-timeout-ms": "3000",
                ...(withBody ? { "content-type": type, "content-length": String(size) } : {}),
              },
              withBody ? sent : undefined,
            );
            assert.notEqual(got.status, 500, `${method} ${where} ${sent.slice(0, 300)}: ${got.text}`);
            seen.set(got.status, (seen.get(got.status) ?? 0) + 1);
            reached.add(`${method} ${path}`);
            const answered = got.headers["content-type"] ?? "";
            if (path.includes("{id}") && !/^[A-Za-z0-9._:-]{1,128}$/.test(decoded(named))) return;
            const isJson = /^application\/(problem\+)?json\b/.test(answered) && got.text !== "";
            checkAnswer(document, method, where, {
              status: got.status,
              type: answered,
              text: got.text,
              json: isJson ? (JSON.parse(got.text) as unknown) : undefined,
            });
          }),
        );
      },
    );
    await fc.assert(property, { numRuns: 20 });
    const warm = residents();
    await fc.assert(property, { numRuns: 60 });
    const end = residents();
    t.diagnostic(`resident MB: ${warm.join(", ")} after 160 requests, ${end.join(", ")} after 640`);
    // The heap of an idle process may grow a little; 480 bodies and answers that are kept are more.
    for (const [n, mb] of end.entries())
      assert.ok(mb < at(warm, n) + 250, `${at(stack.dcs, n)} grew from ${at(warm, n)} to ${mb} MB`);
    assert.equal(reached.size, operations.length, "every operation was asked");
    assert.ok((seen.get(200) ?? 0) + (seen.get(201) ?? 0) > 20, JSON.stringify([...seen]));
    assert.ok((seen.get(400) ?? 0) > 50, JSON.stringify([...seen]));
    await allServe(stack);
  });

  it("is refused for a cursor that no list has made", async () => {
    const made = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
    const time = "2026-01-01T00:00:00.000Z";
    for (const cursor of [
      "AAAA",
      made(1),
      made([]),
      made(["2026-13-45T99:00:00Z", 1, 1]),
      made([time, 2 ** 40, 1]),
      made([time, 1.5, 1]),
      made([time, "\u0000"]),
      made([time, -1, 1]),
    ])
      problem(await on("west", "GET", `/v1/history?cursor=${cursor}`), "invalid_request");
    for (const where of ["/v1/clusters", "/v1/jobs", "/v1/divergent-operations", "/v1/audit"])
      problem(await on("west", "GET", `${where}?cursor=AAAA`), "invalid_request");
    body(await on("west", "GET", `/v1/history?cursor=${made([time, 1, 1])}`), 200);
  });

  it("agrees with a model of clusters, in any order and through any datacenter", async () => {
    const command = fc.record({
      what: fc.constantFrom("put", "create", "patch", "delete", "get", "putIfAbsent", "putIfVersion"),
      id: fc.constantFrom("model-1", "model-2", "model-3"),
      dc: fc.nat(2),
      value: fc.nat(9),
    });
    let round = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(command, { minLength: 6, maxLength: 14 }), async (commands) => {
        const prefix = `r${round++}-`;
        const model = new Map<string, { version: number; value: number }>();
        for (const { what, id: name, dc: index, value } of commands) {
          const dc = at(stack.dcs, index);
          const id = prefix + name;
          const known = model.get(id);
          const fields = { name: "m", spec: { value } };
          const where = `/v1/clusters/${id}`;
          switch (what) {
            case "put":
            case "putIfAbsent":
            case "putIfVersion": {
              const headers: Record<string, string> =
                what === "put" ? {} : what === "putIfAbsent" ? { "if-none-match": "*" } : { "if-match": `"${value}"` };
              const got = await on(dc, "PUT", where, fields, headers);
              const refused =
                (what === "putIfAbsent" && known !== undefined) ||
                (what === "putIfVersion" && known?.version !== value);
              if (refused) problem(got, "version_mismatch");
              else {
                const version = (known?.version ?? 0) + 1;
                assert.equal(body(got, known === undefined ? 201 : 200)["version"], version);
                model.set(id, { version, value });
              }
              break;
            }
            case "create": {
              const got = await on(dc, "POST", "/v1/clusters", { id, ...fields });
              if (known !== undefined) problem(got, "already_exists");
              else {
                body(got, 201);
                model.set(id, { version: 1, value });
              }
              break;
            }
            case "patch": {
              const got = await on(dc, "PATCH", where, { spec: { value } });
              if (known === undefined) problem(got, "not_found");
              else {
                assert.equal(body(got, 200)["version"], known.version + 1);
                model.set(id, { version: known.version + 1, value });
              }
              break;
            }
            case "delete": {
              const got = await on(dc, "DELETE", where);
              if (known === undefined) problem(got, "not_found");
              else {
                assert.equal(got.status, 204);
                model.delete(id);
              }
              break;
            }
            case "get": {
              const got = await on(dc, "GET", where, undefined, {
                "hothot-consistency": "owner",
                "hothot-durability": value % 2 === 0 ? "local" : "replicated",
              });
              if (known === undefined) problem(got, "not_found");
              else {
                const row = body<{ version: number; spec: Json }>(got, 200);
                assert.deepEqual([row.version, row.spec["value"]], [known.version, known.value]);
              }
            }
          }
        }
      }),
      { numRuns: 20 },
    );
    await allEqual(stack, "west");
  });

  it("leaves its id and its trace in the logs of whom it passes, and of whom its records reach", async () => {
    const id = "traced-1";
    const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const headers = { "x-request-id": "a-request-of-mine", traceparent };
    const answer = await on("east", "PUT", `/v1/clusters/${id}`, { name: "n", spec: {} }, headers);
    body(answer, 201);
    assert.equal(answer.headers.get("x-request-id"), "a-request-of-mine");
    const owner = answer.headers.get("hothot-owner");
    for (const dc of stack.dcs.filter((each) => each !== owner)) {
      body(await on(dc, "GET", `/v1/clusters/${id}`, undefined, after(answer)), 200);
      const line = await stack.until(
        () =>
          stack
            .logs(dc)
            .split("\n")
            .find((each) => each.includes('"applied"') && each.includes("a-request-of-mine")),
        5_000,
        `the applier of ${dc} names the request`,
      );
      const { requests } = JSON.parse(line) as { requests: Json[] };
      const named = requests.find((each) => each["requestId"] === "a-request-of-mine");
      assert.equal(named?.["traceparent"], traceparent);
    }
    assert.match(stack.logs("east"), /"requestId":"a-request-of-mine".*"route":"\/v1\/clusters\/\{id\}"/);
  });

  it("is remembered by its key as long as was configured, and the key is gone then", async () => {
    const id = "aging-1";
    const key = { "idempotency-key": "grows-old" };
    const put = (dc: string, name = "n"): Promise<Answered> =>
      on(dc, "PUT", `/v1/clusters/${id}`, { name, spec: {} }, key);
    body(await put("east"), 201);
    assert.equal((await put("west")).headers.get("idempotency-replayed"), "true");
    await stack.until(
      async () => {
        const again = await put("west");
        return again.status === 200 && again.headers.get("idempotency-replayed") === null;
      },
      retentionMs * 3,
      "the key counts no more",
    );
    // Used anew, it is bound anew.
    problem(await put("east", "other"), "idempotency_key_reused");
    for (const dc of stack.dcs) {
      const database = databaseOf(stack, dc);
      try {
        await stack.until(
          async () =>
            (await database.pool.query("SELECT 1 FROM idempotency_keys WHERE key = 'grows-old'")).rows.length === 0,
          retentionMs * 4,
          `the key is gone in ${dc}`,
        );
      } finally {
        await database.close();
      }
    }
  });

  it("answers a fault of ours with nothing but an id that finds the log line", async () => {
    const database = databaseOf(stack, "east");
    try {
      await database.pool.query("ALTER TABLE divergent_operations RENAME TO divergent_away");
      const answer = await on("east", "GET", "/v1/divergent-operations");
      assert.equal(answer.status, 500);
      const { requestId, detail } = body<{ requestId: string; detail: string }>(answer, 500);
      assert.doesNotMatch(answer.text, /relation|divergent_operations"/);
      assert.equal(detail, "A fault of ours.");
      await stack.until(
        () =>
          stack
            .logs("east")
            .split("\n")
            .some((each) => each.includes(requestId) && each.includes("error") && each.includes("does not exist")),
        5_000,
        "the log line of the fault",
      );
    } finally {
      await database.pool.query("ALTER TABLE divergent_away RENAME TO divergent_operations");
      await database.close();
    }
  });
});

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return "\u0000";
  }
}
