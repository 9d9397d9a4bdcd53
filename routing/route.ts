import type { ProblemCode } from "../infra/errors.js";
import type { SiteName } from "../shards/ids.js";
import type { Head } from "../shards/map.js";
import type { PeerState } from "../shards/peers.js";

/** Where a request for a shard goes now. */
export type Route =
  | { readonly kind: "here" }
  | { readonly kind: "forward"; readonly to: SiteName }
  /** Nobody can serve it now: it waits for a change up to its deadline, and is then refused with this code. */
  | { readonly kind: "wait"; readonly code: ProblemCode; readonly why: string; readonly owner: SiteName | null };

export interface RouteFacts {
  readonly self: SiteName;
  readonly head: Head | undefined;
  /** This node has a lease. */
  readonly leaseValid: boolean;
  /** The owner, as this node hears it; of no meaning when that is this datacenter. */
  readonly ownerState: PeerState;
}

/** Pure: the whole decision of section 3, step 1. */
export function route(facts: RouteFacts): Route {
  const { head, self } = facts;
  if (head === undefined || head.owner === null) return wait("owner_unreachable", "the shard has no owner yet", null);
  if (head.owner === self) {
    if (head.state === "moving") return wait("shard_moving", "the shard is being moved", self);
    if (!facts.leaseValid)
      return wait(
        "no_lease",
        `${self} has no lease: too few sites promise it one, or its database takes no writes`,
        self,
      );
    if (head.state !== "owned" || !head.confirmed)
      return wait("no_lease", `${self} has yet to open the shard in the log again`, self);
    return { kind: "here" };
  }
  if (facts.ownerState === "dead")
    return wait("owner_unreachable", `${head.owner} is silent and nobody has taken the shard over yet`, head.owner);
  return { kind: "forward", to: head.owner };
}

const wait = (code: ProblemCode, why: string, owner: SiteName | null): Route => ({ kind: "wait", code, why, owner });
