const deepestByDefault = 24;

/** What the databases can't keep is replaced, not refused. `value` is JSON; deeper levels than `deepest` become null. */
export function storable(value: unknown, deepest = deepestByDefault): unknown {
  if (typeof value === "string") return value.replaceAll("\u0000", "\uFFFD").replaceAll(/\p{Surrogate}/gu, "\uFFFD");
  if (typeof value === "number") return Number.isFinite(value) ? value : null;
  if (typeof value !== "object" || value === null) return value;
  if (deepest <= 0) return null;
  if (Array.isArray(value)) return value.map((each) => storable(each, deepest - 1));
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key]) => key !== "__proto__")
      .map(([key, each]) => [storable(key) as string, storable(each, deepest - 1)]),
  );
}
