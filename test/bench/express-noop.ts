import express from "express";
import type { AddressInfo } from "node:net";

/** What single writes are compared with: Express that reads the JSON and answers with it, and does nothing else. */
const app = express();
app.use(express.json());
app.put("/v1/clusters/:id", (request, response) => {
  response.json({ id: request.params.id, ...(request.body as object) });
});
const server = app.listen(0, "127.0.0.1", () => {
  process.stdout.write(`${(server.address() as AddressInfo).port}\n`);
});
// Its parent's end closes standard input.
process.stdin.on("end", () => process.exit(0)).resume();
