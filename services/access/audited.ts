import { Problem } from "../../infra/errors.js";
import type { JsonObject } from "../../replication/entities.js";
import type { Reply, RequestContext } from "../api.js";
import type { Extensions } from "../http/index.js";
import type { AuditEntry } from "./audit.js";

export interface AuditedOptions {
  readonly dc: string;
  /** Before what it tells of is done: a death in between leaves it. */
  readonly begin: (entry: AuditEntry) => Promise<void>;
  readonly note: (entry: AuditEntry) => Promise<void>;
  readonly newId: () => string;
  /** Milliseconds since 1970. */
  readonly wall: () => number;
}

const moveActions = {
  switchovers: "switchover",
  drains: "drain",
  failbacks: "failback",
  rebalances: "rebalance",
  takeovers: "takeover",
} as const;

/** The same features, with an entry of the audit trail for each thing that an operator does, or is refused. */
export function audited(extensions: Extensions, options: AuditedOptions): Extensions {
  const act = async (
    context: RequestContext,
    action: string,
    target: JsonObject,
    work: () => Promise<Reply>,
    {
      long = false,
      found = () => ({}),
    }: { readonly long?: boolean; readonly found?: (reply: Reply) => JsonObject } = {},
  ): Promise<Reply> => {
    const at = new Date(options.wall()).toISOString();
    const id = options.newId();
    const entry = (result: string, detail?: string, more: JsonObject = {}): AuditEntry => ({
      id,
      at,
      who: context.caller.principal,
      dc: options.dc,
      action,
      target: { ...target, ...more },
      result,
      ...(detail === undefined ? {} : { detail }),
      requestId: context.requestId,
    });
    // A long operation is stored when it begins, and tells of itself when it ends.
    if (!long) await options.begin(entry("begun"));
    let reply: Reply;
    try {
      reply = await work();
    } catch (error) {
      const problem = error instanceof Problem ? error : undefined;
      await options.note(entry(problem?.code ?? "internal", problem?.message));
      throw error;
    }
    if (!long)
      await options.note(entry("ok", reply.replayed === true ? "the first answer again" : undefined, found(reply)));
    else if (reply.replayed !== true) {
      const made = reply.body as { readonly id: string; readonly status: string };
      await options.note({ ...entry(made.status), id: auditIdOf(made.id) });
    }
    return reply;
  };
  const { startMove, cancelMove, setFailover, repair, replayDivergent, discardDivergent } = extensions;
  const { addToken, removeToken, putTenant, addDatacenter, removeDatacenter } = extensions;
  return {
    ...extensions,
    ...(startMove && {
      startMove: (context, kind, request) => {
        const { dryRun, ...target } = request;
        return dryRun
          ? startMove(context, kind, request)
          : act(context, moveActions[kind], { ...target }, () => startMove(context, kind, request), { long: true });
      },
    }),
    ...(cancelMove && {
      cancelMove: (context, kind, id) =>
        act(context, `${moveActions[kind]} cancel`, { operation: id }, () => cancelMove(context, kind, id)),
    }),
    ...(setFailover && {
      setFailover: (context, paused) =>
        act(context, paused ? "failover pause" : "failover resume", {}, () => setFailover(context, paused)),
    }),
    ...(repair && { repair: (context, what) => act(context, "repair", { ...what }, () => repair(context, what)) }),
    ...(replayDivergent && {
      replayDivergent: (context, id) =>
        act(context, "divergence replay", { operation: id }, () => replayDivergent(context, id)),
    }),
    ...(discardDivergent && {
      discardDivergent: (context, id) =>
        act(context, "divergence discard", { operation: id }, () => discardDivergent(context, id)),
    }),
    ...(addDatacenter && {
      addDatacenter: (context, name) => act(context, "dc add", { dc: name }, () => addDatacenter(context, name)),
    }),
    ...(removeDatacenter && {
      removeDatacenter: (context, name) =>
        act(context, "dc remove", { dc: name }, () => removeDatacenter(context, name)),
    }),
    ...(addToken && {
      addToken: (context, wanted) => {
        const { scopes, tenant, name } = wanted;
        const target = { scopes, tenant: tenant ?? null, name: name ?? null };
        return act(context, "token add", target, () => addToken(context, wanted), {
          found: (reply) => ({ token: (reply.body as { readonly id: string }).id }),
        });
      },
    }),
    ...(removeToken && {
      removeToken: (context, id) => act(context, "token remove", { token: id }, () => removeToken(context, id)),
    }),
    ...(putTenant && {
      putTenant: (context, name, limits) =>
        act(context, "tenant set", { tenant: name, ...limits }, () => putTenant(context, name, limits)),
    }),
  };
}

export const auditIdOf = (operation: string): string => `a-${operation}`;
