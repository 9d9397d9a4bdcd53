import type { Msg, MsgHdrs } from "nats";
import type { Logger } from "../logger.js";

/** Nobody listens on the subject: the request certainly had no effect. */
export class NoResponders extends Error {
  constructor(subject: string) {
    super(`nobody answers on ${subject}`);
    this.name = "NoResponders";
  }
}

/** No answer in time, or the connection broke: the request may have had an effect. */
export class NoAnswer extends Error {
  constructor(subject: string, cause?: unknown) {
    super(`no answer on ${subject}`, cause === undefined ? undefined : { cause });
    this.name = "NoAnswer";
  }
}

/** There will be no answer, as the servers don't take so much in one message: certainly nothing was sent. */
export class TooLarge extends NoAnswer {
  constructor(subject: string, bytes: number) {
    super(subject, new RangeError(`${bytes} bytes are too many for a message`));
    this.name = "TooLarge";
  }
}

export interface Message {
  readonly subject: string;
  readonly data: Uint8Array;
  /** @throws TooLarge */
  respond(data: Uint8Array): void;
}

/** Called, it ends at once: what is on its way is dropped. */
export interface Subscription {
  (): void;
  /** Ends it, but hands over what the server had sent before. Rejects when the connection is gone, waits while it comes back. */
  drain(): Promise<void>;
}

/** Core messaging between the processes of the group: at most once, no memory. */
export interface Messenger {
  publish(subject: string, data: Uint8Array): void;
  subscribe(subject: string, handler: (message: Message) => void, options?: { readonly queue?: string }): Subscription;
  /** @throws NoResponders | NoAnswer, which may be TooLarge */
  request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array>;
}

export interface Reply {
  readonly data: Uint8Array;
  readonly headers: MsgHdrs | undefined;
}

/** A way to the servers that answers requests. */
export interface Link extends Messenger {
  /** @throws NoResponders | NoAnswer, which may be TooLarge */
  call(
    subject: string,
    data: Uint8Array,
    timeoutMs: number,
    headers?: Readonly<Record<string, string>>,
  ): Promise<Reply>;
  /** A request with many answers; ends when `last` says so. @throws NoResponders | NoAnswer when `timeoutMs` pass without one. */
  collect(subject: string, data: Uint8Array, timeoutMs: number, last: (message: Msg) => boolean): Promise<Msg[]>;
  close(): Promise<void>;
}

export interface ConnectOptions {
  /** In order of preference. */
  readonly servers: readonly string[];
  readonly name: string;
  /** Milliseconds to wait for the first connection. */
  readonly waitMs: number;
  readonly log: Logger;
  readonly user?: string;
  /** Two pings without an answer end a connection; milliseconds between them. */
  readonly pingMs?: number;
}
