import type { IncomingMessage } from "node:http";
import type { Time } from "../../infra/clock.js";
import type { Caller } from "../api.js";
import type { Need } from "./access.js";
import type { AuditEntry } from "./audit.js";

/** The same caller's refusals are noted at most so often, and of so many callers at once. */
const everyMs = 10_000;
const bound = 1_000;

/** Notes callers who tried what only operators and administrators may do. */
export class ForbiddenNotes {
  readonly #last = new Map<string, number>();

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
    const key = `${caller.tenant}/${caller.principal} ${action}`;
    const now = this.o.time.monotonic();
    if (now - (this.#last.get(key) ?? -Infinity) < everyMs) return;
    this.#last.delete(key);
    this.#last.set(key, now);
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
