import type { IncomingMessage } from "node:http";
import type { Time } from "../../infra/clock.js";
import type { Caller } from "../api.js";
import type { Need } from "./access.js";
import type { AuditEntry } from "./audit.js";

/**
 * Entries stay for ever, so no caller makes many: one for each route in this time (whatever ids the paths name), so many in
 * all; of so many callers at once.
 */
const everyMs = 60_000;
const most = 10;
const bound = 1_000;

/** Notes callers who tried what only operators and administrators may do. */
export class ForbiddenNotes {
  /** Of each caller, when a refusal was noted last, by route. */
  readonly #last = new Map<string, Map<string, number>>();

  constructor(
    private readonly o: {
      readonly dc: string;
      readonly note: (entry: AuditEntry) => Promise<void>;
      readonly newId: () => string;
      readonly time: Time;
    },
  ) {}

  refused(caller: Caller, need: Need, request: IncomingMessage): void {
    if (need.scope !== "operate" && need.scope !== "admin") return;
    const path = (request.url ?? "").split("?", 1)[0] ?? "";
    const action = `${request.method ?? ""} ${path.slice(0, 200)}`;
    const who = `${caller.tenant}/${caller.principal}`;
    const now = this.o.time.monotonic();
    const noted = this.#last.get(who) ?? new Map<string, number>();
    for (const [route, at] of noted) if (now - at >= everyMs) noted.delete(route);
    if (noted.has(need.route) || noted.size >= most) return;
    noted.set(need.route, now);
    this.#last.delete(who);
    this.#last.set(who, noted);
    if (this.#last.size > bound) for (const oldest of this.#last.keys()) if (this.#last.delete(oldest)) break;
    // Nobody waits for it, and it never fails.
    void this.o.note({
      id: this.o.newId(),
      at: new Date(this.o.time.wall()).toISOString(),
      who: caller.principal,
      dc: this.o.dc,
      action,
      target: {},
      result: "forbidden",
      detail: `needs the scope ${need.scope}`,
      requestId: null,
    });
  }
}
