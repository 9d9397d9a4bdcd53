import assert from "node:assert/strict";
import test from "node:test";
import { readConfig } from "../../infra/config.js";
import { FatalError } from "../../infra/errors.js";

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
