export { createHttpServer, type HttpServer } from "./server.js";
export type { BulkLine, BulkRow, Extensions, HttpLimits, HttpOptions, MoveKind, MoveRequest } from "./types.js";
