import { Problem } from "../errors.js";
import { IncarnationChanged, isRefusal, isTimeout } from "./database.js";

/** Of sockets, and of looking up a host. */
const network = new Set([
  "EAI_AGAIN",
  "ECONNABORTED",
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTDOWN",
  "EHOSTUNREACH",
  "ENETDOWN",
  "ENETUNREACH",
  "ENOTFOUND",
  "EPIPE",
  "ETIMEDOUT",
]);
/** What the driver says without a code: the connection broke, or none could be had in time. */
const broken =
  /^(Connection terminated|timeout exceeded when trying to connect|timeout expired|Client was closed|Client has encountered a connection error|Cannot use a pool after calling end)/;
/** Shutting down or starting, read-only, out of connections, memory or disk, connection lost; cancelled for its time-out. */
const away = /^(57P0.|57014|25006|25P03|53...|08...)$/;
/** Data exceptions, and what is beyond a limit of the program. */
const ofData = /^(22|54)...$/;
/** Division by zero: raised on purpose where a head is not as it was locked. */
const onPurpose = "22012";

const codeOf = (error: Error): string => (error as { readonly code?: string }).code ?? "";

/** Whether the database can't be used now, whoever asks; else the statement itself is at fault. */
export function isAway(error: unknown): boolean {
  if (!(error instanceof Error) || error instanceof Problem) return false;
  const code = codeOf(error);
  if (away.test(code) || network.has(code)) return true;
  return error instanceof IncarnationChanged || isTimeout(error) || broken.test(error.message);
}

/** The server ended the statement, which took too long. */
export const isTooLong = (error: unknown): boolean => error instanceof Error && codeOf(error) === "57014";

/** The server refused a value: nothing of its transaction took effect, and it would refuse it again. */
export const isDataFault = (error: unknown): boolean =>
  isRefusal(error) && ofData.test(codeOf(error)) && codeOf(error) !== onPurpose;

/** What callers are told while the database can't be used. */
export const awayProblem = (cause: unknown): Problem =>
  new Problem("no_lease", "the datacenter's database can't be used now", { cause });

/** For what certainly had no effect, such as a read: the Problem where the database can't be used now, else the error as it is. */
export const readFailure = (error: unknown): unknown => (isAway(error) ? awayProblem(error) : error);
