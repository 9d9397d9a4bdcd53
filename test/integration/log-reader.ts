import { natsUser } from "../../infra/local/nats-config.js";
import { silentLogger } from "../../infra/logger.js";
import { LogStreams } from "../../infra/nats/log-streams.js";
import { NatsLink } from "../../infra/nats/nats-link.js";
import { decodeBatch, decodeRecord, type Batch, type LogRecord } from "../../replication/record.js";
import type { TestStack } from "../harness/stack.js";
import { body, send } from "./support.js";

/** A record of the log with the place that its batch gives it. */
export interface Entry {
  readonly shard: number;
  readonly epoch: number;
  readonly position: number;
  readonly owner: string;
  readonly record: LogRecord;
}

export interface LogContent {
  /** In the order of each stream. */
  readonly batches: readonly Batch[];
  readonly entries: readonly Entry[];
  readonly bytes: number;
}

/** Ids of the payloads in the object store, as the server of `dc` has it. */
export async function readObjects(stack: TestStack, dc: string): Promise<string[]> {
  const link = await openLink(stack, dc);
  try {
    return await new LogStreams("local", 1, [link]).objects.list(5_000);
  } finally {
    await link.close();
  }
}

export const openLink = (stack: TestStack, dc: string): Promise<NatsLink> =>
  NatsLink.open({
    servers: [stack.stack.site(dc).nats.url(natsUser)],
    name: "test",
    waitMs: 5_000,
    log: silentLogger,
  });

/** All that the log holds, read from the server of `dc`. */
export async function readLog(stack: TestStack, dc: string): Promise<LogContent> {
  const { partitions } = body<{ partitions: number }>(await send(stack, dc, "GET", "/v1/topology"), 200);
  const link = await openLink(stack, dc);
  try {
    const streams = new LogStreams("local", 1, [link]);
    const batches: Batch[] = [];
    let bytes = 0;
    for (let partition = 0; partition < partitions; partition++) {
      let from = 1;
      for (;;) {
        const messages = await streams.readFrom(
          partition,
          from,
          { batch: 500, maxBytes: 4_000_000, timeoutMs: 5_000 },
          0,
        );
        const last = messages.at(-1);
        if (last === undefined) break;
        for (const message of messages) {
          batches.push(decodeBatch(message.data));
          bytes += message.data.length;
        }
        from = last.sequence + 1;
      }
    }
    const entries = batches.flatMap((batch) =>
      batch.records.map((record, index) => ({
        shard: batch.header.shard,
        epoch: batch.header.epoch,
        position: batch.header.first + index,
        owner: batch.header.owner,
        record: decodeRecord(record),
      })),
    );
    return { batches, entries, bytes };
  } finally {
    await link.close();
  }
}
