import { asError, Problem } from "../infra/errors.js";
import type { JsonObject } from "../replication/entities.js";
import { partitionOf, type ShardId, type SiteName } from "../shards/ids.js";
import { automaticTakeover, datacentersOf } from "../shards/site-set.js";
import type { Reply, RequestContext } from "./api.js";
import type { CallClient } from "./calls.js";
import type { DatacenterParts } from "./datacenter.js";
import { goneMs } from "./engine/ground.js";
import { heardSites } from "./group-view.js";
import type { MoveKind, MoveRequest } from "./http/index.js";
import { inStep } from "./move-plan.js";
import type { MovePlanner } from "./move-planner.js";
import {
  beginningOf,
  OperationStore,
  type LongOperation,
  type ShardMove,
  type StoredOperation,
} from "./operation-store.js";
import { fingerprintOf, keyName, replayOf } from "./operator-keys.js";

const kinds = {
  switchovers: "switchover",
  drains: "drain",
  failbacks: "failback",
  rebalances: "rebalance",
  takeovers: "takeover",
} as const;
const moveMs = 25_000;
const askMs = 2_000;
const seenMs = 3_000;
/** One try to change the site set, with the reads around it. */
const setTryMs = 3_500;
/** Characters of an operation's name that is made up. */
const nameLength = 12;
/** The log has so long to take an operation's idempotency key, milliseconds. */
const keepMs = 10_000;
const saveAgainMs = 500;

interface Running {
  readonly operation: LongOperation;
  cancelled: boolean;
  /** Why nothing of it may move. */
  refused?: string;
}

/** Operators' ownership changes: planned, shown, run shard by shard, cancelled; asked of any datacenter, carried out by the owners. */
export class Moves {
  readonly #p: DatacenterParts;
  readonly #calls: CallClient;
  readonly #planner: MovePlanner;
  readonly #store: OperationStore;
  readonly #running = new Map<string, Running>();
  readonly #stopped = new AbortController();
  /** Told of each operation that ended. */
  onEnd: (operation: LongOperation) => void = () => undefined;

  constructor(parts: DatacenterParts, calls: CallClient, planner: MovePlanner) {
    this.#p = parts;
    this.#calls = calls;
    this.#planner = planner;
    this.#store = new OperationStore(parts.control, parts.config.node, goneMs(parts.config));
  }

