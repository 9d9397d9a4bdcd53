import type { Msg } from "nats";
import { NoResponders, type ConnectOptions, type Link, type Reply, type Subscription } from "./messaging.js";
import { NatsLink } from "./nats-link.js";

/** A connection to one other site's server, made in the background; while there is none, certainly nobody gets a request. */
export class BackgroundLink implements Link {
  #link: NatsLink | undefined;
  #closed = false;

  constructor(options: Omit<ConnectOptions, "waitMs">) {
    void this.#connect(options);
  }

  publish(subject: string, data: Uint8Array): void {
    this.#link?.publish(subject, data);
  }

  subscribe(): Subscription {
    throw new Error("subscriptions belong to the own site's connection");
  }

  async request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    return (await this.call(subject, data, timeoutMs)).data;
  }

  async call(
    subject: string,
    data: Uint8Array,
    timeoutMs: number,
    headers?: Readonly<Record<string, string>>,
  ): Promise<Reply> {
    if (this.#link?.connected !== true) throw new NoResponders(subject);
    return this.#link.call(subject, data, timeoutMs, headers);
  }

  async collect(subject: string, data: Uint8Array, timeoutMs: number, last: (message: Msg) => boolean): Promise<Msg[]> {
    if (this.#link?.connected !== true) throw new NoResponders(subject);
    return this.#link.collect(subject, data, timeoutMs, last);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#link?.close();
  }

  async #connect(options: Omit<ConnectOptions, "waitMs">): Promise<void> {
    while (!this.#closed && this.#link === undefined) {
      try {
        this.#link = await NatsLink.open({ ...options, waitMs: 0 });
        if (this.#closed) await this.#link.close();
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 500).unref());
      }
    }
  }
}
