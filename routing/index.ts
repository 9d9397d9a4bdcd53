/** The face of routing: how a request reaches the owner. README.md has the rules and the catalogue of problems. */
export { route, type Route, type RouteFacts } from "./route.js";
export { Router, type Executor, type Routed } from "./router.js";
export { Changes } from "./changes.js";
export { Room, workBound } from "./room.js";