  /** What a process that died left running did not end: it says so. */
  async start(): Promise<void> {
    for (const operation of await this.#store.endLost(true)) this.onEnd(operation);
  }

  stop(): void {
    this.#stopped.abort();
  }

  async startMove(context: RequestContext, kind: MoveKind, request: MoveRequest): Promise<Reply> {
    const { servedBy } = this.#p;
    if (request.dryRun)
      return {
        status: 200,
        body: { shards: await this.#planner.dryRun(kind, request, context.deadline) },
        servedBy,
      };
    const key = context.idempotencyKey;
    const print = key === undefined ? null : printOf(kind, request);
    const name = key === undefined ? this.#p.random.token(nameLength) : keyName(context.caller, key);
    if (print !== null) {
      const first = await this.#begunBefore(name);
      if (first !== undefined) return this.#replay(first, print);
      // Where it began can't be asked, or has forgotten it.
      const kept = await this.#p.operatorKeys.find(name);
      if (kept !== undefined) return replayOf(kept, print, servedBy);
    }
    const moves = await this.#planner.plan(kind, request, context.deadline);
    // What a process ran that is gone for good holds up nobody.
    for (const lost of await this.#store.endLost(false)) this.onEnd(lost);
    const busy = new Set(
      (await this.#store.running()).flatMap((stored) =>
        (this.#running.get(stored.id)?.operation ?? stored).shards
          .filter((s) => s.status === "waiting" || s.status === "running")
          .map((s) => s.shard),
      ),
    );
    const twice = moves.find((move) => busy.has(move.shard));
    if (twice !== undefined)
      throw new Problem("already_moving", `Shard ${twice.shard} is part of an operation that is not finished.`);
    const operation: LongOperation = {
      id: operationId(this.#p.site, name),
      kind: kinds[kind],
      status: "running",
      progress: { done: 0, total: moves.length },
      shards: moves.map((move) => ({ ...move, status: "waiting", error: null })),
      error: null,
      by: context.caller.principal,
      startedAt: new Date(this.#p.time.wall()).toISOString(),
      finishedAt: null,
    };
    const first = await this.#store.begin(operation, print);
    if (first !== undefined) return this.#replay(first, print);
    const entry: Running = { operation, cancelled: false };
    this.#running.set(operation.id, entry);
    void this.#keep(kind, entry, name, print)
      .then(() => this.#run(kind, entry, request))
      .catch((error: unknown) =>
        this.#p.log.error("a long operation failed", { operation: operation.id, error: asError(error) }),
      )
      .finally(() => this.#running.delete(operation.id));
    return { status: 202, body: beginningOf(operation), servedBy };
  }

  /**
   * Nothing moves before all datacenters can know its key: once another operator has moved on, a repetition must not move it again.
   * A takeover doesn't wait for the log, and takes what is owned alive from nobody.
   */
  async #keep(kind: MoveKind, entry: Running, name: string, print: string | null): Promise<void> {
    if (print === null) return;
    const answer = { fingerprint: print, status: 202, body: beginningOf(entry.operation) };
    const kept = this.#p.operatorKeys.keep(name, answer, this.#p.time.monotonic() + keepMs).catch((error: unknown) => {
      const why = error instanceof Problem ? `${error.code}: ${error.message}` : "internal";
      this.#p.log.warn("an operation's idempotency key is known here alone", { operation: entry.operation.id, why });
      entry.refused = `its idempotency key could not be kept: ${why}`;
    });
    if (kind !== "takeovers") await kept;
  }

  /** What any datacenter has begun under this name, as far as they can be asked. */
  async #begunBefore(name: string): Promise<StoredOperation | undefined> {
    const asked = datacentersOf(this.#p.siteSets.set).map(async (dc) => {
      const id = operationId(dc, name);
      if (dc === this.#p.site) return this.#store.find(id);
      return (await this.#calls.call(dc, "begun", { id }, askMs).catch(() => null)) ?? undefined;
    });
    return (await Promise.all(asked)).find((found) => found !== undefined);
  }

  #replay(first: StoredOperation, print: string | null): Reply {
    if (first.fingerprint !== print) throw new Problem("idempotency_key_reused");
    return { status: 202, body: beginningOf(first.body), servedBy: this.#p.servedBy, replayed: true };
  }

  async getMove(_context: RequestContext, kind: MoveKind, id: string): Promise<Reply> {
    return { status: 200, body: await this.#find(kind, id, false), servedBy: this.#p.servedBy };
  }

  async cancelMove(_context: RequestContext, kind: MoveKind, id: string): Promise<Reply> {
    return { status: 200, body: await this.#find(kind, id, true), servedBy: this.#p.servedBy };
  }

  /** At the datacenter that was asked. @throws Problem not_found */
  async local(id: string, cancel: boolean): Promise<JsonObject> {
    const entry = this.#running.get(id);
    if (cancel) this.#checkCancel(entry?.operation ?? (await this.#store.find(id))?.body);
    if (entry !== undefined && cancel) entry.cancelled = true;
    if (entry !== undefined) return structuredClone(entry.operation) as unknown as JsonObject;
    for (const operation of await this.#store.endLost(false)) this.onEnd(operation);
    const cancelled = cancel && (await this.#store.cancel(id));
    const found = await this.#store.find(id);
    if (found === undefined) throw new Problem("not_found", `There is no operation ${id}.`);
    if (cancel && !cancelled && found.body.status !== "cancelled")
      throw new Problem("invalid_transition", "The operation has ended.");
    return found.body as unknown as JsonObject;
  }

  /** @throws Problem invalid_transition */
  #checkCancel(operation: LongOperation | undefined): void {
    if (operation?.kind === "takeover" && operation.status === "running")
      throw new Problem(
        "invalid_transition",
        "A takeover can't be cancelled: its votes stop the owner, and all its shards are opened at once.",
      );
  }

  /** The operation that a request with this key began here. */
  async begun(id: string): Promise<StoredOperation | null> {
    return (await this.#store.find(id)) ?? null;
  }

  /** Waits for the log (it may be electing a leader) up to the deadline; each try settles what became of the last. */
  async setFailover(context: RequestContext, paused: boolean): Promise<Reply> {
    const { siteSets, time } = this.#p;
    const began = time.monotonic();
    // What was known here before does not count: another datacenter may just have changed it.
    const stands = (): boolean => siteSets.readAt >= began && siteSets.set.failoverPaused === paused;
    // A look that is under way may have begun before.
    await siteSets.refresh();
    for (;;) {
      const changed = await siteSets.change((set) =>
        set.failoverPaused === paused ? undefined : { ...set, failoverPaused: paused },
      );
      if (changed !== undefined || stands()) break;
      if (time.monotonic() + setTryMs >= context.deadline)
        throw new Problem("no_majority", "The site set could not be changed in the log.", { retryAfterSeconds: 1 });
      await time.sleep(200);
    }
    return {
      status: 200,
      body: { paused, automaticTakeover: automaticTakeover(siteSets.set, heardSites(this.#p)) },
      servedBy: this.#p.servedBy,
    };
  }

  async #find(kind: MoveKind, id: string, cancel: boolean): Promise<unknown> {
    const dc = /^op-(.+)-[0-9a-z]+$/.exec(id)?.[1];
    if (dc === undefined || !datacentersOf(this.#p.siteSets.set).includes(dc))
      throw new Problem("not_found", `There is no operation ${id}.`);
    const found = (await this.#calls.call(dc, "operation", { id, cancel }, askMs).catch((error: unknown) => {
      // To look changes nothing: without an answer nothing is unknown but the answer.
      if (!cancel && error instanceof Problem && error.code === "outcome_unknown")
        throw new Problem("owner_unreachable", `${dc}, which was asked for the operation, does not answer.`);
      throw error;
    })) as LongOperation;
    if (found.kind !== kinds[kind]) throw new Problem("not_found", `There is no operation ${id} of this kind.`);
    return found;
  }

  async #run(kind: MoveKind, entry: Running, request: MoveRequest): Promise<void> {
    const { operation } = entry;
    const finish = (shard: ShardMove, status: ShardMove["status"], error: string | null): void => {
      shard.status = status;
      shard.error = error;
      operation.progress = { done: operation.progress.done + 1, total: operation.progress.total };
    };
    const begun = new Set<number>();
    if (kind === "takeovers") await this.#takeOver(operation, request, finish);
    else
      await inStep(
        operation.shards,
        async (shard) => {
          if (entry.refused !== undefined) return finish(shard, "failed", entry.refused);
          const partition = partitionOf(shard.shard as ShardId, this.#p.partitions);
          // What is cancelled ends between two partitions: one of two owners would not be moved as a whole again.
          if (this.#stopped.signal.aborted || (entry.cancelled && !begun.has(partition)))
            return finish(shard, "cancelled", null);
          begun.add(partition);
          shard.status = "running";
          try {
            const result = await this.#calls.call(
              shard.from ?? "",
              "move",
              {
                shard: shard.shard as ShardId,
                to: shard.to,
                kind: kinds[kind],
                reason: `asked for by ${operation.by}`,
                by: operation.by,
              },
              moveMs,
            );
            if (result.kind === "moved") await this.#seen(shard);
            finish(shard, result.kind === "moved" ? "complete" : "failed", result.kind === "moved" ? null : result.why);
          } catch (error) {
            finish(shard, "failed", error instanceof Problem ? `${error.code}: ${error.message}` : "internal");
          }
        },
        async () => {
          // Shown and cancelled by the datacenter's other processes, too.
          entry.cancelled ||= await this.#store.save(operation).catch(() => false);
        },
      );
    const failed = operation.shards.filter((shard) => shard.status === "failed");
    operation.status =
      failed.length > 0
        ? "failed"
        : entry.cancelled && operation.shards.some((s) => s.status === "cancelled")
          ? "cancelled"
          : "complete";
    operation.error =
      failed.length === 0
        ? null
        : `${failed.length} of ${operation.shards.length} shards did not move: ${failed[0]?.error ?? ""}`;
    operation.finishedAt = new Date(this.#p.time.wall()).toISOString();
    while (!this.#stopped.signal.aborted) {
      try {
        await this.#store.save(operation);
        break;
      } catch (error) {
        this.#p.log.warn("the end of an operation can't be stored", { operation: operation.id, error: asError(error) });
        await this.#p.time.sleep(saveAgainMs, this.#stopped.signal);
      }
    }
    this.onEnd(operation);
  }

  async #takeOver(
    operation: LongOperation,
    request: MoveRequest,
    finish: (shard: ShardMove, status: ShardMove["status"], error: string | null) => void,
  ): Promise<void> {
    const groups = new Map<string, ShardMove[]>();
    for (const shard of operation.shards) {
      const key = `${shard.from ?? ""} ${shard.to}`;
      groups.set(key, [...(groups.get(key) ?? []), shard]);
    }
    await Promise.all(
      [...groups.values()].map(async (shards) => {
        const [first] = shards;
        if (first?.from == null) return shards.forEach((shard) => finish(shard, "failed", "the shard has no owner"));
        let opened: ReadonlySet<number> = new Set();
        let why = "too few sites voted, or the shard moved meanwhile";
        try {
          opened = new Set(
            await this.#calls.call(
              first.to,
              "takeover",
              {
                target: first.from,
                shards: shards.map((s) => s.shard),
                by: operation.by,
                forced: request.force === true,
              },
              moveMs,
            ),
          );
        } catch (error) {
          why = error instanceof Problem ? `${error.code}: ${error.message}` : "internal";
        }
        // Whoever reads the end of the operation here finds the shard's new owner here, too.
        await Promise.all(shards.filter(({ shard }) => opened.has(shard)).map((shard) => this.#seen(shard)));
        for (const shard of shards)
          finish(shard, opened.has(shard.shard) ? "complete" : "failed", opened.has(shard.shard) ? null : why);
      }),
    );
  }

  /** Waits until this datacenter has heard that the shard left its former owner. */
  async #seen({ shard, from }: { readonly shard: number; readonly from: SiteName | null }): Promise<void> {
    const { map, changes, time } = this.#p;
    const deadline = time.monotonic() + seenMs;
    while (map.get(shard as ShardId)?.owner === from && time.monotonic() < deadline)
      await changes.next(shard as ShardId, deadline - time.monotonic()).catch(() => time.sleep(20));
  }
}

const printOf = (kind: MoveKind, request: MoveRequest): string =>
  fingerprintOf([kind, request.dc, request.shard, request.to, request.force]);

const operationId = (dc: SiteName, name: string): string => `op-${dc}-${name}`;
