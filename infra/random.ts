import { randomBytes } from "node:crypto";

export interface Random {
  /** A number in [0, 1). */
  next(): number;
  /** `length` characters of 0-9a-z, for ids. */
  token(length: number): string;
}

const alphabet = "0123456789abcdefghijklmnopqrstuvwxyz";

export const systemRandom: Random = {
  next: () => randomBytes(6).readUIntBE(0, 6) / 2 ** 48,
  token(length) {
    let out = "";
    while (out.length < length) {
      // 252 is the largest multiple of 36 below 256: bytes above would favour the first letters.
      for (const byte of randomBytes(length)) if (byte < 252 && out.length < length) out += alphabet[byte % 36];
    }
    return out;
  },
};

/** A repeatable generator (mulberry32) for tests and the simulation. */
export function seededRandom(seed: number): Random {
  let a = seed >>> 0;
  const next = (): number => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    next,
    token(length) {
      let out = "";
      for (let i = 0; i < length; i++) out += alphabet[Math.floor(next() * 36)];
      return out;
    },
  };
}
