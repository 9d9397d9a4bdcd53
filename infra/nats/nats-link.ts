import {
  connect,
  createInbox,
  ErrorCode,
  Events,
  headers as newHeaders,
  NatsError,
  type ConnectionOptions,
  type Msg,
  type MsgHdrs,
  type NatsConnection,
  type Subscription as Current,
} from "nats";
import { FatalError } from "../errors.js";
import type { Logger } from "../logger.js";
import {
  NoAnswer,
  NoResponders,
  TooLarge,
  type ConnectOptions,
  type Link,
  type Message,
  type Reply,
  type Subscription,
} from "./messaging.js";

interface Subscribed {
  readonly subject: string;
  readonly queue: string | undefined;
  readonly handle: (message: Msg) => void;
  current: Current;
}

/** How often a connection that fell back to another server looks whether its own is there again. */
const homeEveryMs = 2_000;
/** What was asked on a connection that is left may still be answered for so long. */
const lingerMs = 30_000;

/** One connection to the group's NATS cluster: comes back by itself, through another server while its first is down. */
export class NatsLink implements Link {
  readonly #servers: readonly string[];
  readonly #options: ConnectionOptions;
  readonly #log: Logger;
  readonly #collectors = new Map<string, (message: Msg) => void>();
  readonly #subscribed = new Set<Subscribed>();
  /** Connections that were left for a better one, until what was asked on them is answered. */
  readonly #left = new Set<NatsConnection>();
  #nc: NatsConnection;
  /** One subscription for all answers: a new one for each call would be told to every server of the group. */
  #inbox: string;
  #calls = 0;
  #connected = true;
  #closed = false;
  #home: NodeJS.Timeout | undefined;

  private constructor(nc: NatsConnection, options: ConnectionOptions, servers: readonly string[], log: Logger) {
    this.#nc = nc;
    this.#options = options;
    this.#servers = servers;
    this.#log = log;
    this.#inbox = this.#openInbox(nc);
    void this.#watch(nc);
    if (servers.length > 1) this.#lookHome();
  }

