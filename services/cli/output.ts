export type Row = Readonly<Record<string, unknown>>;

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value ?? null, undefined, 2)}\n`);
}

/** Columns of equal width under their names; the first row's keys are the columns. */
export function table(rows: readonly Row[]): string {
  const [first] = rows;
  if (first === undefined) return "(none)\n";
  const columns = Object.keys(first);
  const lines = [
    columns.map((column) => column.toUpperCase()),
    ...rows.map((row) => columns.map((column) => cell(row[column]))),
  ];
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)));
  return lines
    .map(
      (line) =>
        `${line
          .map((text, i) => text.padEnd(widths[i] ?? 0))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
}

/** A line of progress, on standard error: over the last one on a terminal, below it elsewhere. */
export function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${text}`);
  else process.stderr.write(`${text}\n`);
  unfinished = process.stderr.isTTY;
}

/** How much is done (0 to 1), drawn. */
export const bar = (share: number): string =>
  `[${"#".repeat(Math.round(share * 20)).padEnd(20, ".")}] ${Math.round(share * 100)} %`;

/** Ends the line of progress, if one stands. */
export function endProgress(): void {
  if (unfinished) process.stderr.write("\r\u001b[K");
  unfinished = false;
}

let unfinished = false;

function cell(value: unknown): string {
  if (value === undefined || value === null) return "-";
  return typeof value === "string" ? value : JSON.stringify(value);
}
