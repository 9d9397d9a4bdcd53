/** The published SDK: a thin client of the HTTP API, and a worker library. */
export * from "./client.js";
export * from "./worker.js";
export { Unanswered } from "./transport.js";
