/** Ends a verb with exit code 1: the code for programs, the text for people. */
export class Failure extends Error {
  readonly code: string;
  readonly wayOut: string | undefined;
  /** The problem document, as the server sent it. */
  readonly problem: unknown;

  constructor(
    code: string,
    message: string,
    extras: { readonly wayOut?: string; readonly problem?: unknown; readonly cause?: unknown } = {},
  ) {
    super(message, extras.cause === undefined ? undefined : { cause: extras.cause });
    this.name = "Failure";
    this.code = code;
    this.wayOut = extras.wayOut;
    this.problem = extras.problem;
  }
}

/** Wrong usage: exit code 2. */
export class UsageError extends Error {}
