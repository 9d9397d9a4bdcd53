/** Resolves after `ms` milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Asks `condition` again and again until it gives a value other than undefined and false, at most for `ms`; then gives undefined. */
export async function until<T>(
  condition: () => T | undefined | false | Promise<T | undefined | false>,
  ms: number,
  everyMs = 20,
): Promise<T | undefined> {
  const deadline = performance.now() + ms;
  for (;;) {
    const value = await condition();
    if (value !== undefined && value !== false) return value;
    if (performance.now() >= deadline) return undefined;
    await pause(everyMs);
  }
}