  /** @throws FatalError `nats_unreachable`, `nats_refused` with the way out. */
  static async open(options: ConnectOptions): Promise<NatsLink> {
    const deadline = performance.now() + options.waitMs;
    const first = new URL(options.servers[0] ?? "nats://127.0.0.1:4222");
    const user = options.user ?? decodeURIComponent(first.username);
    const password = decodeURIComponent(first.password);
    const servers = options.servers.map((server) => new URL(server).host);
    const connection: ConnectionOptions = {
      servers,
      noRandomize: true,
      ignoreClusterUpdates: true,
      name: options.name,
      ...(user === "" ? {} : { user, pass: password }),
      // A stack trace for each request costs more than the request.
      noAsyncTraces: true,
      reconnect: true,
      maxReconnectAttempts: -1,
      reconnectTimeWait: 100,
      reconnectJitter: 50,
      pingInterval: options.pingMs ?? 1_000,
      maxPingOut: 2,
      timeout: 2_000,
    };
    for (;;) {
      try {
        return new NatsLink(await connect(connection), connection, servers, options.log);
      } catch (error) {
        const code = error instanceof NatsError ? error.code : undefined;
        if (code === (ErrorCode.AuthorizationViolation as string))
          throw new FatalError(
            "nats_refused",
            `NATS refuses the user '${user}'`,
            "Check user and password in HOTHOT_NATS_URLS and HOTHOT_NATS_HEARTBEAT_USER.",
            error,
          );
        if (performance.now() > deadline)
          throw new FatalError(
            "nats_unreachable",
            `no NATS server answers at ${servers.join(", ")}`,
            "Start nats-server there, or mend HOTHOT_NATS_URLS.",
            error,
          );
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  }

  /** Name of the server at the other end; by our convention it is its site's, or begins with it and a dot. */
  get serverName(): string {
    return this.#nc.info?.server_name ?? "";
  }

  /** False while the connection is broken and comes back. */
  get connected(): boolean {
    return this.#connected && !this.#nc.isClosed();
  }

  publish(subject: string, data: Uint8Array): void {
    if (this.connected) this.#nc.publish(subject, data);
  }

  subscribe(
    subject: string,
    handler: (message: Message) => void,
    options: { readonly queue?: string } = {},
  ): Subscription {
    const handle = (message: Msg): void => {
      try {
        handler({ subject: message.subject, data: message.data, respond: (data) => answer(message, data) });
      } catch (failure) {
        this.#log.error("message handler failed", { subject: message.subject, error: failure });
      }
    };
    const subscribed: Subscribed = {
      subject,
      queue: options.queue,
      handle,
      current: listen(this.#nc, subject, options.queue, handle),
    };
    this.#subscribed.add(subscribed);
    const end = (): void => {
      this.#subscribed.delete(subscribed);
      if (!this.#nc.isClosed()) subscribed.current.unsubscribe();
    };
    const drain = async (): Promise<void> => {
      this.#subscribed.delete(subscribed);
      await subscribed.current.drain();
    };
    return Object.assign(end, { drain });
  }

  /** Sends everything that was published or subscribed so far to the server. */
  async flush(): Promise<void> {
    await this.#nc.flush();
  }

  async request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    return (await this.call(subject, data, timeoutMs)).data;
  }

  /** A request with headers. @throws NoResponders | NoAnswer, which may be TooLarge */
  async call(
    subject: string,
    data: Uint8Array,
    timeoutMs: number,
    headers?: Readonly<Record<string, string>>,
  ): Promise<Reply> {
    // The client's own request() makes an error, with its stack, for each answer that came.
    const answer = await this.#ask<Msg>(subject, data, Math.max(1, timeoutMs), headers, (message, resolve) =>
      resolve(message),
    );
    return { data: answer.data, headers: answer.headers };
  }

  async collect(subject: string, data: Uint8Array, timeoutMs: number, last: (message: Msg) => boolean): Promise<Msg[]> {
    const messages: Msg[] = [];
    return this.#ask<Msg[]>(subject, data, timeoutMs, undefined, (message, resolve) => {
      if (last(message)) resolve(messages);
      else messages.push(message);
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#home);
    await Promise.all([this.#nc, ...this.#left].map(async (nc) => (nc.isClosed() ? undefined : nc.close())));
  }

  async #watch(nc: NatsConnection): Promise<void> {
    for await (const status of nc.status()) {
      if (nc !== this.#nc) return;
      if (status.type === Events.Disconnect) this.#connected = false;
      if (status.type === Events.Reconnect) this.#connected = true;
      if (status.type === Events.Disconnect || status.type === Events.Reconnect)
        this.#log.warn(status.type === Events.Disconnect ? "nats disconnected" : "nats reconnected", {
          server: typeof status.data === "string" ? status.data : "",
        });
    }
  }

  /** Publishes with a reply subject of its own and waits until `heard` resolves; each message that it is given starts the wait anew. */
  #ask<T>(
    subject: string,
    data: Uint8Array,
    timeoutMs: number,
    headers: Readonly<Record<string, string>> | undefined,
    heard: (message: Msg, resolve: (value: T) => void) => void,
  ): Promise<T> {
    // Kept for later it would arrive when nobody waits for it any more.
    if (!this.connected) return Promise.reject(new NoResponders(subject));
    const token = String(++this.#calls);
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#collectors.delete(token);
      };
      const fail = (failure: Error): void => (end(), reject(failure));
      const timer = setTimeout(() => fail(new NoAnswer(subject)), timeoutMs);
      this.#collectors.set(token, (message) => {
        if (message.headers?.code === 503) return fail(new NoResponders(subject));
        try {
          heard(message, (value) => (end(), resolve(value)));
        } catch (failure) {
          return fail(failure as Error);
        }
        if (this.#collectors.has(token)) timer.refresh();
      });
      try {
        const hdrs = headers === undefined ? undefined : headersOf(headers);
        this.#nc.publish(subject, data, {
          reply: `${this.#inbox}.${token}`,
          ...(hdrs === undefined ? {} : { headers: hdrs }),
        });
      } catch (error) {
        fail(isTooLarge(error) ? new TooLarge(subject, data.length) : new NoAnswer(subject, error));
      }
    });
  }

  #openInbox(nc: NatsConnection): string {
    const inbox = createInbox();
    listen(nc, `${inbox}.*`, undefined, (message) =>
      this.#collectors.get(message.subject.slice(inbox.length + 1))?.(message),
    );
    return inbox;
  }

  /** Back to the first server once it is there again: the others are in other sites. */
  #lookHome(): void {
    this.#home = setTimeout(() => {
      const away = this.connected && this.#nc.getServer() !== this.#servers[0];
      void (away ? this.#goHome() : Promise.resolve())
        .catch((error: unknown) => this.#log.debug("the own NATS server is not there yet", { error }))
        .finally(() => {
          if (!this.#closed) this.#lookHome();
        });
    }, homeEveryMs);
    this.#home.unref();
  }

  async #goHome(): Promise<void> {
    const next = await connect({ ...this.#options, servers: [...this.#servers], reconnect: true });
    if (this.#closed || next.getServer() !== this.#servers[0]) return next.close();
    try {
      await this.#moveTo(next);
    } catch (error) {
      // It would connect again by itself, and take messages that nobody handles.
      await next.close().catch(() => undefined);
      throw error;
    }
  }

  async #moveTo(next: NatsConnection): Promise<void> {
    // Heard on both until the new ones are known everywhere: what comes meanwhile is taken from the old ones alone.
    let open = false;
    const moved = [...this.#subscribed].map((subscribed) => ({
      subscribed,
      subscription: listen(next, subscribed.subject, subscribed.queue, (message) => {
        // Of a queue's members only one gets it.
        if (open || subscribed.queue !== undefined) subscribed.handle(message);
      }),
    }));
    const inbox = this.#openInbox(next);
    await next.flush();
    if (this.#closed) return next.close();
    const before = this.#nc;
    open = true;
    for (const { subscribed, subscription } of moved) {
      if (!before.isClosed()) subscribed.current.unsubscribe();
      subscribed.current = subscription;
      if (!this.#subscribed.has(subscribed)) subscription.unsubscribe();
    }
    this.#nc = next;
    this.#inbox = inbox;
    this.#connected = true;
    void this.#watch(next);
    // Subscribed on the old connection while the new one was made.
    for (const subscribed of this.#subscribed)
      if (!moved.some((each) => each.subscribed === subscribed)) {
        if (!before.isClosed()) subscribed.current.unsubscribe();
        subscribed.current = listen(next, subscribed.subject, subscribed.queue, subscribed.handle);
      }
    this.#log.info("back at the own NATS server", { server: next.getServer() });
    this.#left.add(before);
    setTimeout(() => {
      this.#left.delete(before);
      if (!before.isClosed()) void before.close();
    }, lingerMs).unref();
  }
}

const isTooLarge = (error: unknown): boolean =>
  error instanceof NatsError && error.code === (ErrorCode.MaxPayloadExceeded as string);

function answer(message: Msg, data: Uint8Array): void {
  try {
    message.respond(data);
  } catch (error) {
    throw isTooLarge(error) ? new TooLarge(message.reply ?? message.subject, data.length) : error;
  }
}

function headersOf(headers: Readonly<Record<string, string>>): MsgHdrs {
  const out = newHeaders();
  for (const [name, value] of Object.entries(headers)) out.set(name, value);
  return out;
}

function listen(
  nc: NatsConnection,
  subject: string,
  queue: string | undefined,
  handle: (message: Msg) => void,
): Current {
  return nc.subscribe(subject, {
    ...(queue === undefined ? {} : { queue }),
    callback: (error, message) => {
      if (error === null) handle(message);
    },
  });
}
