import winston from "winston";

export type Fields = Readonly<Record<string, unknown>>;

/** One event per line; what belongs to it goes into fields, never into the text. */
export interface Logger {
  debug(event: string, fields?: Fields): void;
  info(event: string, fields?: Fields): void;
  warn(event: string, fields?: Fields): void;
  error(event: string, fields?: Fields): void;
  /** A logger that adds `fields` to each line; `component` is the usual one. */
  with(fields: Fields): Logger;
}

const logLevels = ["error", "warn", "info", "debug"];
const secret = /(:\/\/[^:/@\s]*:)[^@\s]+@/g;

/** Passwords in URLs never reach a log. */
export function withoutSecrets(text: string): string {
  return text.replace(secret, "$1***@");
}

function plain(value: unknown): unknown {
  if (value instanceof Error) {
    const code = (value as { code?: unknown }).code;
    return {
      name: value.name,
      message: withoutSecrets(value.message),
      ...(typeof code === "string" ? { code } : {}),
      stack: value.stack === undefined ? undefined : withoutSecrets(value.stack),
      ...(value.cause === undefined ? {} : { cause: plain(value.cause) }),
    };
  }
  if (typeof value === "string") return withoutSecrets(value);
  if (typeof value === "bigint") return value.toString();
  return value;
}

class WinstonLogger implements Logger {
  readonly #winston: winston.Logger;
  readonly #fields: Fields;

  constructor(base: winston.Logger, fields: Fields) {
    this.#winston = base;
    this.#fields = fields;
  }

  debug(event: string, fields?: Fields): void {
    this.#write("debug", event, fields);
  }
  info(event: string, fields?: Fields): void {
    this.#write("info", event, fields);
  }
  warn(event: string, fields?: Fields): void {
    this.#write("warn", event, fields);
  }
  error(event: string, fields?: Fields): void {
    this.#write("error", event, fields);
  }
  with(fields: Fields): Logger {
    return new WinstonLogger(this.#winston, { ...this.#fields, ...fields });
  }

  #write(level: string, event: string, fields: Fields = {}): void {
    if (!this.#winston.isLevelEnabled(level)) return;
    const line: Record<string, unknown> = {};
    for (const [key, value] of Object.entries({ ...this.#fields, ...fields })) line[key] = plain(value);
    this.#winston.log(level, event, line);
  }
}

/** JSON lines on standard output, or on standard error where something else is the program's output. */
export function createLogger(level: string, fields: Fields = {}, to: "stdout" | "stderr" = "stdout"): Logger {
  const base = winston.createLogger({
    level,
    format: winston.format.combine(winston.format.timestamp(), winston.format.json()),
    transports: [new winston.transports.Console({ stderrLevels: to === "stderr" ? [...logLevels] : [] })],
  });
  return new WinstonLogger(base, fields);
}

/** Drops everything; for tests that don't look at logs. */
export const silentLogger: Logger = {
  debug() {},
  info() {},
  warn() {},
  error() {},
  with: () => silentLogger,
};
