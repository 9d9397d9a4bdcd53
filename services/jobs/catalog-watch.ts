import { readFile } from "node:fs/promises";
import type { Time } from "../../infra/clock.js";
import { FatalError } from "../../infra/errors.js";
import type { Logger } from "../../infra/logger.js";
import type { Service } from "../../infra/service.js";
import type { CatalogFile } from "./catalog.js";

export interface CatalogWatchOptions {
  /** Undefined: the built-in catalog, which never changes. */
  readonly file: string | undefined;
  readonly catalog: CatalogFile;
  readonly time: Time;
  readonly log: Logger;
  readonly onFault: () => void;
}

/** By content, not by the file's times: mounted configuration is swapped under a link, and editors rename. */
const everyMs = 2_000;

/** Takes a changed catalog file into use. A faulty one leaves the old catalog in use, and the log says why. */
export class CatalogWatch implements Service {
  readonly name = "catalog";
  readonly #o: CatalogWatchOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #wake = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: CatalogWatchOptions) {
    this.#o = options;
    this.#log = options.log.with({ component: "catalog" });
  }

  async start(): Promise<void> {
    if (this.#o.file !== undefined) this.#loop = this.#run(this.#o.file);
  }

  /** Reads the file now, also when it has not changed. */
  look(): void {
    this.#wake.abort();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#wake.abort();
    await this.#loop;
  }

  async #run(file: string): Promise<void> {
    const { time, catalog } = this.#o;
    let seen = catalog.text;
    while (!this.#stop.signal.aborted) {
      await time.sleep(everyMs, this.#wake.signal);
      if (this.#stop.signal.aborted) return;
      const asked = this.#wake.signal.aborted;
      if (asked) this.#wake = new AbortController();
      const text = await this.#text(file);
      if (text === seen && !asked) continue;
      seen = text;
      this.#reload(file);
    }
  }

  #reload(file: string): void {
    try {
      const { operations } = this.#o.catalog.reload();
      this.#log.info("the catalog was read again", { file, operations: [...operations.keys()] });
    } catch (error) {
      this.#o.onFault();
      const said = error instanceof FatalError ? { code: error.code, faults: error.message } : { error };
      this.#log.error("the catalog file is faulty: the old catalog stays in use", { file, ...said });
    }
  }

  /** Undefined where it can't be read. */
  async #text(file: string): Promise<string | undefined> {
    try {
      return await readFile(file, "utf8");
    } catch {
      return undefined;
    }
  }
}
