/** The value below which `share` (0 to 1) of the figures lie; NaN for none. */
export function quantile(figures: readonly number[], share: number): number {
  const sorted = [...figures].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? NaN;
}

export const median = (figures: readonly number[]): number => quantile(figures, 0.5);

/** To `digits` places, as a number. */
export const rounded = (figure: number, digits = 2): number => Number(figure.toFixed(digits));

export interface Latency {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** Milliseconds in two places. */
export function latencyOf(figures: readonly number[]): Latency {
  return {
    count: figures.length,
    p50: rounded(quantile(figures, 0.5)),
    p99: rounded(quantile(figures, 0.99)),
    max: rounded(quantile(figures, 1)),
  };
}

/** A table as text: the first row holds the heads; every column but the first is set to the right. */
export function table(rows: readonly (readonly (string | number)[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => String(row[column] ?? "").length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) =>
          column === 0 ? String(cell).padEnd(widths[0] ?? 0) : String(cell).padStart(widths[column] ?? 0),
        )
        .join("  "),
    )
    .join("\n");
}
