import type { Random } from "../../infra/random.js";
import type { Client } from "../../services/demo/client.js";
import type { Journal } from "../../services/demo/journal.js";

/** Reads clusters picked at random from datacenters picked at random, and notes what each showed. */
export class Reader {
  readonly #client: Client;
  readonly #journal: Journal;
  readonly #ids: readonly string[];
  readonly #random: Random;
  readonly #everyMs: number;
  #timer: NodeJS.Timeout | undefined;
  #underWay = 0;

  constructor(client: Client, journal: Journal, ids: readonly string[], random: Random, perSecond: number) {
    this.#client = client;
    this.#journal = journal;
    this.#ids = ids;
    this.#random = random;
    this.#everyMs = 1000 / perSecond;
  }

  start(): void {
    this.#timer = setInterval(() => {
      // Reads that hang at a paused datacenter must not pile up.
      if (this.#underWay >= 32) return;
      this.#underWay++;
      void this.#read().finally(() => this.#underWay--);
    }, this.#everyMs);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #read(): Promise<void> {
    const dcs = this.#client.datacenters;
    const dc = dcs[Math.floor(this.#random.next() * dcs.length)] ?? "";
    const clusterId = this.#ids[Math.floor(this.#random.next() * this.#ids.length)] ?? "";
    const answer = await this.#client.request(dc, "GET", `/v1/clusters/${clusterId}`, { timeoutMs: 1000 });
    if (answer.status !== 200) return;
    const seen = JSON.parse(answer.text) as { version: number; labels?: Record<string, string> };
    this.#journal.reads.push({
      dc,
      clusterId,
      startedAt: answer.startedAt,
      endedAt: answer.endedAt,
      mark: seen.labels?.["change"] ?? null,
      version: seen.version,
    });
  }
}
