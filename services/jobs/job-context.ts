import type { Catalog } from "./catalog.js";
import type { JobEvents } from "./job-events.js";

export interface JobSettings {
  /** How long a task stays its worker's without a heartbeat, milliseconds. */
  readonly leaseMs: number;
  /** Before the second try of a failed task, milliseconds; doubles from try to try. */
  readonly backoffMs: number;
  /** Of standard output and of standard error the last so many characters are kept. */
  readonly outputLimit: number;
  /** A task's result is refused beyond so many bytes of JSON. */
  readonly resultLimit: number;
  /** A job fails when what its tasks gave is more than so many bytes of JSON: it must fit a record. */
  readonly resultsLimit: number;
}

export const defaultJobSettings: JobSettings = {
  leaseMs: 30_000,
  backoffMs: 1_000,
  outputLimit: 64_000,
  resultLimit: 64_000,
  resultsLimit: 384_000,
};

export interface JobContext {
  readonly catalog: () => Catalog;
  readonly events: JobEvents;
  readonly settings: JobSettings;
}
