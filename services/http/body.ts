import type { IncomingMessage } from "node:http";
import type { Time } from "../../infra/clock.js";
import { Problem } from "../../infra/errors.js";

/** A client that sends too much gets its answer before the connection is cut, if it ends within this many bytes more. */
const lingerBytes = 8_000_000;
const lingerMs = 2_000;

/** The client went away before its body was complete: there is nobody to answer. */
export class ClientGone extends Error {}

/** What one request holds of a budget. */
export interface BodyShare {
  /** @returns whether there was room; it is held in any case */
  take(bytes: number): boolean;
  /** Gives all of it back. */
  free(): void;
}

/** Bytes of the bodies of all requests together, from their arrival until they are answered. */
export class BodyBudget {
  readonly #limit: number;
  #used = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  share(): BodyShare {
    let held = 0;
    return {
      take: (bytes) => {
        held += bytes;
        this.#used += bytes;
        return this.#used <= this.#limit;
      },
      free: () => {
        this.#used -= held;
        held = 0;
      },
    };
  }
}

export function hasBody(request: IncomingMessage): boolean {
  const length = request.headers["content-length"];
  return (length !== undefined && length !== "0") || request.headers["transfer-encoding"] !== undefined;
}

/** @throws Problem unsupported_media_type */
export function checkMediaType(request: IncomingMessage, wanted: string, ...others: readonly string[]): void {
  const given = request.headers["content-type"];
  // The usual value first: this runs for each write.
  if (given !== wanted) {
    const [type, ...parameters] = (given ?? "").split(";").map((part) => part.trim().toLowerCase());
    if (type !== wanted && !others.includes(type ?? ""))
      throw new Problem("unsupported_media_type", `The body must be sent as ${[wanted, ...others].join(" or ")}.`);
    for (const parameter of parameters) {
      if (parameter.startsWith("charset=") && !/^charset="?utf-8"?$/.test(parameter))
        throw new Problem("unsupported_media_type", "The body must be in UTF-8.");
    }
  }
  const encoding = request.headers["content-encoding"];
  if (encoding !== undefined && encoding.toLowerCase() !== "identity")
    throw new Problem("unsupported_media_type", "The body must be sent without a content encoding.");
}

/**
 * The whole body, at most `limit` bytes; its share of the budget is the caller's to free.
 * @throws Problem payload_too_large, overloaded, deadline_exceeded; ClientGone.
 */
export function readBody(
  request: IncomingMessage,
  limit: number,
  share: BodyShare,
  time: Time,
  deadline: number,
): Promise<Buffer> {
  const tooLarge = (): Problem => new Problem("payload_too_large", `The body may have at most ${limit} bytes.`);
  const declared = Number(request.headers["content-length"] ?? 0);
  if (declared > limit + lingerBytes) return Promise.reject(tooLarge());

  return new Promise<Buffer>((resolve, reject) => {
    let chunks: Buffer[] = [];
    let size = 0;
    let failure: Problem | undefined;
    let timer = time.after(deadline - time.monotonic(), () =>
      done(new Problem("deadline_exceeded", "The body did not arrive in time.")),
    );

    const done = (error?: Error): void => {
      timer.cancel();
      request.off("data", onData).off("end", onEnd).off("close", onGone);
      if (error !== undefined) reject(error);
      else resolve(chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks, size));
    };
    const refuse = (problem: Problem): void => {
      failure = problem;
      chunks = [];
      share.free();
      timer.cancel();
      timer = time.after(lingerMs, () => done(problem));
    };
    const onData = (chunk: Buffer): void => {
      size += chunk.length;
      if (failure !== undefined) {
        if (size > limit + lingerBytes) done(failure);
        return;
      }
      if (size > limit) return refuse(tooLarge());
      chunks.push(chunk);
      if (!share.take(chunk.length))
        refuse(
          new Problem("overloaded", "The requests that are not answered yet have too large bodies together.", {
            retryAfterSeconds: 1,
          }),
        );
    };
    const onEnd = (): void => done(failure);
    const onGone = (): void => done(new ClientGone());
    request.on("data", onData).on("end", onEnd).on("close", onGone).on("error", ignore);
    if (declared > limit) refuse(tooLarge());
  });
}

function ignore(): void {
  // The close that follows is what counts.
}
