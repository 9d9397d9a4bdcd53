import { Problem } from "../../infra/errors.js";
import type { JsonObject } from "../../replication/entities.js";
import type { Reply, RequestContext } from "../api.js";
import type { Extensions } from "../http/index.js";
import type { AuditEntry } from "./audit.js";

export interface AuditedOptions {
  readonly dc: string;
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
    found: (reply: Reply) => JsonObject = () => ({}),
  ): Promise<Reply> => {
    const entry = (id: string, result: string, detail?: string, more: JsonObject = {}): AuditEntry => ({
      id,
      at: new Date(options.wall()).toISOString(),
      who: context.caller.principal,
      dc: options.dc,
      action,
      target: { ...target, ...more },
      result,
      ...(detail === undefined ? {} : { detail }),
      requestId: context.requestId,
    });
    let reply: Reply;
    try {
      reply = await work();
    } catch (error) {
      const code = error instanceof Problem ? error.code : "internal";
      await options.note(entry(options.newId(), code, error instanceof Problem ? error.message : undefined));
      throw error;
    }
    const made = reply.body as { readonly id?: unknown; readonly status?: unknown } | undefined;
    // A long operation goes on; its end makes the same entry anew.
    if (reply.status === 202 && typeof made?.id === "string")
      await options.note(entry(auditIdOf(made.id), String(made.status)));
    else await options.note(entry(options.newId(), "ok", undefined, found(reply)));
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
          : act(context, moveActions[kind], { ...target }, () => startMove(context, kind, request));
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
        return act(
          context,
          "token add",
          target,
          () => addToken(context, wanted),
          (reply) => ({ token: (reply.body as { readonly id: string }).id }),
        );
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
