import type { Settings } from "./node.js";

/** What a seed's world looks like. */
export interface Shape {
  readonly datacenters: readonly string[];
  readonly witness: string | null;
  readonly nodes: number;
  readonly shards: number;
  readonly partitions: number;
  readonly settings: Settings;
  /** Databases go back in time. */
  readonly goesBack: boolean;
  /** The databases' clocks, which judge locks, jump. */
  readonly clockJumps: boolean;
  /** Whole machines are suspended: their monotonic clocks stand still meanwhile. */
  readonly suspends: boolean;
  /** Virtual milliseconds with faults. */
  readonly faultsMs: number;
  /** The same where they go on for longer. */
  readonly longMs: number;
}

const names = ["east", "central", "west", "north", "south"];

export function shapeOf(seed: number): Shape {
  const quick: Settings = {
    leaseMs: 600,
    marginMs: 40,
    heartbeatMs: 120,
    dbDeadMs: 900,
    coordinatorTermMs: 360,
    restateMs: 4_000,
    successors: [],
  };
  const usual: Settings = {
    leaseMs: 1_500,
    marginMs: 100,
    heartbeatMs: 200,
    dbDeadMs: 2_500,
    coordinatorTermMs: 900,
    restateMs: 10_000,
    successors: [],
  };
  const five = seed % 40 === 7;
  const two = seed % 10 === 5;
  return {
    datacenters: names.slice(0, five ? 4 : two ? 2 : 3),
    witness: five || two ? "witness" : null,
    nodes: seed % 3 === 0 && !five ? 2 : 1,
    shards: 1 + (seed % 3),
    partitions: seed % 3 === 1 ? 2 : 1,
    settings: seed % 8 === 0 ? usual : quick,
    goesBack: seed % 4 === 1,
    clockJumps: seed % 4 === 3,
    suspends: seed % 8 === 6,
    faultsMs: five ? 3_000 : 3_300,
    longMs: five ? 10_000 : 13_750,
  };
}
