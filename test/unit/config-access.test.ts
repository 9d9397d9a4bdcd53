import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import path from "node:path";
import { describe, it } from "node:test";
import { readConfig } from "../../infra/config.js";
import { FatalError } from "../../infra/errors.js";
import { needsTokens } from "../../services/access/access.js";

const good = {
  HOTHOT_GROUP: "g",
  HOTHOT_DC: "east",
  HOTHOT_DATABASE_URL: "postgres://u:secret@h:5432/d",
  HOTHOT_NATS_URLS: "nats://u:secret@h:4222",
};
const faultsOf = (more: Record<string, string>): string => {
  try {
    readConfig({ ...good, ...more });
    return "";
  } catch (error) {
    assert.ok(error instanceof FatalError);
    return error.message;
  }
};

describe("the configuration of access", () => {
  it("names every fault at once, and no secret", () => {
    const faults = faultsOf({
      HOTHOT_PORT: "x",
      HOTHOT_LEASE_MS: "1",
      HOTHOT_NO_SUCH: "1",
      HOTHOT_DATABASE_URL: "secret",
    });
    for (const name of ["PORT", "LEASE_MS", "NO_SUCH", "DATABASE_URL"])
      assert.match(faults, new RegExp(`HOTHOT_${name}:`));
    assert.doesNotMatch(faults, /secret/);
  });

  it("refuses to listen beyond loopback without tokens, unless it is told in so many words", () => {
    for (const host of ["0.0.0.0", "::", "10.0.0.1", "hothot.example", "127.example"]) {
      assert.match(faultsOf({ HOTHOT_HOST: host }), /HOTHOT_HOST: listens beyond loopback without tokens/, host);
      for (const told of [
        { HOTHOT_NO_TOKENS: "true" },
        { HOTHOT_NO_TOKENS: "false" },
        { HOTHOT_ADMIN_TOKEN: "x".repeat(20) },
        { HOTHOT_JWKS_URL: "https://issuer.example/keys" },
      ]) {
        assert.equal(faultsOf({ HOTHOT_HOST: host, ...told }), "", host);
        const config = readConfig({ ...good, HOTHOT_HOST: host, ...told });
        assert.equal(needsTokens(config), !("HOTHOT_NO_TOKENS" in told && told.HOTHOT_NO_TOKENS === "true"));
      }
    }
    for (const host of ["127.0.0.1", "localhost", "::1", "127.0.0.2"]) {
      assert.equal(faultsOf({ HOTHOT_HOST: host }), "", host);
      assert.equal(needsTokens(readConfig({ ...good, HOTHOT_HOST: host })), false);
    }
  });

  it("takes --drain-ms from the command line, over the environment", () => {
    const main = path.join(import.meta.dirname, "../../services/main.js");
    const env = { PATH: process.env["PATH"], ...good, HOTHOT_DRAIN_MS: "100" };
    const done = spawnSync(process.execPath, [main, "serve", "--drain-ms", "never"], { env, encoding: "utf8" });
    assert.equal(done.status, 1);
    assert.match(done.stderr, /HOTHOT_DRAIN_MS: must be a whole number/);
  });
});
