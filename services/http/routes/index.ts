import type { Backend, HttpLimits, Route } from "../types.js";
import { accessRoutes } from "./access.js";
import { bulkRoute } from "./bulk.js";
import { clusterRoutes } from "./clusters.js";
import { divergenceRoutes } from "./divergence.js";
import { eventsRoute } from "./events.js";
import { jobRoutes } from "./jobs.js";
import { memberRoutes } from "./members.js";
import { moveRoutes } from "./moves.js";
import { probeRoutes } from "./probes.js";
import { verifyRoute } from "./verify.js";
import { viewRoutes } from "./views.js";
import { workerRoutes } from "./workers.js";

/** Every route but the dashboard's, the busiest first. */
export function allRoutes(backend: Backend, limits: HttpLimits, bodyLimitBytes: number): Route[] {
  return [
    ...clusterRoutes(backend),
    ...workerRoutes(backend),
    ...jobRoutes(backend),
    bulkRoute(backend, limits, bodyLimitBytes),
    ...probeRoutes(backend),
    ...viewRoutes(backend),
    eventsRoute(backend, limits),
    verifyRoute(backend, limits),
    ...moveRoutes(backend),
    ...memberRoutes(backend),
    ...divergenceRoutes(backend),
    ...accessRoutes(backend),
  ];
}
