import type { Timers } from "./clock.js";

/**
 * Calls that come in one turn of the event loop are carried out by one `run`, which answers them in their order; what it
 * throws, each of them gets.
 */
export function gather<T, R>(
  time: Pick<Timers, "soon">,
  run: (items: readonly T[]) => Promise<readonly R[]>,
): (item: T) => Promise<R> {
  let open: { readonly items: T[]; readonly answers: Promise<readonly R[]> } | undefined;
  return async (item) => {
    if (open === undefined) {
      const items: T[] = [];
      const answers = new Promise<void>((resolve) => time.soon(resolve)).then(() => {
        open = undefined;
        return run(items);
      });
      open = { items, answers };
    }
    const { items, answers } = open;
    const index = items.push(item) - 1;
    const list = await answers;
    if (index >= list.length) throw new Error("a gathered call got no answer");
    return list[index] as R;
  };
}
