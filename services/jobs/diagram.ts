import type { Transition } from "./states.js";

/** A mermaid state diagram of a transition table; refused events are left out. */
export function diagramOf(table: readonly Transition<string, string>[]): string {
  const lines: string[] = [];
  const edges = new Map<string, string[]>();
  for (const row of table) {
    if (row.next === null) continue;
    const edge = `${row.current === "none" ? "[*]" : row.current} --> ${row.next}`;
    edges.set(edge, [...(edges.get(edge) ?? []), row.event]);
  }
  for (const [edge, events] of edges) lines.push(`  ${edge}: ${events.join(", ")}`);
  return ["```mermaid", "stateDiagram-v2", ...lines, "```"].join("\n");
}

/** The table itself, as Markdown. */
export function tableOf(table: readonly Transition<string, string>[]): string {
  const cell = (row: Transition<string, string>): string =>
    row.next ?? `refused: \`${row.refusal ?? "invalid_transition"}\``;
  return [
    "| current | event | next | why |",
    "| --- | --- | --- | --- |",
    ...table.map((row) => `| ${row.current} | ${row.event} | ${cell(row)} | ${row.why} |`),
  ].join("\n");
}

/**
 * The page with what stands between `<!-- <name>: generated from states.ts -->` and `<!-- end -->` replaced by the section of that name.
 * @throws Error when the page has no such place.
 */
export function withGenerated(page: string, sections: Readonly<Record<string, string>>): string {
  let out = page;
  for (const [name, text] of Object.entries(sections)) {
    const begin = `<!-- ${name}: generated from states.ts -->`;
    const from = out.indexOf(begin);
    const to = out.indexOf("<!-- end -->", from);
    if (from < 0 || to < 0) throw new Error(`the page has no place for ${name}`);
    out = `${out.slice(0, from + begin.length)}\n\n${text}\n\n${out.slice(to)}`;
  }
  return out;
}
