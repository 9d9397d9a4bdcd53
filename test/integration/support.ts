import assert from "node:assert/strict";
import { problems, type ProblemCode } from "../../infra/errors.js";
import { shardOf } from "../../shards/ids.js";
import { checkAnswer, type ApiDocument } from "../harness/openapi.js";
import type { TestStack } from "../harness/stack.js";

/** Shards of the stacks that these tests start. */
export const shards = 64;
/** Milliseconds by which a stack has settled after a fault, on a busy machine. */
export const settleMs = 30_000;

export type Json = Record<string, unknown>;

/** One answer, as it came. */
export interface Answered {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** Monotonic milliseconds. */
  readonly at: number;
  readonly dc: string;
}

export interface Place {
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
}

export interface ShardView {
  readonly shard: number;
  readonly partition: number;
  readonly owner: string | null;
  readonly epoch: number;
  readonly state: string;
  readonly position: number;
  /** Why its log can't be applied there any more. */
  readonly stopped?: string;
}

export interface VerifyLine {
  readonly shard: number;
  readonly dc: string;
  readonly epoch: number;
  readonly position: number;
  readonly equal: boolean;
  readonly clusters: readonly string[];
}

/** One request; a string is sent as it is. @throws when nobody answers within `ms`. */
export async function send(
  stack: Pick<TestStack, "url">,
  dc: string,
  method: string,
  where: string,
  body?: unknown,
  headers: Readonly<Record<string, string>> = {},
  ms = 60_000,
): Promise<Answered> {
  const answer = await fetch(`${stack.url(dc)}${where}`, {
    method,
    headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    signal: AbortSignal.timeout(ms),
  });
  const text = await answer.text();
  await checkDocumented(stack.url(dc), method, where, answer, text);
  return { status: answer.status, headers: answer.headers, text, at: performance.now(), dc };
}

const documents = new Map<string, Promise<ApiDocument>>();

/** Every answer is one that the datacenter's own document foresees. */
async function checkDocumented(
  url: string,
  method: string,
  where: string,
  answer: Response,
  text: string,
): Promise<void> {
  let document = documents.get(url);
  if (document === undefined) {
    document = fetch(`${url}/openapi.json`).then(async (found) => (await found.json()) as ApiDocument);
    document.catch(() => documents.delete(url));
    documents.set(url, document);
  }
  const type = answer.headers.get("content-type") ?? "";
  const json = /^application\/(problem\+)?json\b/.test(type) && text !== "" ? (JSON.parse(text) as unknown) : undefined;
  // It may have died since it answered.
  const known = await document.catch(() => undefined);
  if (known !== undefined) checkAnswer(known, method, where, { status: answer.status, type, text, json });
}

/** The answer's JSON, once its status is the one wanted. */
export function body<T = Json>(answer: Answered, status: number): T {
  assert.equal(answer.status, status, `${answer.dc}: ${answer.status} ${answer.text}`);
  return JSON.parse(answer.text) as T;
}

/** Hothot-Position, which must be there. */
export function placeOf(answer: Answered): Place {
  const text = answer.headers.get("hothot-position") ?? "";
  const parts = /^(\d+):(\d+):(\d+)$/.exec(text);
  assert.ok(parts, `Hothot-Position is ${JSON.stringify(text)} with ${answer.status} ${answer.text}`);
  return { shard: Number(parts[1]), epoch: Number(parts[2]), position: Number(parts[3]) };
}

export const placeText = ({ shard, epoch, position }: Place): string => `${shard}:${epoch}:${position}`;
export const after = (answer: Answered): Record<string, string> => ({
  "hothot-min-position": placeText(placeOf(answer)),
});

/** A problem with this code and everything that every problem has. */
export function problem(answer: Answered, code: ProblemCode): Json {
  const found = body(answer, problems[code].status);
  assert.equal(found["code"], code, answer.text);
  assert.match(answer.headers.get("content-type") ?? "", /^application\/problem\+json\b/);
  assert.equal(found["type"], `urn:hothot:problem:${code}`);
  assert.ok(typeof found["title"] === "string" && found["title"].length > 0, "title");
  assert.equal(found["status"], problems[code].status);
  assert.ok(typeof found["detail"] === "string" && found["detail"].length > 0, "detail");
  assert.equal(found["retryable"], problems[code].retryable);
  assert.ok(typeof found["requestId"] === "string" && found["requestId"].length > 0, "requestId");
  assert.equal(answer.headers.get("x-request-id"), found["requestId"]);
  if (answer.status === 503) assert.match(answer.headers.get("retry-after") ?? "none", /^[1-9]\d*$/);
  if (code === "invalid_request") {
    const errors = found["errors"];
    assert.ok(Array.isArray(errors) && errors.length > 0, "errors");
    for (const error of errors as Json[]) {
      assert.equal(typeof error["path"], "string");
      assert.equal(typeof error["message"], "string");
    }
  }
  return found;
}

/** The shard map as one datacenter has it. */
export async function shardMap(stack: Pick<TestStack, "url">, dc: string): Promise<ShardView[]> {
  return body<{ items: ShardView[] }>(await send(stack, dc, "GET", "/v1/shards?limit=1000"), 200).items;
}

