import type { Message, Messenger } from "../../infra/nats/messaging.js";
import type { Process, Scheduler } from "./scheduler.js";

interface Subscription {
  readonly process: Process;
  readonly queue: string | null;
  readonly handler: (message: Message) => void;
}

/** Heartbeats and votes have a route of their own beside that of the log and of all else. */
export type Channel = "word" | "bulk";
const channelOf = (subject: string): Channel => (/\.(hb|hba|vote)(\.|$)/.test(subject) ? "word" : "bulk");

/** The links between sites, and core messaging over them: late, lost, doubled, in another order. */
export class Network {
  readonly #scheduler: Scheduler;
  readonly #subscriptions = new Map<string, Set<Subscription>>();
  /** "channel a>b" -> virtual time until which nothing goes that way. */
  readonly #cuts = new Map<string, number>();
  /** Sites whose servers are off. */
  readonly down = new Set<string>();
  /** Share of messages that is lost between sites. */
  loss = 0.01;
  /** Which sites' heartbeats and votes a process does not hear. */
  deaf: (site: string, process: string) => boolean = () => false;
  /** Some messages to a cut-off site are kept until the link heals. */
  keeps = false;

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  /** Whether messages go from a to b now. */
  goes(a: string, b: string, channel: Channel): boolean {
    if (this.down.has(a) || this.down.has(b)) return false;
    return a === b || this.#scheduler.now >= (this.#cuts.get(`${channel} ${a}>${b}`) ?? 0);
  }

  /** For the log. */
  linked(a: string, b: string): boolean {
    return this.goes(a, b, "bulk") && this.goes(b, a, "bulk");
  }

  cut(a: string, b: string, until: number, channels: readonly Channel[] = ["word", "bulk"]): void {
    for (const channel of channels) {
      const key = `${channel} ${a}>${b}`;
      this.#cuts.set(key, Math.max(this.#cuts.get(key) ?? 0, until));
    }
  }

  heal(): void {
    this.#cuts.clear();
    this.loss = 0;
    this.deaf = () => false;
  }

  messenger(process: Process): Messenger {
    return {
      publish: (subject, data) => this.#publish(process, subject, data, () => undefined),
      subscribe: (subject, handler, options) => {
        const subscription: Subscription = { process, handler, queue: options?.queue ?? null };
        let set = this.#subscriptions.get(subject);
        if (set === undefined) this.#subscriptions.set(subject, (set = new Set()));
        set.add(subscription);
        const end = (): void => void set.delete(subscription);
        return Object.assign(end, { drain: async () => end() });
      },
      request: (subject, data, timeoutMs) =>
        new Promise((resolve, reject) => {
          const timer = process.time.after(timeoutMs, () => reject(new Error(`no answer on ${subject}`)));
          const heard = this.#publish(process, subject, data, (answer) => {
            timer.cancel();
            resolve(answer);
          });
          if (heard > 0) return;
          timer.cancel();
          reject(new Error(`nobody answers on ${subject}`));
        }),
    };
  }

  #publish(from: Process, subject: string, data: Uint8Array, answered: (data: Uint8Array) => void): number {
    const set = this.#subscriptions.get(subject);
    if (set === undefined) return 0;
    let heard = 0;
    let queued = false;
    for (const subscription of set) {
      if (subscription.process.dead) {
        set.delete(subscription);
        continue;
      }
      if (subscription.queue !== null && queued) continue;
      queued ||= subscription.queue !== null;
      heard++;
      const channel = channelOf(subject);
      this.#send(channel, from, subscription.process, () =>
        subscription.handler({
          subject,
          data,
          respond: (answer) => this.#send(channel, subscription.process, from, () => answered(answer)),
        }),
      );
    }
    return heard;
  }

  #send(channel: Channel, from: Process, to: Process, arrive: () => void): void {
    const s = this.#scheduler;
    if (from.site === to.site) {
      if (!this.down.has(from.site)) s.after(s.between(0.1, 0.5), to, arrive);
      return;
    }
    if (!this.goes(from.site, to.site, channel)) {
      s.count("messages at a cut");
      const healed = this.#cuts.get(`${channel} ${from.site}>${to.site}`) ?? 0;
      if (this.keeps && healed > s.now && s.chance(0.3)) s.after(healed - s.now + s.between(0, 5), to, arrive);
      return;
    }
    if (channel === "word" && this.deaf(from.site, to.name)) return;
    if (s.chance(this.loss)) return s.count("messages lost");
    const late = this.loss > 0 && s.chance(0.03);
    const delay = late ? s.between(50, 600) : s.between(0.3, 3);
    if (late) s.count("messages late, behind later ones");
    s.after(delay, to, arrive);
    if (this.loss > 0 && s.chance(0.01)) {
      s.count("messages doubled");
      s.after(delay + s.between(0, 300), to, arrive);
    }
  }
}
