import { NoAnswer, NoResponders, type Link } from "./messaging.js";

/** One message as a stream stores it. */
export interface Stored {
  readonly sequence: number;
  readonly subject: string;
  readonly data: Uint8Array;
}

/**
 * What one try of an append brought. `refused` carries the subject's true last sequence; `busy` (another append of the
 * subject is in flight, perhaps our own) and `silent` decide nothing; `nowhere`: nobody there to take it, certainly not stored.
 */
export type AppendAnswer =
  | { readonly kind: "stored"; readonly sequence: number }
  | { readonly kind: "refused"; readonly lastSequence: number }
  | { readonly kind: "busy" }
  | { readonly kind: "silent" }
  | { readonly kind: "nowhere" };

export class StreamError extends Error {
  constructor(
    readonly errorCode: number,
    description: string,
  ) {
    super(description);
    this.name = "StreamError";
  }
}

interface ApiError {
  readonly error?: { readonly code: number; readonly err_code?: number; readonly description?: string };
}

const wrongLastSequence = 10071;
const expectedInProcess = 10164;
const utf8 = new TextDecoder();
const bytes = new TextEncoder();

/** Appends with compare-and-set on the subject's last sequence. No message id: its duplicate check would precede the compare. */
export async function append(
  link: Link,
  subject: string,
  data: Uint8Array,
  expected: number,
  timeoutMs: number,
): Promise<AppendAnswer> {
  let text: string;
  try {
    const reply = await link.call(subject, data, timeoutMs, {
      "Nats-Expected-Last-Subject-Sequence": String(expected),
    });
    text = utf8.decode(reply.data);
  } catch (error) {
    if (error instanceof NoResponders) return { kind: "nowhere" };
    if (error instanceof NoAnswer) return { kind: "silent" };
    throw error;
  }
  const answer = JSON.parse(text) as ApiError & { seq?: number; duplicate?: boolean };
  if (answer.error === undefined) {
    if (answer.duplicate === true || typeof answer.seq !== "number")
      throw new StreamError(0, `unexpected answer to an append: ${text}`);
    return { kind: "stored", sequence: answer.seq };
  }
  const code = answer.error.err_code ?? 0;
  if (code === wrongLastSequence) {
    const last = /(\d+)\s*$/.exec(answer.error.description ?? "");
    // Without a sequence in the text nothing is known about the tail.
    return last === null ? { kind: "busy" } : { kind: "refused", lastSequence: Number(last[1]) };
  }
  if (code === expectedInProcess) return { kind: "busy" };
  // 503s of the JetStream API: no leader at the moment, or it is catching up.
  if (answer.error.code === 503) return { kind: "silent" };
  throw new StreamError(code, answer.error.description ?? "append refused");
}

/**
 * Messages of a stream from `sequence` on, in order, from whichever replica answers (the own server's first).
 * @throws NoAnswer | NoResponders
 */
export async function readFrom(
  link: Link,
  stream: string,
  sequence: number,
  limits: { readonly batch: number; readonly maxBytes: number; readonly timeoutMs: number; readonly subject?: string },
): Promise<Stored[]> {
  const { batch, maxBytes, timeoutMs, subject } = limits;
  return collectBatch(
    link,
    stream,
    { seq: sequence, batch, max_bytes: maxBytes, next_by_subj: subject ?? ">" },
    timeoutMs,
  );
}

async function collectBatch(link: Link, stream: string, request: object, timeoutMs: number): Promise<Stored[]> {
  const messages = await link.collect(
    `$JS.API.DIRECT.GET.${stream}`,
    bytes.encode(JSON.stringify(request)),
    timeoutMs,
    (message) => {
      const status = message.headers?.code ?? 0;
      if (status === 204 || status === 404) return true;
      if (status === 408 || status === 413 || status >= 500) throw new NoAnswer(message.subject);
      return false;
    },
  );
  return messages.map((message) => ({
    sequence: Number(message.headers?.get("Nats-Sequence")),
    subject: message.headers?.get("Nats-Subject") ?? "",
    data: message.data,
  }));
}

/** The message at `sequence`, or undefined when the replica that answers doesn't have it (yet). @throws NoAnswer | NoResponders */
export async function readOne(
  link: Link,
  stream: string,
  sequence: number,
  timeoutMs: number,
): Promise<Stored | undefined> {
  const reply = await link.call(
    `$JS.API.DIRECT.GET.${stream}`,
    bytes.encode(JSON.stringify({ seq: sequence })),
    timeoutMs,
  );
  if ((reply.headers?.code ?? 0) !== 0 || reply.headers === undefined) return undefined;
  return {
    sequence: Number(reply.headers.get("Nats-Sequence")),
    subject: reply.headers.get("Nats-Subject"),
    data: reply.data,
  };
}

/** The newest message of a subject that the answering replica has. It may be stale. @throws NoAnswer | NoResponders */
export async function readLast(
  link: Link,
  stream: string,
  subject: string,
  timeoutMs: number,
): Promise<Stored | undefined> {
  const reply = await link.call(`$JS.API.DIRECT.GET.${stream}.${subject}`, new Uint8Array(0), timeoutMs);
  if ((reply.headers?.code ?? 0) !== 0 || reply.headers === undefined) return undefined;
  return {
    sequence: Number(reply.headers.get("Nats-Sequence")),
    subject: reply.headers.get("Nats-Subject"),
    data: reply.data,
  };
}

/** A request to JetStream's API. @throws StreamError, NoAnswer, NoResponders */
export async function callApi<T>(link: Link, subject: string, body: unknown, timeoutMs: number): Promise<T> {
  const reply = await link.call(
    `$JS.API.${subject}`,
    bytes.encode(body === undefined ? "" : JSON.stringify(body)),
    timeoutMs,
  );
  const answer = JSON.parse(utf8.decode(reply.data)) as T & ApiError;
  if (answer.error !== undefined)
    throw new StreamError(answer.error.err_code ?? answer.error.code, answer.error.description ?? "refused");
  return answer;
}

