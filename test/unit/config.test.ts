import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { readConfig } from "../../infra/config.js";
import { FatalError } from "../../infra/errors.js";
import { readCommandLine } from "../../services/command-line.js";
import { freshFolder } from "../harness/folder.js";

const base = {
  HOTHOT_GROUP: "g",
  HOTHOT_DC: "east",
  HOTHOT_DATABASE_URL: "postgres://u:p@h:5432/d",
  HOTHOT_NATS_URLS: "nats://u:p@h:4222",
};

/** Of a configuration that is refused: the faults that are named. */
function faults(environment: Readonly<Record<string, string>>): string {
  try {
    readConfig({ ...base, ...environment });
  } catch (error) {
    assert.ok(error instanceof FatalError);
    assert.equal(error.code, "bad_configuration");
    return error.message;
  }
  assert.fail("it was accepted");
}

test("a listener beyond loopback needs tokens, or that somebody says in so many words that it needs none", () => {
  assert.match(faults({ HOTHOT_HOST: "0.0.0.0" }), /1 fault[^]*HOTHOT_HOST: .*HOTHOT_NO_TOKENS=true/);
  assert.equal(readConfig({ ...base, HOTHOT_HOST: "0.0.0.0", HOTHOT_NO_TOKENS: "true" }).host, "0.0.0.0");
  assert.equal(readConfig({ ...base, HOTHOT_HOST: "::1" }).host, "::1");
});

test("so does the listener for provisioners, which know no tokens: the other one's say nothing for it", () => {
  const coopr = { HOTHOT_COOPR_PORT: "55054", HOTHOT_COOPR_HOST: "10.0.0.1" };
  const refused = /HOTHOT_COOPR_HOST: listens beyond loopback.*HOTHOT_COOPR_NO_TOKENS=true/;
  assert.match(faults(coopr), refused);
  assert.match(faults({ ...coopr, HOTHOT_NO_TOKENS: "true" }), refused);
  assert.match(faults({ ...coopr, HOTHOT_ADMIN_TOKEN: "x".repeat(20) }), refused);
  assert.match(faults({ ...coopr, HOTHOT_COOPR_NO_TOKENS: "false" }), refused);
  assert.match(faults({ ...coopr, HOTHOT_HOST: "10.0.0.1" }), /2 fault/);
  assert.equal(readConfig({ ...base, ...coopr, HOTHOT_COOPR_NO_TOKENS: "true" }).cooprHost, "10.0.0.1");
  assert.equal(readConfig({ ...base, ...coopr, HOTHOT_COOPR_HOST: "127.0.0.1" }).cooprPort, 55_054);
  assert.equal(readConfig({ ...base, HOTHOT_COOPR_HOST: "10.0.0.1" }).cooprPort, undefined, "off: it listens nowhere");
});

test("what does not go together is named beside what can't be read", () => {
  const named = faults({ HOTHOT_PORT: "abc", HOTHOT_HOST: "0.0.0.0", HOTHOT_LEASE_MS: "400", HOTHOT_MARGIN_MS: "x" });
  assert.match(named, /3 fault/);
  for (const variable of ["PORT", "HOST", "MARGIN_MS"]) assert.match(named, new RegExp(`HOTHOT_${variable}: `));
});

test("a file may call its settings as the environment does; the environment counts more", () => {
  const folder = freshFolder("config");
  const read = (text: string, environment = {}) => {
    const file = path.join(folder, "hothot.yaml");
    writeFileSync(file, text);
    return readConfig(environment, file);
  };
  try {
    const all = Object.entries(base)
      .map(([name, value]) => `${name}: "${value}"\n`)
      .join("");
    assert.equal(read(`${all}HOTHOT_PORT: 9001\nleaseMs: 2000\n`).port, 9001);
    assert.equal(read(`${all}HOTHOT_PORT: 9001\n`, { HOTHOT_PORT: "9002" }).port, 9002);
    for (const wrong of ["HOTHOT_PORT:", "HOTHOT_PORT: true", 'HOTHOT_PORT: ""', "HOTHOT_BOGUS: 1"])
      assert.throws(() => read(`${all}${wrong}\n`), { code: "bad_configuration" }, wrong);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("`serve` and `init` refuse what they don't know, with the way out", () => {
  for (const args of [
    ["serve", "--confg", "x"],
    ["serve", "--config"],
    ["serve", "--config="],
    ["serve", "more"],
    ["init", "--shard", "8"],
    ["init", "--shards", "0"],
    ["init", "--shards=8x"],
    ["bogus"],
    [],
  ])
    assert.throws(() => readCommandLine(args), { code: "wrong_usage" }, args.join(" "));
  const init = readCommandLine(["init", "--sites=a,b", "--witness", "w", "--shards=128", "--dry-run"]);
  assert.deepEqual(
    [init.sites, init.witnesses, init.shards, init.partitions, init.dryRun],
    [["a", "b"], ["w"], 128, undefined, true],
  );
  assert.equal(readCommandLine(["serve", "--config=x.yaml", "--drain-ms", "5"]).config, "x.yaml");
  assert.match(readCommandLine(["serve", "--help"]).help ?? "", /--drain-ms/);
});
