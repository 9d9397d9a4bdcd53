import type { Server } from "node:net";
import { holdPort, isFree } from "../../infra/local/ports.js";

/** A hundred ports from `base` that no other test run uses; `release` gives them back. */
export interface PortRange {
  readonly base: number;
  release(): Promise<void>;
}

/** Below the ports that systems give to clients (from 32768 on Linux), so that no connection of ours can take one. */
const first = 20_000;
const count = 120;

/** Takes a free range: its first port stays bound as long as this process lives, so that two runs can't collide. */
export async function claimPorts(): Promise<PortRange> {
  const start = Math.floor(Math.random() * count);
  for (let i = 0; i < count; i++) {
    const base = first + 100 * ((start + i) % count);
    const held = await holdPort(base);
    if (held === undefined) continue;
    if (await allFree(base)) return { base, release: () => close(held) };
    await close(held);
  }
  throw new Error("no free range of a hundred ports");
}

async function allFree(base: number): Promise<boolean> {
  const ports = Array.from({ length: 99 }, (_, i) => base + 1 + i);
  return (await Promise.all(ports.map(isFree))).every(Boolean);
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => server.close(() => resolve()));
}