export interface StreamState {
  /** Server name of the leader; undefined while there is none. */
  readonly leader: string | undefined;
  readonly replicas: readonly {
    readonly name: string;
    readonly current: boolean;
    readonly offline: boolean;
    readonly lag: number;
  }[];
  /** How many servers shall hold it. */
  readonly wanted: number;
  readonly lastSequence: number;
  readonly firstSequence: number;
  readonly messages: number;
  readonly bytes: number;
}

interface StreamInfo {
  readonly config: { readonly num_replicas?: number };
  readonly cluster?: {
    readonly leader?: string;
    readonly replicas?: readonly { name: string; current?: boolean; offline?: boolean; lag?: number }[];
  };
  readonly state: {
    readonly last_seq: number;
    readonly first_seq: number;
    readonly messages: number;
    readonly bytes: number;
  };
}

function stateOf(info: StreamInfo): StreamState {
  return {
    leader: info.cluster?.leader === "" ? undefined : info.cluster?.leader,
    replicas: (info.cluster?.replicas ?? []).map((r) => ({
      name: r.name,
      current: r.current ?? false,
      offline: r.offline ?? false,
      lag: r.lag ?? 0,
    })),
    wanted: info.config.num_replicas ?? 1,
    lastSequence: info.state.last_seq,
    firstSequence: info.state.first_seq,
    messages: info.state.messages,
    bytes: info.state.bytes,
  };
}

/** Creates a log partition's stream, without limits of its own; nothing happens when it is there. @throws StreamError */
export async function createStream(
  link: Link,
  stream: string,
  subjects: readonly string[],
  replicas: number,
  timeoutMs: number,
): Promise<void> {
  await callApi(
    link,
    `STREAM.CREATE.${stream}`,
    {
      name: stream,
      subjects,
      retention: "limits",
      storage: "file",
      discard: "new",
      num_replicas: replicas,
      max_age: 0,
      max_bytes: -1,
      max_msgs: -1,
      max_msgs_per_subject: -1,
      max_msg_size: -1,
      allow_direct: true,
      deny_delete: true,
      duplicate_window: 100_000_000,
    },
    timeoutMs,
  );
}

/** Nothing happens when it is not there. @throws StreamError, NoAnswer */
export async function deleteStream(link: Link, stream: string, timeoutMs: number): Promise<void> {
  try {
    await callApi(link, `STREAM.DELETE.${stream}`, undefined, timeoutMs);
  } catch (error) {
    if (!(error instanceof StreamError) || error.errorCode !== 10059) throw error;
  }
}

/** @returns undefined when there is no such stream. @throws NoAnswer | StreamError */
export async function streamState(link: Link, stream: string, timeoutMs: number): Promise<StreamState | undefined> {
  try {
    return stateOf(await callApi<StreamInfo>(link, `STREAM.INFO.${stream}`, undefined, timeoutMs));
  } catch (error) {
    if (error instanceof StreamError && error.errorCode === 10059) return undefined;
    throw error;
  }
}

/** Asks the stream's leader to hand over to `preferred` (a server's name). @throws StreamError 10005 when it leads already. */
export async function stepDown(link: Link, stream: string, preferred: string, timeoutMs: number): Promise<void> {
  await callApi(link, `STREAM.LEADER.STEPDOWN.${stream}`, { placement: { preferred } }, timeoutMs);
}

/** Changes how many servers hold the stream. @throws StreamError, NoAnswer */
export async function scaleStream(link: Link, stream: string, replicas: number, timeoutMs: number): Promise<void> {
  const { config } = await callApi<{ config: object }>(link, `STREAM.INFO.${stream}`, undefined, timeoutMs);
  await callApi(link, `STREAM.UPDATE.${stream}`, { ...config, num_replicas: replicas }, timeoutMs);
}

/** Takes the stream away from a server; another one gets the replica. @throws StreamError, NoAnswer */
export async function removePeer(link: Link, stream: string, server: string, timeoutMs: number): Promise<void> {
  await callApi(link, `STREAM.PEER.REMOVE.${stream}`, { peer: server }, timeoutMs);
}

/** Takes a server that has ended out of the cluster's metadata; `link` must be of the system account. @throws StreamError, NoAnswer */
export async function removeServer(link: Link, server: string, timeoutMs: number): Promise<void> {
  await callApi(link, "SERVER.REMOVE", { peer: server }, timeoutMs);
}

/** Removes all messages below `sequence`. Nothing happens when there are none. @throws NoAnswer | NoResponders | StreamError */
export async function purgeBelow(link: Link, stream: string, sequence: number, timeoutMs: number): Promise<number> {
  const answer = await callApi<{ purged?: number }>(link, `STREAM.PURGE.${stream}`, { seq: sequence }, timeoutMs);
  return answer.purged ?? 0;
}

/** Sequence of the first message that was stored at `since` or later, by the servers' clocks; undefined when there is none. @throws NoAnswer | NoResponders */
export async function firstSince(
  link: Link,
  stream: string,
  since: Date,
  timeoutMs: number,
): Promise<number | undefined> {
  const request = { start_time: since.toISOString(), batch: 1, next_by_subj: ">" };
  const found = await collectBatch(link, stream, request, timeoutMs);
  return found[0]?.sequence;
}

/** JetStream is there and has a meta leader. */
export async function jetStreamReady(link: Link, timeoutMs: number): Promise<boolean> {
  try {
    await callApi(link, "INFO", undefined, timeoutMs);
    return true;
  } catch {
    return false;
  }
}
