import { pack } from "msgpackr";
import type { JsonObject } from "../../replication/entities.js";

/** The last `limit` units at the most. A character of two, of which the cut would leave one, goes whole: PostgreSQL stores no half. */
export function tailOf(text: string, limit: number): string {
  if (text.length <= limit) return text;
  const tail = text.slice(text.length - limit);
  return /^[\uDC00-\uDFFF]/.test(tail) ? tail.slice(1) : tail;
}

/** As the list of a job's tasks shows them. */
export interface TaskList extends JsonObject {
  readonly items: readonly JsonObject[];
}

/**
 * The list with so much of what the tasks printed as `most` bytes, packed, have room for: each keeps its end, and those that
 * printed little keep it whole. Where even the rest is too much, nothing of it is left.
 */
export function shortened(list: TaskList, most: number): TaskList {
  const packed = pack(list).length;
  if (packed <= most) return list;
  const sizes = list.items.flatMap(({ stdout, stderr }) => [stdout, stderr].map(bytesOf)).sort((a, b) => a - b);
  let room = most - packed + sizes.reduce((sum, bytes) => sum + bytes, 0);
  let each = 0;
  for (const [index, bytes] of sizes.entries()) {
    each = Math.max(0, Math.floor(room / (sizes.length - index)));
    if (bytes > each) break;
    room -= bytes;
  }
  const end = (text: unknown): unknown => (typeof text === "string" ? endOf(text, each) : text);
  return {
    ...list,
    items: list.items.map((task) => ({ ...task, stdout: end(task["stdout"]), stderr: end(task["stderr"]) })),
  };
}

const bytesOf = (text: unknown): number => (typeof text === "string" ? Buffer.byteLength(text) : 0);

/** The end of a text, of whole characters in at most so many bytes of UTF-8. */
function endOf(text: string, most: number): string {
  const bytes = Buffer.from(text);
  let from = Math.max(0, bytes.length - most);
  while (((bytes[from] ?? 0) & 0xc0) === 0x80) from++;
  return from === 0 ? text : bytes.toString("utf8", from);
}
