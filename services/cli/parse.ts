import { readFileSync } from "node:fs";
import { InvalidArgumentError } from "commander";
import { UsageError } from "./failure.js";

/** For commander: a whole number within bounds. */
export function wholeNumber(from: number, to: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= from && value <= to) return value;
    throw new InvalidArgumentError(`must be a whole number from ${from} to ${to}.`);
  };
}

/** For commander: names with commas between. */
export function names(text: string): string[] {
  const parts = text.split(",").map((part) => part.trim());
  if (parts.some((part) => part === "")) throw new InvalidArgumentError("must be names with commas between.");
  return parts;
}

/** `{"json":..}`, or `@FILE`, or `@-` for standard input. @throws UsageError */
export function jsonArgument(option: string, text: string): unknown {
  let source = text;
  if (text.startsWith("@")) {
    try {
      source = readFileSync(text === "@-" ? 0 : text.slice(1), "utf8");
    } catch (error) {
      throw new UsageError(
        `${option}: ${text.slice(1)} can't be read (${(error as NodeJS.ErrnoException).code ?? "unknown error"})`,
      );
    }
  }
  try {
    return JSON.parse(source) as unknown;
  } catch (error) {
    throw new UsageError(`${option}: is not JSON (${(error as Error).message})`);
  }
}
