import assert from "node:assert/strict";
import type { IncomingMessage } from "node:http";
import test from "node:test";
import type { AuditEntry } from "../../services/access/audit.js";
import { ForbiddenNotes } from "../../services/access/forbidden.js";
import { ManualTime } from "../harness/manual-time.js";
import { startHttp } from "./http-support.js";

function notes() {
  const time = new ManualTime();
  const entries: AuditEntry[] = [];
  const note = async (entry: AuditEntry): Promise<void> => void entries.push(entry);
  const forbidden = new ForbiddenNotes({ dc: "east", note, newId: () => `a-${entries.length}`, time });
  const refuse = (principal: string, method: string, url: string, route: string): void =>
    forbidden.refused(
      { tenant: "", principal },
      { scope: "admin", write: false, again: false, route: `${method} ${route}` },
      {
        method,
        url,
      } as IncomingMessage,
    );
  return { time, entries, refuse };
}

test("a caller who is refused again and again leaves an entry a route and minute, whatever ids it names", async () => {
  const { time, entries, refuse } = notes();
  for (let n = 0; n < 500; n++) {
    refuse("rita", "DELETE", `/v1/tokens/r${n}?x=${n}`, "/v1/tokens/{id}");
    if (n === 250) refuse("other", "DELETE", "/v1/tokens/r1", "/v1/tokens/{id}");
    await time.advance(100);
  }
  assert.deepEqual(
    entries.map(({ who, action, result }) => [who, action, result]),
    [
      ["rita", "DELETE /v1/tokens/r0", "forbidden"],
      ["other", "DELETE /v1/tokens/r1", "forbidden"],
    ],
  );
  await time.advance(60_000);
  refuse("rita", "DELETE", "/v1/tokens/late", "/v1/tokens/{id}");
  assert.equal(entries.at(-1)?.action, "DELETE /v1/tokens/late");
});

test("a caller who tries everything leaves ten entries a minute", async () => {
  const { time, entries, refuse } = notes();
  for (let minute = 0; minute < 3; minute++) {
    for (let n = 0; n < 40; n++) refuse("rita", "POST", `/v1/${n}`, `/v1/${n}`);
    assert.equal(entries.length, 10 * (minute + 1));
    await time.advance(60_000);
  }
});

test("HTTP names the route of what was asked, not its path", async () => {
  const seen: string[] = [];
  const t = await startHttp({
    admit: (_request, { scope, route }) => {
      seen.push(`${scope} ${route}`);
      return { tenant: "", principal: "rita" };
    },
  });
  try {
    for (const id of ["r1", "r2"]) await t.ask("DELETE", `/v1/tokens/${id}?x=1`);
    assert.deepEqual(seen, Array<string>(2).fill("admin DELETE /v1/tokens/{id}"));
  } finally {
    await t.stop();
  }
});
