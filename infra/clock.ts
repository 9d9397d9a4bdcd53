/** Time as the rest of the code may know it; tests and the simulation bring their own. */
export interface Clock {
  /** Milliseconds on a clock that never jumps (fractions allowed). Leases and deadlines use only this one. */
  monotonic(): number;
  /** Milliseconds since 1970. For what people read; never for a decision about ownership. */
  wall(): number;
}

export interface Timer {
  cancel(): void;
}

export interface Timers {
  /** Runs `action` once after `ms` milliseconds. */
  after(ms: number, action: () => void): Timer;
  /** Resolves after `ms` milliseconds, or at once when `signal` aborts. Never rejects. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Runs `action` at the end of the event loop's turn: what arrives together is handled together. */
  soon(action: () => void): void;
}

export interface Time extends Clock, Timers {}

/** The event loop counts a timer from when its turn began, so a bare one may fire some milliseconds early. */
function notBefore(ms: number, action: () => void): Timer {
  const due = performance.now() + ms;
  const fire = (): void => {
    const left = due - performance.now();
    if (left <= 0) action();
    else handle = setTimeout(fire, Math.ceil(left));
  };
  let handle = setTimeout(fire, ms);
  return { cancel: () => clearTimeout(handle) };
}

export const systemTime: Time = {
  monotonic: () => performance.now(),
  wall: () => Date.now(),
  after: notBefore,
  soon: (action) => void setImmediate(action),
  sleep(ms, signal) {
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        timer.cancel();
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = notBefore(ms, done);
      signal?.addEventListener("abort", done, { once: true });
    });
  },
};

/** Resolves with the promise's value, or with `otherwise` after `ms`; the promise's own failure is passed on. */
export async function within<T, O>(time: Timers, ms: number, promise: Promise<T>, otherwise: O): Promise<T | O> {
  let timer: Timer | undefined;
  const late = new Promise<O>((resolve) => {
    timer = time.after(Math.max(0, ms), () => resolve(otherwise));
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer?.cancel();
  }
}