export interface OwnershipChange {
  readonly id: string;
  readonly at: string;
  readonly shard: number;
  readonly epoch: number;
  readonly from: string | null;
  readonly to: string;
  readonly kind: string;
  readonly reason: string;
  readonly by: string;
  readonly phasesMs: Readonly<Record<string, number>>;
  readonly drained: number;
  readonly divergent: number;
}

const phasesOf = { initial: [], takeover: ["votes", "wait"], planned: ["hold", "carry", "flush"] } as const;
const laterPhases = ["open", "serve"];

/** The history, once each of these datacenters says the same. */
export async function sameHistory(
  stack: Pick<TestStack, "url" | "until">,
  dcs: readonly string[],
): Promise<OwnershipChange[]> {
  return stack.until(
    async () => {
      const [first = [], ...others] = await Promise.all(
        dcs.map(
          async (dc) =>
            body<{ items: OwnershipChange[] }>(await send(stack, dc, "GET", "/v1/history?limit=1000"), 200).items,
        ),
      );
      for (const other of others) assert.deepEqual(other, first);
      for (const change of first) {
        const { from, to, kind, phasesMs, drained, divergent } = change;
        const wanted = phasesOf[kind as keyof typeof phasesOf] ?? phasesOf.planned;
        const phases = Object.keys(phasesMs).filter((name) => !laterPhases.includes(name));
        if (from !== to) assert.deepEqual(phases.sort(), [...wanted].sort(), JSON.stringify(change));
        for (const value of [...Object.values(phasesMs), drained, divergent])
          assert.ok(Number.isInteger(value) && value >= 0, JSON.stringify(change));
      }
      return first;
    },
    settleMs,
    `${dcs.join(", ")} tell the same history`,
  );
}

/** How long the append and the opening took is known, too. */
export const followed = ({ phasesMs }: OwnershipChange): boolean => laterPhases.every((name) => name in phasesMs);

/** Ids that hash to shards owned by `owner`, as `map` says; each call with another `prefix`. */
export function idsOf(map: readonly ShardView[], owner: string, prefix: string, count: number): string[] {
  const mine = new Set(map.filter((shard) => shard.owner === owner).map((shard) => shard.shard));
  return idsWhere((id) => mine.has(shardOf(id, shards)), prefix, count);
}

/** Ids of one shard. */
export const idsIn = (shard: number, prefix: string, count: number): string[] =>
  idsWhere((id) => shardOf(id, shards) === shard, prefix, count);

function idsWhere(wanted: (id: string) => boolean, prefix: string, count: number): string[] {
  const found: string[] = [];
  for (let number = 0; found.length < count; number++) {
    assert.ok(number < 100_000, `no ${count} such ids`);
    if (wanted(`${prefix}-${number}`)) found.push(`${prefix}-${number}`);
  }
  return found;
}

/** Waits until every datacenter says that all of them serve. */
export async function allServe(stack: TestStack, ms = settleMs): Promise<void> {
  await stack.until(
    async () => {
      for (const dc of stack.dcs) {
        if ((await send(stack, dc, "GET", "/readyz")).status !== 200) throw new Error(`${dc} is not ready`);
        const { datacenters } = body<{ datacenters: Json[] }>(await send(stack, dc, "GET", "/v1/topology"), 200);
        const other = datacenters.find((each) => each["state"] !== "serving");
        if (other !== undefined) throw new Error(`${dc} sees ${String(other["name"])} as ${String(other["state"])}`);
        const lost = (await shardMap(stack, dc)).find((shard) => shard.state !== "owned");
        if (lost !== undefined) throw new Error(`${dc} sees shard ${lost.shard} as ${lost.state}`);
      }
      return true;
    },
    ms,
    "every datacenter serves",
  );
}

/** Asks one datacenter whether all copies are equal, until they are; a copy that differs at rest stays so. */
export async function allEqual(stack: TestStack, dc: string, ms = settleMs): Promise<VerifyLine[]> {
  return stack.until(
    async () => {
      const answer = await send(stack, dc, "GET", "/v1/verify");
      assert.equal(answer.status, 200, answer.text);
      const lines = answer.text
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as VerifyLine);
      assert.equal(lines.length, shards * stack.dcs.length);
      const differs = lines.filter((line) => !line.equal);
      if (differs.length > 0) throw new Error(`they differ: ${JSON.stringify(differs.slice(0, 5))}`);
      return lines;
    },
    ms,
    "all copies are equal",
  );
}

/** The time that `action` took, milliseconds; give a function where it must not be too short. */
export async function timed<T>(action: Promise<T> | (() => Promise<T>)): Promise<{ ms: number; value: T }> {
  const began = performance.now();
  const value = await (typeof action === "function" ? action() : action);
  return { ms: performance.now() - began, value };
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** What is at `index`, which must be there. */
export function at<T>(list: readonly T[], index: number): T {
  const found = list.at(index);
  assert.ok(found !== undefined, `there is no item ${index} of ${list.length}`);
  return found;
}
