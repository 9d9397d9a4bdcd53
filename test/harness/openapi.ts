import assert from "node:assert/strict";
import { z } from "zod";

interface Operation {
  readonly responses: Readonly<
    Record<string, { readonly content?: Readonly<Record<string, { readonly schema: object }>> }>
  >;
}
export interface ApiDocument {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, object>> };
}

const validators = new Map<string, z.ZodType>();

/** One answer, as it came. */
export interface Answer {
  readonly status: number;
  /** Content-Type. */
  readonly type: string;
  readonly text: string;
  /** The body, if it is JSON. */
  readonly json: unknown;
}

/** Fails when the answer is not what the document says of its request. */
export function checkAnswer(document: ApiDocument, method: string, path: string, got: Answer): void {
  const bare = path.split("?")[0] ?? "";
  if (method === "HEAD" || bare === "/") return;
  const exact = document.paths[bare]?.[method.toLowerCase()] === undefined ? undefined : bare;
  const at =
    exact ??
    Object.keys(document.paths).find(
      (known) => matches(known, bare) && document.paths[known]?.[method.toLowerCase()] !== undefined,
    );
  const operation = at === undefined ? undefined : document.paths[at]?.[method.toLowerCase()];
  if (operation === undefined) {
    assert.ok(
      [404, 405, 400].includes(got.status),
      `${method} ${path} is not in the document, and was answered ${got.status}`,
    );
    valid(document, document.components.schemas["Problem"] ?? {}, "Problem", got.json);
    return;
  }
  const response = operation.responses[String(got.status)];
  assert.ok(response, `${method} ${at} does not document ${got.status}: ${got.text}`);
  if (response.content === undefined) return assert.equal(got.text, "");
  const type = got.type.split(";")[0] ?? "";
  const content = response.content[type];
  assert.ok(content, `${method} ${at} ${got.status} does not document ${type}`);
  if (/^application\/(problem\+)?json$/.test(type))
    valid(document, content.schema, `${method} ${at} ${got.status}`, got.json);
}

function matches(known: string, path: string): boolean {
  return new RegExp(`^${known.replaceAll(".", "\\.").replaceAll(/\{\w+\}/g, "[^/]+")}$`).test(path);
}

function valid(document: ApiDocument, schema: object, name: string, value: unknown): void {
  let validator = validators.get(name);
  if (validator === undefined) {
    validator = z.fromJSONSchema(inlined(document, schema) as Parameters<typeof z.fromJSONSchema>[0]);
    validators.set(name, validator);
  }
  const parsed = validator.safeParse(value);
  assert.ok(parsed.success, `${name}: ${JSON.stringify(parsed.error?.issues)} in ${JSON.stringify(value)}`);
}

function inlined(document: ApiDocument, value: unknown): unknown {
  if (Array.isArray(value)) return value.map((item) => inlined(document, item));
  if (typeof value !== "object" || value === null) return value;
  const ref = (value as { readonly $ref?: unknown }).$ref;
  if (typeof ref === "string") {
    const target = document.components.schemas[ref.replace("#/components/schemas/", "")];
    assert.ok(target, `${ref} leads nowhere`);
    return inlined(document, target);
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inlined(document, item)]));
}
